"""The report says in sentences what was left out, cut short or is no number, and nothing else."""

from __future__ import annotations

from record_factory import Factory, make_spec

from studylib.reporting import tables
from studylib.reporting.blocks import Items, Table
from studylib.reporting.compose import build_report
from studylib.reporting.limits import limit_sentences
from studylib.reporting.prose import answer_track
from studylib.reporting.study import read_study
from studylib.reporting.summary import summarise_study


class Counted(Factory):
    """Every run of a model left out, cut and did not decide so many; the others nothing."""

    counts: dict = {}  # noqa: RUF012

    def train(self, spec):
        return super().train(spec).model_copy(update=self.counts.get(spec.model, {}))

    def evaluate(self, frames):
        return super().evaluate(frames).model_copy(update=self.counts.get("evaluate", {}))


def tell(folder, methods=("base", "full", "lora"), **counts):
    factory = Counted(folder, items=64)
    factory.counts = counts.pop("counts", {})
    for method in methods:
        for track in ("main", "language"):
            factory.add(make_spec(method, track=track, retention=False))
    return limit_sentences([summarise_study(read_study(factory.folder))])


def test_what_was_left_out_is_told_with_its_numbers(tmp_path):
    train = {"examples_drawn": 900, "examples_left_out": 24, "examples_cut": 3, "rows_skipped": 28}
    found = tell(tmp_path, counts={
        "ladder:0.4m": train, "evaluate": {"prompts_cut": 12, "undecided": 5},
    })  # fmt: skip
    text = "\n".join(found)
    for track in ("main", "language"):
        assert f"24 of 900 drawn in rows of 256 tokens, ladder:0.4m (track {track})" in text
        assert f"3 of 900 drawn in rows of 256 tokens, ladder:0.4m (track {track})" in text
        assert f"5 of 64 questions, ladder:0.4m (track {track})" in text
        assert f"12 prompts of 64 questions, ladder:0.4m (track {track})" in text
    assert "that another part asks too, were left out: almanac:new: 28 rows." in text
    assert text.count("28 rows") == 1, "once for all runs of one data set"
    assert all(line.endswith(".") and ".." not in line for line in found)


def test_nothing_is_said_of_what_did_not_happen(tmp_path):
    words = ("left out", "not learned", "lost their beginning", "equally likely", "choose no")
    text = "\n".join(tell(tmp_path))
    assert not [word for word in words if word in text]


def test_older_records_do_not_know_how_many_were_drawn(tmp_path):
    [line] = [x for x in tell(tmp_path, ("full",), counts={"ladder:0.4m": {"examples_cut": 7}})
              if "not learned" in x]  # fmt: skip
    assert "7 of the set in rows of 256 tokens" in line


def test_base_that_is_no_number_has_a_word_and_leaves_differences_unknown(tmp_path):
    whole, broken = (Factory(tmp_path / name, items=64) for name in ("whole", "broken"))
    why = "fp32 weights: 3 of 64 questions have log-likelihoods that are not finite"
    for factory in (whole, broken):
        status = {"status": "not a number", "reason": why} if factory is broken else {}
        factory.add(make_spec("base"), **status)
        for method in ("full", "lora"):
            factory.add(make_spec(method))
    control, summary = (summarise_study(read_study(f.folder)) for f in (whole, broken))

    def column(summary, table, name):
        made = table(summary.comparisons)
        index = next(i for i, header in enumerate(made.header) if header.startswith(name))
        return [row[index] for row in made.rows]

    assert column(summary, tables.headline_table, "Accuracy")[0] == "not a number"
    assert column(summary, tables.headline_table, "Method")[0].endswith("— not a number")
    assert column(summary, tables.headline_table, "Kept")[1:] == ["not known"] * 2
    assert column(summary, tables.accuracy_table, "Gain") == ["not known"] * 2
    assert "±" in column(summary, tables.headline_table, "Gap")[2], "the gap to full is known"
    assert all("±" in cell for cell in column(control, tables.accuracy_table, "Gain")[1:])
    [line] = [x for x in limit_sentences([summary]) if "choose no answer" in x]
    assert "ladder-0.4m--base choose" in line
    assert "gains over the base and what was kept are not known there" in line
    report = build_report([summary], [], None)
    runs = next(block for block in report.appendices["runs"] if isinstance(block, Table))
    assert f"not a number: {why}" in runs.column("Status")
    assert any(line in block.items for block in report.parts["words"] if isinstance(block, Items))
    assert "not a number" not in str(answer_track(control, "main"))


def test_full_that_is_no_number_leaves_gaps_unknown(tmp_path):
    factory = Factory(tmp_path, items=64)
    factory.add(make_spec("base"))
    factory.add(make_spec("full"), status="not a number", reason="all alike")
    factory.add(make_spec("lora"))
    summary = summarise_study(read_study(factory.folder))
    cells = [cell for row in tables.headline_table(summary.comparisons).rows for cell in row]
    assert "not known" in cells
    [line] = [x for x in limit_sentences([summary]) if "choose no answer" in x]
    assert "gaps to full fine-tuning are not known there" in line
    assert "No full fine-tuning run is complete" in str(answer_track(summary, "main"))
