"""The answer says what the records show, in whatever state a study is."""

import ast
import itertools
from pathlib import Path
from string import Formatter

import pytest
from record_factory import Factory, make_spec

from studylib.core.places import PACKAGE
from studylib.reporting import notes, prose, tables
from studylib.reporting.glossary import read_words
from studylib.reporting.limits import limit_sentences
from studylib.reporting.resources import MEMORY
from studylib.reporting.study import read_study
from studylib.reporting.summary import summarise_study

METHODS = ("base", "full", "lora", "qlora")
SUBSETS = [s for n in (1, 2, 3) for s in itertools.combinations(METHODS, n)]


def answer(summary) -> str:
    """What is said of the study's one track."""
    return "\n".join(prose.answer_track(summary, "main"))


@pytest.mark.parametrize("methods", SUBSETS, ids="+".join)
def test_any_part_of_a_study_can_be_told(tmp_path: Path, methods: tuple[str, ...]) -> None:
    factory = Factory(tmp_path / "s", items=64)
    for method in methods:
        factory.add(make_spec(method, retention=False))
    factory.add(make_spec("lora-embed"), status="out of memory", reason="while loading")
    summary = summarise_study(read_study(factory.folder))
    text = answer(summary)
    assert text.startswith("**" if "full" in methods else "No full fine-tuning run is complete")
    for table in (tables.headline_table, tables.gap_table, tables.time_table):
        table(summary.comparisons)
    assert limit_sentences([summary])


@pytest.mark.parametrize(
    ("lora", "words"),
    [
        (0.40, "**Full fine-tuning learned more than LoRA r=16.**"),
        (0.72, "**No clear difference between LoRA r=16 and full fine-tuning.**"),
        (0.92, "**LoRA r=16 learned more than full fine-tuning.**"),
    ],
)
def test_the_headline_follows_the_interval(tmp_path: Path, lora: float, words: str) -> None:
    factory = Factory(tmp_path / "s")
    factory.add(make_spec("base"))
    for seed in (0, 1, 2):
        factory.add(make_spec("full", seed=seed), knows=0.72)
        factory.add(make_spec("lora", seed=seed), knows=lora)
    assert answer(summarise_study(read_study(factory.folder))).startswith(words)


def test_host_memory_is_named_and_explained(tmp_path: Path) -> None:
    factory = Factory(tmp_path / "s")
    factory.add(make_spec("full"))
    assert "host memory" in notes.memory_note(
        summarise_study(read_study(factory.folder)).comparisons
    )


def test_untuned_rates_are_a_limit(tmp_path: Path) -> None:
    factory = Factory(tmp_path / "s")
    spec = make_spec("full").model_copy(
        update={"learning_rate_source": "the method's default, not tuned"}
    )
    factory.add(spec)
    found = limit_sentences([summarise_study(read_study(factory.folder))])
    assert any("not tuned" in limit for limit in found)


def test_live_tensors_stand_for_memory_where_there_is_no_card(tmp_path):
    from studylib.core.measure import StageMeasure
    from studylib.reporting.summary import Comparison

    class Counted(Factory):
        def train(self, spec):
            block = super().train(spec)
            measure = StageMeasure(
                wall_seconds=1.0,
                host_peak_bytes=10**9,
                host_peak_source="kernel",
                live_tensor_peak_bytes=2 * 10**7,
            )
            return block.model_copy(update={"measure": measure})

    factory = Counted(tmp_path / "cpu")
    factory.study(models=("ladder:0.4m",), seeds=(0,))
    [comparison] = summarise_study(read_study(factory.folder)).comparisons
    assert isinstance(comparison, Comparison)
    assert comparison.memory_kind == "live_tensor_peak_bytes"
    assert "tensors alive were counted" in notes.memory_note([comparison])


def test_random_weights_are_said_not_to_be_asked_in_the_answer_and_the_table(tmp_path) -> None:
    from studylib.schema.records import RECORD, EvaluateBlock, write_record

    factory = Factory(tmp_path / "s", items=32)
    words = "not measured: random weights"
    for method in METHODS:
        record = factory.add(make_spec(method, retention=False))
        folder = factory.folder / "runs" / record.run_id
        (folder / "items.parquet").unlink()
        (folder / RECORD).unlink()
        assert record.evaluate is not None
        block = EvaluateBlock(measure=record.evaluate.measure, scores=(), reason=words)
        files = {name: sha for name, sha in record.files.items() if name != "items.parquet"}
        write_record(folder, record.model_copy(update={"evaluate": block, "files": files}))
    summary = summarise_study(read_study(factory.folder))
    told = answer(summary)
    assert f"accuracy: {words}" in told and "memory" in told
    table = tables.headline_table(summary.comparisons)
    index = next(i for i, name in enumerate(table.header) if name.startswith("Accuracy"))
    assert {row[index] for row in table.rows} == {words}
    assert limit_sentences([summary])


def test_every_text_of_the_writers_file_is_said_with_its_very_holes() -> None:
    """A hole that the code does not fill, or a text that nobody says, shows in no other test."""
    said: dict[str, set[str | None]] = {}
    for path in (PACKAGE / "reporting").glob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "say":
                names = [c.value for c in ast.walk(call.args[0]) if isinstance(c, ast.Constant)]
                said |= {name: {word.arg for word in call.keywords} for name in names}
    texts = {name: text for name, text in read_words().items() if isinstance(text, str)}
    holes = {name: {hole for _, hole, _, _ in Formatter().parse(text) if hole}
             for name, text in texts.items()}  # fmt: skip
    assert said | {kind: set() for kind in texts.keys() & set(MEMORY)} == holes
