"""The report is a pure function of the records, refuses what differs and says words for gaps."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from record_factory import Factory, make_spec

from studylib.errors import StudyError
from studylib.records import digest_of
from studylib.report import build_reference_report, build_report, check_reference_report
from studylib.study import Study, read_study
from studylib.summary import summarise


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results") / "two-sizes"
    return Factory(folder).study()


@pytest.fixture(scope="module")
def report(study: Path) -> str:
    return build_report(study).read_text()


def all_bytes(folder: Path) -> dict[str, bytes]:
    made = [folder / "REPORT.md", *folder.glob("figures/*"), *folder.glob("tables/*")]
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
            "import sys, pathlib, studylib.report as r; r.build_report(pathlib.Path(sys.argv[1]));"
            "assert not {'torch', 'transformers', 'peft'} & set(sys.modules)"
        )
        environ = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", code, str(copy)], env=environ, check=True)
        found.append(all_bytes(copy))
    assert found[0] == found[1]
    assert len([name for name in found[0] if name.endswith(".svg")]) == 6
    assert len([name for name in found[0] if name.endswith(".csv")]) == 4


def test_the_order_of_the_records_does_not_matter(study: Path) -> None:
    read = read_study(study)
    turned = Study(read.name, read.folder, read.link, read.records[::-1], read.planned)
    assert repr(summarise(turned).comparisons[0].rows) == repr(summarise(read).comparisons[0].rows)
    assert [c.name for c in summarise(turned).comparisons] == ["ladder:0.4m", "ladder:1.4m"]


def test_answer_is_computed_from_the_records(study: Path, report: str) -> None:
    rows = summarise(read_study(study)).comparisons[1].rows
    gaps = {row.method.name: row.gap for row in rows}
    answer = section(report, "The answer")
    for name in ("lora", "qlora"):
        gap = gaps[name]
        assert gap is not None
        assert f"{abs(100 * gap.value):.1f} pp" in answer
    assert "CPU AMD EPYC" in answer
    assert "95 % interval" in answer


def test_every_row_links_records_that_exist(study: Path, report: str) -> None:
    links = re.findall(r"\]\(([^)]+)\)", report)
    assert len(links) > 40
    assert [link for link in links if not (study / link).is_file()] == []


def test_every_run_names_the_command_that_makes_it_again(report: str) -> None:
    assert "`study run ladder-1.4m--lora-r16--s2 --profile cpu`" in report


def test_no_date_but_that_of_the_runs(report: str) -> None:
    assert set(re.findall(r"20\d\d-\d\d-\d\d", report)) == {"2026-01-01"}


def test_chance_is_said_in_words_and_no_conclusion_drawn(tmp_path: Path) -> None:
    factory = Factory(tmp_path / "guess")
    for method in ("base", "full", "lora"):
        factory.add(make_spec(method, retention=False), knows=0.25)
    text = build_report(factory.folder).read_text()
    answer = section(text, "The answer")
    assert "no accuracy is distinguishable from chance (25.0 %" in answer
    assert "cannot say which method learns more" in answer
    assert "fell short" not in answer
    assert "**not comparable**" in section(text, "Claimed and measured")


def test_smallest_detectable_difference_is_stated(report: str) -> None:
    assert re.search(r"finds 8 times in 10: \d+\.\d pp for LoRA r=16 at ladder:0\.4m", report)


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
    rows = [line for line in section(text, "Results").splitlines() if line.startswith("|")]
    assert any("full — diverged (1 of 2 runs)" in row for row in rows)
    assert any("LoRA r=16 — out of memory" in row and "1.05 GB" in row for row in rows)
    assert any("QLoRA r=16" in row and "s0 not run, s1 failed (see its log)" in row for row in rows)
    assert "loss is nan at step 7" in text
    assert "Not run at all: ladder:1.4m (track main)." in section(text, "The answer")


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
    summary = summarise(read_study(factory.folder))
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
    text = build_report(own, reference=reference).read_text()
    beside = section(text, "Beside the reference")
    rows = [line for line in beside.splitlines() if line.startswith("| main")]
    assert len(rows) == 8
    assert all("device.name" in row for row in rows)
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
    assert "lora-r16--s1" in build_report(folder).read_text()


class TestReferenceReport:
    @pytest.fixture
    def root(self, tmp_path: Path) -> Path:
        folder = tmp_path / "results" / "reference" / "one"
        Factory(folder).study(models=("ladder:0.4m",), seeds=(0,))
        build_reference_report(tmp_path)
        return tmp_path

    def test_fresh_report_has_nothing_stale(self, root: Path) -> None:
        assert check_reference_report(root) == []
        assert (root / "results/reference/one/figures/main-gap-to-full.svg").is_file()
        links = re.findall(r"\]\(([^)]+)\)", (root / "REPORT.md").read_text())
        assert [link for link in links if not (root / link).is_file()] == []

    def test_every_kind_of_staleness_is_named(self, root: Path) -> None:
        figures = root / "results/reference/one/figures"
        (root / "REPORT.md").write_text("old")
        (figures / "main-loss.svg").unlink()
        (figures / "gone-loss.svg").write_text("<svg/>")
        assert check_reference_report(root) == [
            "REPORT.md is not what the records give",
            "results/reference/one/figures/main-loss.svg is missing",
            "results/reference/one/figures/gone-loss.svg belongs to no record",
        ]

    def test_a_new_record_makes_it_stale(self, root: Path) -> None:
        Factory(root / "results/reference/one").add(make_spec("lora", seed=1))
        assert "REPORT.md is not what the records give" in check_reference_report(root)

    def test_several_profiles_have_a_section_each(self, root: Path) -> None:
        Factory(root / "results/reference/two").study(models=("ladder:1.4m",), seeds=(0,))
        text = build_reference_report(root).read_text()
        assert "## Profile one, track main" in text
        assert "## Profile two, track main" in text
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
    before = build_report(folder).read_text()
    assert "### Learning rates" not in before
    factory.sweep("full", {1e-4: 80, 1e-3: 150, 1e-2: None})
    factory.sweep("lora-r16", {1e-3: 80, 5e-3: 140, 2e-2: 120})
    text = build_report(folder).read_text()
    rates = text.partition("### Learning rates")[2].partition("###")[0]
    rows = [line for line in rates.splitlines() if line.startswith("| ladder")]
    assert "| 0.001 | 75.0 | 200 | 3 | no |" in rows[0]
    assert "| 0.005 | 70.0 | 200 | 3 | no |" in rows[1]
    assert (folder / "figures" / "main-tuning.svg").is_file()
    factory.sweep("qlora-r16", {1e-3: 80, 5e-3: 140, 2e-2: 160})
    assert "**yes: a better rate may lie beyond**" in build_report(folder).read_text()
