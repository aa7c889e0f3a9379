"""The report is a pure function of the records, refuses what differs and says words for gaps."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from record_factory import Factory, make_spec
from serve_factory import add_serving
from test_forecast_book import make_book

from studylib.core import places
from studylib.core.errors import StudyError
from studylib.core.sealed import digest_of
from studylib.reporting.appendix_files import slug
from studylib.reporting.blocks import Table
from studylib.reporting.report import (
    check_reference_report,
    compose_report,
    own_sources,
    reference_sources,
    write_report,
)
from studylib.reporting.study import Study, read_study
from studylib.reporting.summary import summarise_study
from studylib.schema.forecast_book import write_book

SHARES = {
    "full": {400: 0.9, 800: 0.85, 1600: 0.7},
    "lora-r1": {400: 0.88, 800: 0.5, 1600: 0.35},
    "lora-r16": {400: 0.9, 800: 0.84, 1600: 0.69},
}


def build_report(results: Path, **sources: Any) -> Path:
    """A reader's REPORT.md, as the report notebook makes it."""
    found = own_sources(results, **sources)
    return write_report(found, compose_report(found))


def tables_of(folder: Path, part: str = "results", **sources: Any) -> list[Table]:
    """The tables of one part of a reader's report, or of one appendix."""
    made = compose_report(own_sources(folder, **sources))
    blocks = {**made.parts, **made.appendices}[part]
    return [block for block in blocks if isinstance(block, Table)]


def build_reference_report(root: Path) -> Path:
    found = reference_sources(root)
    return write_report(found, compose_report(found))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results") / "two-sizes"
    return Factory(folder).study()


@pytest.fixture(scope="module")
def report(study: Path) -> str:
    return build_report(study).read_text()


def whole(folder: Path) -> str:
    """The report and its appendices."""
    files = [folder / "REPORT.md", *sorted(folder.glob("docs/report/*.md"))]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    return text.replace("\u00a0", " ")


def all_bytes(folder: Path) -> dict[str, bytes]:
    made = [folder / "REPORT.md", *folder.glob("docs/report/*"), *folder.glob("figures/*"),
            *folder.glob("tables/*")]  # fmt: skip
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in made}


def section(report: str, title: str) -> str:
    """One section, with plain spaces where the report keeps a figure on one line."""
    return report.partition(f"\n## {title}\n")[2].partition("\n## ")[0].replace("\u00a0", " ")


def test_same_records_give_the_same_bytes_in_other_processes_without_torch(tmp_path: Path) -> None:
    Factory(tmp_path / "two").study(models=("ladder:0.4m",), seeds=(0, 1))
    found = []
    for seed in ("1", "2"):
        copy = tmp_path / f"copy{seed}" / "two"
        shutil.copytree(tmp_path / "two", copy)
        code = (
            "import sys, pathlib, studylib.reporting.report as r;"
            "s = r.own_sources(pathlib.Path(sys.argv[1])); r.write_report(s, r.compose_report(s));"
            "assert not {'torch', 'transformers', 'peft'} & set(sys.modules)"
        )
        environ = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", code, str(copy)], env=environ, check=True)
        found.append(all_bytes(copy))
    assert found[0] == found[1]
    assert len([name for name in found[0] if name.endswith(".svg")]) == 7
    assert len([name for name in found[0] if name.endswith(".csv")]) == 5


def test_the_order_of_the_records_does_not_matter(study: Path) -> None:
    read = read_study(study)
    turned = Study(read.name, read.folder, read.link, read.records[::-1], read.planned)
    assert repr(summarise_study(turned).comparisons[0].rows) == repr(
        summarise_study(read).comparisons[0].rows
    )
    assert [c.name for c in summarise_study(turned).comparisons] == ["ladder:0.4m", "ladder:1.4m"]


def test_answer_is_computed_from_the_records(study: Path, report: str) -> None:
    full, *others = (r for r in summarise_study(read_study(study)).comparisons[1].rows if r.gain)
    shares = sorted(round(100 * (1 + row.gap.value / full.gain.value)) for row in others if row.gap)
    answer = section(report, "The answer")
    assert f"kept {shares[0]} to {shares[-1]} % of full fine-tuning's gain" in answer


def links_of(path: Path) -> list[tuple[str, str]]:
    """File and heading of every link to a place in the checkout."""
    return re.findall(r"\]\((?!https:)([^)#]*)#?([^)]*)\)", path.read_text(encoding="utf-8"))


def dead_links(folder: Path) -> list[str]:
    """Links of a report and its appendices that lead to no file, or to no heading in it."""
    dead = []
    for path in (folder / "REPORT.md", *folder.glob("docs/report/*.md")):
        for name, heading in links_of(path):
            target = path.parent / name
            known = target.is_file() and (
                not heading or heading in {slug(h) for h in headings(target)}
            )
            dead += [] if known else [f"{path.name}: {name}#{heading}"]
    return dead


def headings(path: Path) -> list[str]:
    return re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)


def test_every_link_leads_to_a_file_and_every_run_has_one(study: Path, report: str) -> None:
    assert dead_links(study) == []
    linked = {name for name, _ in links_of(study / "docs/report/runs.md")}
    records = {p.relative_to(study).as_posix() for p in study.glob("runs/*/record.json")}
    assert records <= {link.removeprefix("../../") for link in linked}


def test_every_run_names_the_command_that_makes_it_again(study: Path, report: str) -> None:
    assert "`study run ladder-1.4m--lora-r16--s2 --profile cpu`" in whole(study)


def test_no_date_but_that_of_the_runs(study: Path, report: str) -> None:
    assert set(re.findall(r"20\d\d-\d\d-\d\d", whole(study))) == {"2026-01-01"}


def test_chance_is_said_in_words_and_no_conclusion_drawn(tmp_path: Path) -> None:
    factory = Factory(tmp_path / "guess")
    for method in ("base", "full", "lora"):
        factory.add(make_spec(method, retention=False), knows=0.25)
    text = build_report(factory.folder).read_text()
    told = section(text, "Results")
    assert "no accuracy is clearly better than guessing (25.0 %" in told
    assert "cannot say which method learns more" in told
    answer = section(text, "The answer")
    assert "kept" not in answer.partition("###")[0] and "nothing was measured here" in answer
    assert "**not comparable**" in (factory.folder / "docs/report/claims.md").read_text()


def test_failures_and_missing_runs_are_words_in_rows(tmp_path: Path) -> None:
    factory = Factory(tmp_path / "partly")
    factory.add(make_spec("base"))
    factory.add(make_spec("full", seed=0))
    factory.add(make_spec("full", seed=1), status="diverged", reason="loss is nan at step 7")
    factory.add(make_spec("lora"), status="out of memory", reason="while training: 80 GB asked")
    planned = [make_spec("qlora", seed=0), make_spec("qlora", seed=1)]
    planned.append(make_spec("full", "ladder:1.4m"))
    failed = {planned[1].run_id: "see its log"}
    text = build_report(factory.folder, planned=planned, failed=failed).read_text()
    [table] = tables_of(factory.folder, planned=planned, failed=failed)
    memory = dict(zip(table.column("Method"), table.column("Train peak"), strict=True))
    assert "full — diverged (1 of 2 runs)" in memory
    assert memory["LoRA r=16 — out of memory"] == "1.05 GB"
    assert memory["QLoRA r=16 — s0 not run, s1 failed (see its log)"] == "—"
    assert "loss is nan at step 7" in whole(factory.folder)
    assert "Not run at all: ladder:1.4m (track main)." in section(text, "Results")


@pytest.mark.parametrize(
    ("field", "value"),
    [("evaluate.items_sha256", "other items"), ("evaluate.shots", 5), ("code.sha256", "changed")],
)
def test_altered_fingerprint_is_refused_by_name_with_both_values(
    tmp_path: Path, field: str, value: object
) -> None:
    factory = Factory(tmp_path / "mixed")
    for method in ("base", "full"):
        factory.add(make_spec(method))
    odd = factory.add(make_spec("lora"), fingerprint={field: value})
    kept = factory.add(make_spec("qlora"))
    text = build_report(factory.folder).read_text()
    told = text.partition("**Not put into one table**")[2].partition("\n\n| ")[0]
    assert f"**{field}**" in told
    assert f"`{value}` in {odd.run_id}" in told
    assert f"`{str(kept.fingerprint[field])[:16]}" in told
    summary = summarise_study(read_study(factory.folder))
    assert [sorted(r.method.name for r in c.rows) for c in summary.comparisons] == [
        ["base", "full", "qlora"], ["lora"],
    ]  # fmt: skip
    assert all(row.gap is None for row in summary.comparisons[1].rows)


def test_hand_edited_record_stops_the_report_and_is_named(tmp_path: Path) -> None:
    folder = Factory(tmp_path / "edited").study(models=("ladder:0.4m",), seeds=(0,))
    build_report(folder)
    path = folder / "runs" / "ladder-0.4m--lora-r16--s0" / "record.json"
    content = json.loads(path.read_text())
    content["load"]["trainable_params"] = 1
    path.write_text(json.dumps(content))
    with pytest.raises(StudyError, match=r"lora-r16--s0/record\.json: the record was changed"):
        build_report(folder)


def test_reader_sees_own_figures_beside_the_reference(tmp_path: Path) -> None:
    reference = Factory(tmp_path / "reference" / "r").study(seeds=(0,))
    own = Factory(tmp_path / "r", device="CPU of the reader").study(seeds=(0,))
    [table] = tables_of(own, "beside", reference=reference)
    assert len(table.rows) == 8 and all("device.name" in why for why in table.column("Differs in"))
    beside = section(build_report(own, reference=reference).read_text(), "Beside the reference")
    assert "CPU of the reader" in beside
    assert "CPU AMD EPYC" in beside


def test_a_report_without_records_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="make reproduce"):
        build_report(tmp_path)


def test_nothing_is_made_again_while_records_and_files_stay(tmp_path: Path) -> None:
    folder = Factory(tmp_path / "once").study(models=("ladder:0.4m",), seeds=(0,))
    path = build_report(folder)
    before = path.stat().st_mtime_ns
    build_report(folder)
    assert path.stat().st_mtime_ns == before
    good = path.read_bytes()
    path.write_text("touched")
    build_report(folder)
    assert path.read_bytes() == good
    Factory(folder).add(make_spec("lora", seed=1))
    build_report(folder)
    assert "lora-r16--s1" in whole(folder)


class TestReferenceReport:
    @pytest.fixture(scope="class")
    def fresh(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        root = tmp_path_factory.mktemp("fresh")
        Factory(root / "results" / "reference" / "one").study(models=("ladder:0.4m",), seeds=(0,))
        build_reference_report(root)
        return root

    @pytest.fixture
    def root(self, fresh: Path, tmp_path: Path) -> Path:
        return shutil.copytree(fresh, tmp_path / "root")

    def test_fresh_report_has_nothing_stale(self, root: Path) -> None:
        assert check_reference_report(root) == []
        assert (root / "results/reference/one/figures/main-gap-to-full.svg").is_file()
        assert dead_links(root) == []

    def test_every_kind_of_staleness_is_named(self, root: Path) -> None:
        figures = root / "results/reference/one/figures"
        (root / "REPORT.md").write_text("old")
        (figures / "main-loss.svg").unlink()
        (figures / "gone-loss.svg").write_text("<svg/>")
        (root / "docs/report/claims.md").write_text("old")
        (root / "docs/report/gone.md").write_text("old")
        assert check_reference_report(root) == [
            "REPORT.md is not what the records give",
            "docs/report/claims.md is not what the records give",
            "results/reference/one/figures/main-loss.svg is missing",
            "docs/report/gone.md belongs to no record",
            "results/reference/one/figures/gone-loss.svg belongs to no record",
        ]

    def test_a_new_record_makes_it_stale(self, root: Path) -> None:
        Factory(root / "results/reference/one").add(make_spec("lora", seed=1))
        assert "docs/report/runs.md is not what the records give" in check_reference_report(root)

    def test_several_profiles_have_a_section_each(self, root: Path) -> None:
        Factory(root / "results/reference/two").study(models=("ladder:1.4m",), seeds=(0,))
        text = build_reference_report(root).read_text()
        titles = re.findall(r"^## (.*)$", text, re.M)
        assert titles[1:3] == ["Toy models (profile one)", "Toy models (profile two)"]
        pretrained = root / "results/reference/zebra"
        Factory(pretrained).study(models=("path:models/zebra",), seeds=(0,))
        first = section(build_reference_report(root).read_text(), "The answer")
        assert "zebra of" in first and "seen in one [toy model]" not in first
        titles = re.findall(r"^## (.*)$", (root / "REPORT.md").read_text(), re.M)
        assert titles[1] == "A real model, zebra (profile zebra)"
        assert check_reference_report(root) == []


def test_resealed_record_is_not_told_by_its_digest_alone(tmp_path: Path) -> None:
    """Whoever edits and seals again changes the fingerprint or the items, and both are checked."""
    folder = Factory(tmp_path / "sealed").study(models=("ladder:0.4m",), seeds=(0,))
    path = folder / "runs" / "ladder-0.4m--qlora-r16--s0" / "record.json"
    content = json.loads(path.read_text())
    content["fingerprint"]["evaluate.prompt"] = "another prompt"
    content["digest"] = digest_of(content)
    path.write_text(json.dumps(content))
    assert "**evaluate.prompt** differs" in build_report(folder).read_text()


def test_learning_rates_are_shown_and_a_best_at_the_edge_is_flagged(tmp_path: Path) -> None:
    factory = Factory(tmp_path / "tuned")
    folder = factory.study(models=("ladder:0.4m",), seeds=(0,))
    build_report(folder)
    assert "**Learning rates**" not in whole(folder)
    factory.sweep("full", {1e-4: 80, 1e-3: 150, 1e-2: None})
    factory.sweep("lora-r16", {1e-3: 80, 5e-3: 140, 2e-2: 120})
    rates = tables_of(folder, "details")[-2]
    assert [row[3:] for row in rates.rows] == [
        ("0.001", "75.0", "200", "70 (over 0.0001)", "3", "no"),
        ("0.005", "70.0", "200", "20 (over 0.02)", "3", "no"),
    ]
    factory.sweep("qlora-r16", {1e-3: 80, 5e-3: 140, 2e-2: 160})
    build_report(folder)
    assert (folder / "figures" / "main-tuning.svg").is_file()
    assert tables_of(folder, "details")[-2].column("At the edge") == ["no", "no", "**yes**"]
    assert "a better one may lie beyond" in whole(folder)


def test_a_run_that_was_not_started_says_so_and_why(tmp_path: Path) -> None:
    factory = Factory(tmp_path / "small")
    for method in ("base", "lora"):
        factory.add(make_spec(method))
    reason = "the forecast peak of 106.0 GB is more than this machine's 8.0 GB"
    factory.add(make_spec("full"), status="does not fit, forecast", reason=reason)
    text = build_report(factory.folder).read_text()
    [table] = tables_of(factory.folder)
    assert "full — does not fit, forecast" in table.column("Method")
    assert reason in whole(factory.folder)
    assert "No full fine-tuning run is complete" in section(text, "Results")


class TestWholeReference:
    """Two profiles, serving runs and forecasts in one report."""

    @pytest.fixture(scope="class")
    def root(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        root = tmp_path_factory.mktemp("root")
        reference = root / "results" / "reference"
        cpu = Factory(reference / "cpu", items=160)
        cpu.study(models=("ladder:1.4m",))
        cpu.study(models=("ladder:1.4m",), methods=("base", "full", "lora-embed"),
                  track="language")  # fmt: skip
        for method in ("base", "lora", "qlora"):
            add_serving(cpu.folder, method, "ladder:1.4m")
        Factory(reference / "capacity", items=160).capacity(SHARES)
        write_book(reference / "forecasts.json", make_book())
        build_reference_report(root)
        return root

    def test_it_has_a_part_for_each_and_every_link_leads_somewhere(self, root: Path) -> None:
        text = (root / "REPORT.md").read_text()
        titles = re.findall(r"^## (.*)$", text, re.M)
        assert titles == [
            "The answer", "Toy models (profile cpu)",
            "How many new facts a rank holds (profile capacity)",
            "What one more variant costs to serve", "Forecasts", "Words", "Limits", "Corrections",
        ]  # fmt: skip
        assert sorted(path.stem for path in (root / "docs/report").iterdir()) == [
            "claims", "details", "forecasts", "runs", "serving",
        ]  # fmt: skip
        tracks = re.findall(r"^### (.*) \(track", section(text, titles[1]), re.M)
        assert tracks == ["A small change", "A new language"]
        assert text.count("2 cores, 8.00 GB") == 2, "a machine is told once a study"
        assert dead_links(root) == []
        assert check_reference_report(root) == []

    def test_capacity_is_one_curve_and_its_table_stands_in_the_appendix(self, root: Path) -> None:
        title = "How many new facts a rank holds (profile capacity)"
        part = section((root / "REPORT.md").read_text(), title)
        assert part.count("![") == 1
        assert part.count("\n| --- |") == 0 and "###" not in part
        details = (root / "docs/report/details.md").read_text()
        assert details.count("400 facts: accuracy") == 1

    def test_the_first_screen_is_short(self, root: Path) -> None:
        answer = section((root / "REPORT.md").read_text(), "The answer")
        advice, _, rest = answer.partition("###")
        assert len(advice.split()) <= 150
        assert answer.count("\n| **C") == 8
        assert rest.index("| **C8**") < rest.index("![")

    def test_no_claim_of_the_article_is_left_open(self, root: Path) -> None:
        part = (root / "docs/report/claims.md").read_text()
        unjudged = [line for line in part.splitlines() if "| needs " in line]
        assert len(unjudged) == 2  # LoRA and QLoRA were not run on the language track here
        assert "forecast:" in part

    def test_forecasts_that_changed_make_it_stale(self, root: Path) -> None:
        path = root / "results" / "reference" / "forecasts.json"
        before = path.read_bytes()
        write_book(path, make_book(peak_bytes=99 * 10**9))
        assert "docs/report/claims.md is not what the records give" in check_reference_report(root)
        path.write_bytes(before)


def test_a_readers_report_shows_the_forecasts_beside_the_reference(tmp_path: Path) -> None:
    own = Factory(tmp_path / "own").study(models=("ladder:0.4m",), seeds=(0,))
    reference = tmp_path / "reference" / "own"
    assert "is not forecast yet" in build_report(own, reference=reference).read_text()
    write_book(tmp_path / "reference" / "forecasts.json", make_book())
    assert "Peak of a card" in build_report(own, reference=reference).read_text()


def test_the_verdicts_words_are_told_before_the_first_of_them(study: Path, report: str) -> None:
    words, _, table = (study / "docs/report/claims.md").read_text().partition("\n| ")
    for verdict in ("Reproduced", "differs", "inconclusive", "not comparable"):
        assert f"**{verdict}**" in words
    assert "**differs**" in table


def test_end_to_end_of_what_was_asked_twice_is_explained(study: Path, report: str) -> None:
    assert "QLoRA r=16 did once for each set of weights scored" in whole(study)


def test_every_figure_of_the_tables_has_its_meaning(study: Path, report: str) -> None:
    meanings = whole(study).partition("### What the columns mean")[2]
    for label in ("Clean step", "Kept knowledge", "p (Holm)", "Only this / only full right"):
        assert f"| {label}" in meanings


def test_a_searchs_lead_is_shown_in_questions(tmp_path: Path) -> None:
    factory = Factory(tmp_path / "tuned")
    factory.add(make_spec("full"))
    factory.sweep("full", {1e-4: 149, 1e-3: 150, 1e-2: None})
    rates = tables_of(factory.folder, "details")[-2]
    assert rates.column("Ahead of the next best") == ["1 (over 0.0001)"]


def test_the_smallest_gap_is_found_by_the_corrected_test(study: Path) -> None:
    from studylib.core import stats

    rows = [r for r in summarise_study(read_study(study)).comparisons[0].scored if r.gap]
    assert [row.judged for row in rows] == [3, 3, 3]
    for row in rows:
        assert row.gap is not None
        assert row.detectable == pytest.approx(
            stats.detectable_difference(row.gap.se, row.gap.df, alpha=0.05 / 3)
        )


def test_models_whose_examples_were_read_one_by_one_are_named(tmp_path: Path) -> None:
    class Apart(Factory):
        def load(self, spec: Any) -> Any:
            reason = "an example in a packed row sees the one before it"
            return super().load(spec).model_copy(update={"packing_reason": reason})

    found = []
    for made in (Factory, Apart):
        made(tmp_path / made.__name__).study(models=("ladder:0.4m",), seeds=(0,))
        text = build_report(tmp_path / made.__name__).read_text(encoding="utf-8")
        found.append("they were read one by one" in text)
    assert found == [False, True]


def test_provenance_says_what_was_tried_on_a_model_and_where_it_is_from(tmp_path):
    origin = {"wheel": "small-1.0.whl", "wheel_sha256": "ab" * 32, "license": "Apache-2.0"}

    class Converted(Factory):
        def load(self, spec):
            tried = {"attention": "sdpa", "four_bit_share": 0.113, "four_bit_error": 0.0921}
            return super().load(spec).model_copy(update={**tried, "origin": origin})

    Converted(tmp_path).study(models=("ladder:0.4m",), seeds=(0,))
    rows = dict(next(t for t in tables_of(tmp_path, "runs") if t.header[0] == "What").rows)
    model = next(name.removeprefix("Origin of ") for name in rows if name.startswith("Origin of"))
    assert rows[f"Origin of {model}"] == "small-1.0.whl, sha256 abababababab, Apache-2.0"
    assert rows[f"How {model} reads"].startswith("sdpa attention; examples of a packed row do not")
    base = rows[f"4-bit base of {model}"]
    assert "11.3 %" in base and "9.2 %" in base


def test_corrections_stand_in_the_shipped_report_alone(report):
    assert "## Corrections" not in report
    assert "## Corrections" in (places.ROOT / "REPORT.md").read_text(encoding="utf-8")
