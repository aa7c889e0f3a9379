"""A card's study in the report: its figures are the records' own, claims take them first, records
of another commit stand by themselves, and without a card nothing changes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from record_factory import Factory, make_spec
from serve_factory import add_serving

from studylib.core.errors import StudyError
from studylib.core.metrics import MISSING, byte_size
from studylib.core.places import REFERENCE
from studylib.forecasting.calibration import learn_terms
from studylib.forecasting.run_forecasts import refresh_forecasts
from studylib.metering.code_files import FORECASTING, code_sha256
from studylib.planning.alpaca_run import TOKENS
from studylib.reporting import serve_tables
from studylib.reporting.appendix import runs_table
from studylib.reporting.blocks import Block, Heading, Table, to_markdown
from studylib.reporting.card_section import card_details, card_section, energy_cell, is_card
from studylib.reporting.claims import Finding, evaluate_claims
from studylib.reporting.compose import build_report
from studylib.reporting.forecast_tables import forecast_claims
from studylib.reporting.limits import limit_sentences
from studylib.reporting.made_from import hash_inputs
from studylib.reporting.study import read_study
from studylib.reporting.summary import Summary, summarise_study
from studylib.running.publish import publish_results
from studylib.schema.card_study import (
    CARD_STUDY,
    Call,
    CardFacts,
    CardStudy,
    Ceiling,
    Part,
    StepTaken,
    write_card_study,
)
from studylib.schema.forecast_book import FORECASTS, read_book
from studylib.schema.records import Record, read_record, read_records
from studylib.schema.run_forecasts import RUN_FORECASTS, read_run_forecasts
from studylib.schema.serve_records import read_serve_records

DEVICE = "NVIDIA H200"
GB = 10**9
PARAMS = {"shape:Llama-2-13B": 13_015_864_320, "shape:Llama-2-7B": 6_738_415_616}
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj")
OLD, NEW = "a" * 40, "b" * 40


class Card(Factory):
    """Trainings with random weights on a card: peaks in GB by NVML, and speeds, as they are told.

    torch's allocator holds 1 GB less than NVML shows, and has given out 1 GB less than it holds.
    """

    commit = NEW
    hides_processes = False
    others_bytes = 0  # what the card holds beside the run's own process

    def run(self, method: str, track: str, peak: float, rate: float, **train: Any) -> Record:
        model = train.pop("model", "shape:Llama-2-13B")
        status, marks = train.pop("status", "complete"), train.pop("marks", {})
        rows, length = (int(n) for n in track.split("x"))
        spec = make_spec(method, model, track=track, profile="h200", retention=False, gpus=1)
        shape = {"micro_batch": rows, "seq_len": length, "accumulation": 1, "dtype": "bf16",
                 "steps": 13, "checkpointing": True, "loss": "chunked", **train}  # fmt: skip
        adapter = spec.method.kind.adapter
        asked = spec.method.model_copy(update={"targets": TARGETS} if adapter else {})
        recipe = spec.train.model_copy(update=shape)
        spec = spec.model_copy(update={"train": recipe, "method": asked})
        self.peak, self.rate = round(peak * GB), rate
        return self.add(spec, status=status, fingerprint=marks)

    def load(self, spec):
        total, block = PARAMS[spec.model], super().load(spec)
        extra = 26_214_400 if spec.method.kind.adapter else 0
        return block.model_copy(update={"total_params": total + extra,
                                        "trainable_params": extra or total})  # fmt: skip

    def train(self, spec):
        block, peak = super().train(spec), self.peak
        measure = block.measure.model_copy(update={
            "nvml_peak_bytes": peak + self.others_bytes,
            "nvml_process_peak_bytes": None if self.hides_processes else peak,
            "torch_peak_reserved_bytes": peak - GB, "torch_peak_allocated_bytes": peak - 2 * GB,
            "energy_joules": 7200.0, "unavailable": {},
        })  # fmt: skip
        return block.model_copy(update={
            "measure": measure, "tokens_per_second": self.rate, "tokens_seen": 100_000,
            "clean_step_seconds": 0.5, "model_flops_per_token": 2 * PARAMS[spec.model],
            "recomputed_flops_per_token": PARAMS[spec.model], "peak_flops_per_second": 989e12,
            "weights_bytes": None, "optimizer_states_bytes": None,
        })  # fmt: skip

    def evaluate(self, frames):
        return super().evaluate([]).model_copy(update={"reason": "not measured: random weights"})

    def answer(self, spec, task, share, weights):
        return super().answer(spec, task, share, weights).head(0)

    def environment(self):
        cards = ({"name": DEVICE, "driver_version": "580.1"},)
        return super().environment().model_copy(
            update={"devices": cards, "devices_reason": None, "git_commit": self.commit}
        )  # fmt: skip


def write_card(folder: Path, rehearsal: bool = False) -> None:
    ceiling = Ceiling(size=8192, products=9, bf16_flops_per_second=780e12,
                      copy_bytes_per_second=4.3e12)  # fmt: skip
    left = (Part(name="llama-2-13b--lora-r16--16x2048--s0", state="cut off"),)
    write_card_study(folder, CardStudy(
        card=CardFacts(name=DEVICE, memory_bytes=150 * GB, driver="580.1", torch="2.11.0",
                       ceiling=ceiling),
        rehearsal=rehearsal, models={"13b": "shape:Llama-2-13B"},
        calls=(Call(started_at="2026-01-01T00:00:00+00:00", minutes=12, seconds=700,
                    git_commit=NEW, git_dirty=False),),
        steps=(StepTaken(name="13b", answers="?", state="done"),
               StepTaken(name="13b-16x2048", answers="?", state="cut off", reason="its slice ended",
                         parts=left)),
    ))  # fmt: skip


def card_study(folder: Path) -> Card:
    """Llama-2-13B at three passes, in full with paged states, and 7B with a serving run."""
    card = Card(folder, device=DEVICE)
    for track, lora, qlora, rate in (("1x512", 28, 9, 3000), ("1x2048", 29, 10, 4000),
                                     ("4x2048", 35, 15, 5000)):  # fmt: skip
        card.run("lora", track, lora, rate)
        card.run("qlora", track, qlora, rate / 2)
    card.run("full", "1x2048", 54, 2500, optimizer="paged-adamw-8bit")
    card.run("lora", "4x2048", 25, 9000, model="shape:Llama-2-7B")
    write_card(folder)
    return card


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    card_study(tmp_path / "h200")
    return tmp_path / "h200"


def summary_of(folder: Path) -> Summary:
    return summarise_study(read_study(folder, planned=()))


def find(findings: list[Finding], claim: str, part: str) -> list[Finding]:
    return [f for f in findings if (f.claim, f.part) == (claim, part)]


def blocks_of(folder: Path) -> list[Block]:
    """The card's part of the report, then its part of the appendix."""
    summary = summary_of(folder)
    return [*card_section(summary, several=True), *card_details(summary)]


def told(blocks: Iterable[Block]) -> str:
    return to_markdown(blocks).replace("\u00a0", " ")


def rows_below(blocks: list[Block], title: str, nth: int = 0) -> list[tuple[str, ...]]:
    """The rows of the first table below the nth heading that begins so."""
    at = [i for i, b in enumerate(blocks) if isinstance(b, Heading) and b.text.startswith(title)]
    return next(block.rows for block in blocks[at[nth] :] if isinstance(block, Table))


# The section -------------------------------------------------------------------------------------


def test_every_figure_of_the_section_is_its_records_own(folder):
    blocks = blocks_of(folder)
    records = {r.run_id: r for r in read_records(folder / "runs")}
    memory = rows_below(blocks, "Peak memory of training")
    assert len(memory) == len(records)
    for row in memory:
        run_id = row[2].partition("(runs/")[2].partition("/record.json")[0]
        measure = records.pop(run_id).train.measure
        seen = (measure.torch_peak_allocated_bytes, measure.torch_peak_reserved_bytes,
                measure.nvml_process_peak_bytes)  # fmt: skip
        assert row[3:] == tuple(f"{byte_size(count)}; not forecast" for count in seen)
    speed = rows_below(blocks, "Speed")
    assert [row[1] for row in speed[:7]] == ["full, paged-adamw-8bit", *["LoRA r=16"] * 3,
                                             *["QLoRA r=16"] * 3]  # fmt: skip
    share = 4000 * 2 * PARAMS["shape:Llama-2-13B"]
    lora = next(row for row in speed if row[1:3] == ("LoRA r=16", speed[2][2]))
    assert "1 × 2,048" in lora[2] and lora[3:5] == ("0.500", "4,000")
    assert lora[5:8] == (f"{100 * share / 989e12:.1f}", f"{100 * share / 780e12:.1f}",
                         f"{150 * share / 780e12:.1f}")  # fmt: skip
    assert lora[8] == "20.0"  # 7,200 J are 2 Wh, of 100,000 tokens


def test_the_section_says_which_card_when_by_which_commit_and_what_was_cut_off(folder):
    text = told(blocks_of(folder))
    assert text.startswith("## Measured on a card (profile h200)")
    assert f"{DEVICE}, 150 GB, torch 2.11.0, driver 580.1; 8 records of 2026-01-01" in text
    assert f"commit {NEW[:12]}." in text
    assert "780 TFLOP/s (datasheet 989)" in text and "4.30 TB/s (datasheet 4.80)" in text
    left = text.partition("### Cut off or not measured")[2].partition("###")[0]
    assert "- 13b-16x2048, cut off: llama-2-13b--lora-r16--16x2048--s0 (its slice ended)" in left
    assert "13b," not in left.replace("13b-16x2048", "")


def test_records_of_another_commit_get_tables_of_their_own(folder):
    card = Card(folder, device=DEVICE)
    card.commit = OLD
    card.run("lora", "16x2048", 70, 6000, marks={"code.sha256": "0" * 64})
    blocks, title = blocks_of(folder), "Peak memory of training"
    first, other = (b.text for b in blocks if isinstance(b, Heading) and b.text.startswith(title))
    assert first.startswith(f"{title} ({DEVICE}, commit {NEW[:12]}, code ")
    assert other == f"{title} ({DEVICE}, commit {OLD[:12]}, code {'0' * 12})"
    assert not any("16 × 2,048" in row[2] for row in rows_below(blocks, title))
    [row] = rows_below(blocks, title, 1)
    assert "70.0 GB" in row[5]
    assert f"commit {OLD[:12]} and {NEW[:12]}" in told(blocks)


def test_forecasts_of_these_very_runs_stand_beside_them_by_part(folder):
    records = read_records(folder / "runs")
    refresh_forecasts(folder, records, lambda line: None)
    study = read_study(folder, planned=())
    assert {f.run_id for f in study.forecasts} == {r.run_id for r in records}
    blocks = blocks_of(folder)
    made = next(f for f in study.forecasts if f.run_id == "llama-2-13b--lora-r16--1x2048--s0")
    row = next(r for r in rows_below(blocks, "Peak memory") if "--lora-r16--1x2048" in r[2])
    assert row[5].startswith(f"29.0 GB; {byte_size(made.peak_bytes)} (")
    context = made.parts["cuda_context"]
    assert row[4].startswith(f"28.0 GB; {byte_size(made.peak_bytes - context)} (")
    [parts] = [b for b in blocks if isinstance(b, Table) and "CUDA context" in b.header]
    assert len(parts.rows) == len(records) and "trainings by NVML" in told(blocks)
    found = find(evaluate_claims([summary_of(folder)]), "C2", "lora")[0]
    assert f"forecast without it: {byte_size(made.peak_bytes)}" in found.ours


def test_forecasts_for_that_card_learn_from_its_records(folder):
    refresh_forecasts(folder, read_records(folder / "runs"), lambda line: None)
    learn_terms.cache_clear()
    efficiency, cuda = learn_terms("h200-141gb", folder.parent)
    assert efficiency.source == cuda.source == "by 8 runs on NVIDIA H200 141GB SXM"
    assert cuda.context_bytes == GB
    learn_terms.cache_clear()


def test_a_driver_that_hides_processes_leaves_the_whole_card_to_learn_from(tmp_path):
    """As in many containers: NVML lists no process, and a run has its card to itself."""
    card = Card(tmp_path / "h200", device=DEVICE)
    card.hides_processes = True
    card.run("lora", "1x2048", 29, 4000)
    write_card(card.folder)
    refresh_forecasts(card.folder, read_records(card.folder / "runs"), lambda line: None)
    learn_terms.cache_clear()
    assert learn_terms("h200-141gb", tmp_path)[1].context_bytes == GB
    learn_terms.cache_clear()
    blocks = blocks_of(card.folder)
    assert rows_below(blocks, "Peak memory of training")[0][5].startswith("29.0 GB; ")
    assert any("CUDA context" in block.header for block in blocks if isinstance(block, Table))


def test_energy_is_told_of_runs_of_one_session_alone():
    record = read_record(REFERENCE / "h200/runs/llama-2-13b--lora-r16--1x512--s0/record.json")
    assert energy_cell(record) == "62.2"
    twice = record.environment.model_copy(update={"sessions": 2})
    assert energy_cell(record.model_copy(update={"environment": twice})) == MISSING


# Claims ------------------------------------------------------------------------------------------


def test_a_13b_peak_on_a_card_is_judged_before_any_forecast_at_the_articles_pass(folder):
    book = forecast_claims(read_book(REFERENCE / FORECASTS))
    findings = evaluate_claims([summary_of(folder)], book)
    [lora] = [f for f in find(findings, "C2", "lora") if f.got == "measured"]
    assert find(findings, "C2", "lora")[0] == lora
    assert lora.ours.startswith("LoRA r=16, 1 × 2,048 tokens at once")
    assert "29.0 GB by NVML" in lora.ours
    assert "judged at 1 × 2,048, as the profile article has it" in lora.ours
    assert "at the others tried 1 × 512 28 GB, 4 × 2,048 35 GB: 28 GB to 35 GB in all" in lora.ours
    assert lora.how == f"measured on {DEVICE}: shape:Llama-2-13B, track 1x2048"
    assert lora.verdict == "differs"  # 29 GB are not about 56
    [full] = [f for f in find(findings, "C2", "full") if f.got == "measured"]
    assert "54.0 GB by NVML" in full.ours
    [card] = [f for f in find(findings, "C7", "fits-24gb") if f.got == "measured"]
    assert "10.0 GB by NVML" in card.ours and card.verdict == "reproduced"


def test_a_claims_peak_is_that_of_the_cards_own_table(tmp_path):
    """The process's where the driver lists it, the whole card's where states are paged."""
    card = Card(tmp_path / "h200", device=DEVICE)
    card.others_bytes = GB
    card.run("lora", "1x2048", 29, 4000)
    card.run("full", "1x2048", 54, 2000, optimizer="paged-adamw-8bit")
    write_card(card.folder)
    table = rows_below(blocks_of(card.folder), "Peak memory of training")
    assert [row[5].partition(";")[0] for row in table] == ["55.0 GB", "29.0 GB"]
    findings = evaluate_claims([summary_of(card.folder)])
    for part, peak in (("full", "55.0 GB by NVML"), ("lora", "29.0 GB by NVML")):
        assert peak in find(findings, "C2", part)[0].ours


def test_a_forecast_gives_way_where_the_same_job_was_measured_and_nowhere_else(folder):
    book = forecast_claims(read_book(REFERENCE / FORECASTS))
    before = evaluate_claims([], book)
    after = evaluate_claims([summary_of(folder)], book)

    def forecasts(findings, part):
        return [f.ours for f in find(findings, "C2", part) if f.got == "forecast"]

    assert forecasts(before, "qlora") and not forecasts(after, "qlora")
    assert forecasts(before, "full") == forecasts(after, "full")  # in other precisions, AdamW's


def test_dollars_come_from_measured_tokens_and_this_cards_price(folder):
    [cost] = find(evaluate_claims([summary_of(folder)]), "C3", "lora")
    hours = TOKENS["packed"] / 4000 / 3600
    assert f"19.9M tokens at 4,000 tokens/s, {hours:.2f} h" in cost.ours
    assert "1 × NVIDIA H200 141GB SXM" in cost.ours and "at the others tried" in cost.ours


def test_another_commits_row_is_not_mixed_into_a_claim(folder):
    card = Card(folder, device=DEVICE)
    card.commit = OLD
    card.run("lora", "16x2048", 70, 6000, marks={"code.sha256": "0" * 64})
    new, old = find(evaluate_claims([summary_of(folder)]), "C2", "lora")
    assert "16 × 2,048" not in new.ours and "70.0 GB by NVML" in old.ours
    assert new.how.endswith(f"commit {NEW[:12]}") and old.how.endswith(f"commit {OLD[:12]}")


def test_7b_speaks_of_serving_and_not_of_a_13b_model(folder):
    findings = evaluate_claims([summary_of(folder)])
    assert not any("Llama-2-7B" in f.how for f in findings if f.claim in ("C2", "C3", "C7"))


# The whole report --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def laptop(tmp_path_factory) -> Path:
    folder = Factory(tmp_path_factory.mktemp("cpu") / "cpu", items=64).study(
        models=("ladder:0.4m",), seeds=(0,)
    )
    add_serving(folder)
    return folder


def test_beside_a_card_other_studies_stay_as_they_are(laptop, folder):
    add_serving(folder, adds=1.12)
    alone = build_report([summary_of(laptop)], evaluate_claims([summary_of(laptop)]), None)
    studies = [summary_of(laptop), summary_of(folder)]
    both = build_report(studies, evaluate_claims(studies), None)
    ours = serve_tables.overhead_table(read_study(laptop, planned=()).serves)
    assert ours in alone.parts["serving"], "alone it stands in the report"
    assert ours not in both.parts["serving"], "a toy's takes less room beside another study"
    assert ours in both.appendices["serving"] and ours not in alone.appendices["serving"]
    results, answer = told(both.parts["results"]), told(both.parts["answer"])
    assert "+12.0 % [+10.0, +14.0]" in results, "the card's serving is in its part"
    assert "+12.0 %" in find(evaluate_claims(studies), "C6", "dynamic")[0].ours
    assert Heading(2, "Measured on a card (profile h200)") in both.parts["results"]
    assert "29 GB with LoRA" in answer and f"one {DEVICE}" in answer
    assert "it ran with [random weights]" in answer
    assert "Measured on a card" not in str(alone.parts)
    pictures = [n for n in both.files if n.endswith(".svg")]
    assert sorted(pictures) == sorted(n for n in alone.files if n.endswith(".svg"))


def test_a_readers_own_card_has_its_serving_in_both_parts(folder):
    add_serving(folder, adds=1.12)
    own = build_report([summary_of(folder)], [], None, own_folder="")
    parts = {name: told(blocks) for name, blocks in own.parts.items()}
    assert "+12.0 %" in parts["results"] and "+12.0 %" in parts["serving"]
    pictures = {name.split("/")[-1] for name in own.files if name.endswith(".svg")}
    assert pictures == {"serve-overhead.svg", "serve-monthly.svg"}


def test_limits_of_learning_are_not_told_of_random_weights(folder, laptop):
    assert any("fewer than three" in line for line in limit_sentences([summary_of(laptop)]))
    assert not any("fewer than three" in line for line in limit_sentences([summary_of(folder)]))


def test_a_cards_run_is_made_again_by_the_profile_beside_its_record(folder):
    commands = [row[-1] for row in runs_table(summary_of(folder)).rows]
    assert all(command.endswith("--profile profile.yaml`") for command in commands)


def test_a_rehearsal_is_no_card(folder):
    write_card(folder, rehearsal=True)
    assert not is_card(summary_of(folder))


def test_other_libraries_and_mmlu_are_shown_as_their_files_have_them(folder):
    table = [["peer", "tokens/s", "by plain [95 %]", "allocated", "MFU", "first loss", "padding",
              "did the same work"],
             ["plain", "1,000", "1", "20.0 GB (1.00)", "-", "2.0", "40 %", "compared with"],
             ["ours", "2,500", "2.50 (no interval)", "18.0 GB (0.90)", "-", "2.0", "1 %",
              "yes"]]  # fmt: skip
    (folder / "peers.json").write_text(json.dumps({"table": table, "words": "7B, LoRA.",
                                                   "peers": {}}))  # fmt: skip
    scored = {"model": "shape:OLMo-2-1B", "items": 120, "stock_model_seconds": 60.0,
              "our_model_seconds": 8.0, "time_ratio": 7.5, "answers_changed": 0,
              "max_abs_loglikelihood_difference": 3e-5}  # fmt: skip
    lines = [json.dumps(scored | {"dtype": dtype}, indent=1) for dtype in ("fp32", "bf16")]
    (folder / "mmlu_prefix.json").write_text("\n".join(lines) + "\n")
    blocks = blocks_of(folder)
    assert rows_below(blocks, "Beside other libraries")[1] == (
        "ours", "2,500", "2.50 (no interval)", "18.0 GB (0.90)", "1 %", "yes"
    )  # fmt: skip
    mmlu = rows_below(blocks, "MMLU")
    assert [row[1] for row in mmlu] == ["fp32", "bf16"]
    assert mmlu[0][2:] == ("120", "60.0", "8.00", "7.50 ×", "0", "3e-05")


# Publishing --------------------------------------------------------------------------------------


def with_profile(folder: Path) -> Path:
    """The study's profile beside its records: three passes of 13B, of which one was never run."""
    tracks = [{"name": f"{rows}x{length}", "train": {"micro_batch": rows, "seq_len": length}}
              for rows, length in ((1, 512), (1, 2048), (4, 2048), (16, 2048))]  # fmt: skip
    content = {
        "name": "h200", "models": ["shape:Llama-2-13B"], "methods": ["lora"], "seeds": [0],
        "lora": {"rank": 16, "targets": list(TARGETS)},
        "data": {"source": "almanac:new", "template": "plain"},
        "evaluate": {"questions": "almanac:new", "scoring": "text", "shots": 0},
        "train": {"steps": 13, "accumulation": 1, "dtype": "bf16", "checkpointing": True,
                  "loss": "chunked", "learning_rates": {"lora": 1e-3}},
        "hardware": {"gpus": 1}, "tracks": tracks,
    }  # fmt: skip
    (folder / "profile.yaml").write_text(yaml.safe_dump(content))
    return folder


def lora_study(folder: Path, commit: str, tracks: dict[str, float], code: str = "1") -> Path:
    card = Card(folder, device=DEVICE)
    card.commit = commit
    for track, peak in tracks.items():
        card.run("lora", track, peak, 4000, marks={"code.sha256": code * 64})
    write_card(folder)
    return with_profile(folder)


def test_a_cards_study_is_published_as_far_as_it_came_with_its_own_files(tmp_path):
    results = lora_study(tmp_path / "h200", NEW, {"1x512": 28, "1x2048": 29})
    (results / "peers.json").write_text("{}")
    (results / "logs").mkdir()
    (results / "logs" / "log.txt").write_text("words")
    target = publish_results(results, tmp_path / "reference")
    assert len(read_records(target / "runs")) == 2
    names = {path.name for path in target.iterdir()}
    assert names == {"runs", "profile.yaml", "card.json", "peers.json", RUN_FORECASTS}
    assert {f.run_id for f in read_study(target).forecasts} == {
        r.run_id for r in read_records(target / "runs")
    }


def test_what_an_earlier_time_on_the_card_left_stays_and_keeps_its_commit(tmp_path):
    reference = tmp_path / "reference"
    publish_results(lora_study(tmp_path / "one" / "h200", OLD, {"1x512": 28, "1x2048": 29}),
                    reference)  # fmt: skip
    publish_results(lora_study(tmp_path / "two" / "h200", NEW, {"1x2048": 30}, code="2"), reference)
    records = {r.run.track: r for r in read_records(reference / "h200" / "runs")}
    assert {t: r.environment.git_commit for t, r in records.items()} == {"1x512": OLD,
                                                                         "1x2048": NEW}  # fmt: skip
    forecasts = read_study(reference / "h200", planned=()).forecasts
    assert {f.record_digest for f in forecasts} == {r.digest for r in records.values()}


def test_a_rehearsal_is_published_as_any_other_study(tmp_path):
    results = lora_study(tmp_path / "h200", NEW, {"1x512": 28})
    write_card(results, rehearsal=True)
    with pytest.raises(StudyError, match="3 runs are not done"):
        publish_results(results, tmp_path / "reference")


def test_changed_files_of_a_card_make_the_report_anew(folder):
    before = hash_inputs([folder])
    (folder / "peers.json").write_text("{}")
    assert hash_inputs([folder]) != before


# Shipped records ---------------------------------------------------------------------------------


def test_shipped_records_of_cards_may_be_of_older_code_and_their_forecasts_may_not():
    """Cheap studies are made again when measuring code changes; a card's records keep the commit
    that made them, which must be known. Their forecasts cost seconds and are today's."""
    for folder in sorted(path.parent for path in REFERENCE.glob(f"*/{CARD_STUDY}")):
        records, serves = read_records(folder / "runs"), read_serve_records(folder / "serve")
        served = [record.serve_id for record in serves]
        assert read_run_forecasts(folder).made_for(records, code_sha256(FORECASTING), served)
        for record in (*records, *serves):
            assert record.environment.git_commit and record.environment.git_dirty is False
