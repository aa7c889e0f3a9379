"""REPORT.md with its figures and tables: a pure function of the records.

The same records give the same bytes, in whatever order they are read. Two reports are made: a
reader's own, results/PROFILE/REPORT.md, which sets the reader's figures beside the reference's;
and the repository's, REPORT.md at the top, from the reference records alone.

Not covered: running anything. The report knows records and nothing of how they came to be.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from studylib import appendix, figures, prose, tables
from studylib.claims import Finding, Forecast, evaluate_claims
from studylib.errors import StudyError
from studylib.made_from import hash_inputs, is_fresh, remember
from studylib.profile import RunSpec
from studylib.records import explain_write_error, write_atomically
from studylib.study import read_study
from studylib.summary import Comparison, Summary, summarise

REPORT = "REPORT.md"
REFERENCE = Path("results") / "reference"
Files = dict[str, bytes]  # path relative to the report's folder -> content


def build_report(
    results: Path,
    reference: Path | None = None,
    out: Path | None = None,
    planned: Iterable[RunSpec] | None = None,
    failed: Mapping[str, str] | None = None,
    forecasts: Mapping[str, Forecast] | None = None,
) -> Path:
    """Write REPORT.md, figures and tables of a results folder; returns the report's path.

    results: results/PROFILE with its runs. reference: results/reference/PROFILE, set beside it
    where it exists. out: another folder to write to; links then still lead to the records.
    planned, failed: what the profile asks and what is known of failures, for the words not run and
    failed. StudyError: no records, an untrusted record, a folder that cannot be written.
    """
    out = out or results
    planned = None if planned is None else tuple(planned)
    beside = reference if reference is not None and has_runs(reference) else None
    folders = [results] if beside is None else [results, beside]
    inputs = hash_inputs(folders, planned, sorted((failed or {}).items()), forecasts)
    if is_fresh(out, inputs):
        return out / REPORT
    link = "" if out == results else relative(results, out)
    own = summarise(read_study(results, link, planned, failed))
    other = None
    if beside is not None:
        other = summarise(read_study(beside, relative(beside, out), planned=()))
    files = compose([own], evaluate_claims([own], forecasts), other, own_folder="")
    path = write_files(out, files)
    remember(out, inputs, files)
    return path


def build_reference_report(root: Path, forecasts: Mapping[str, Forecast] | None = None) -> Path:
    """Write the repository's REPORT.md from results/reference/* alone, figures beside records."""
    return write_files(root, compose_reference(root, forecasts))


def check_reference_report(
    root: Path, forecasts: Mapping[str, Forecast] | None = None
) -> list[str]:
    """What is stale: one line for each file that is missing, differs or should not be there.

    A picture made by another version of matplotlib is not compared byte by byte.
    """
    expected = compose_reference(root, forecasts)
    stale = []
    for name, content in sorted(expected.items()):
        path = root / name
        if not path.is_file():
            stale.append(f"{name} is missing")
        elif path.read_bytes() != content and not figures.made_elsewhere(path, content):
            stale.append(f"{name} is not what the records give")
    stale += [f"{name} belongs to no record" for name in leftovers(root, expected)]
    return stale


def compose_reference(root: Path, forecasts: Mapping[str, Forecast] | None = None) -> Files:
    folders = sorted(f for f in (root / REFERENCE).glob("*") if has_runs(f))
    if not folders:
        raise StudyError(root / REFERENCE, "there are no reference records",
                         "Run a study and publish it: make publish PROFILE=cpu.")  # fmt: skip
    # cpu first: it is what a reader can make again on any machine
    folders.sort(key=lambda folder: (folder.name != "cpu", folder.name))
    studies = [summarise(read_study(f, (REFERENCE / f.name).as_posix())) for f in folders]
    return compose(studies, evaluate_claims(studies, forecasts), None)


def has_runs(folder: Path) -> bool:
    return any((folder / "runs").glob("*/record.json"))


def relative(target: Path, start: Path) -> str:
    return Path(os.path.relpath(target.resolve(), start.resolve())).as_posix()


# Composing ----------------------------------------------------------------------------------------


def compose(
    studies: list[Summary],
    findings: list[Finding],
    reference: Summary | None,
    own_folder: str | None = None,
) -> Files:
    """All files of a report. own_folder: where figures go if not beside each study's records."""
    files: Files = {}
    lines = ["# PEFT or full fine-tuning? What these runs show", "", "## The answer", ""]
    for summary in studies:
        lines += [*name_study(summary, studies), prose.answer(summary), ""]
    for summary in studies:
        folder = summary.study.link if own_folder is None else own_folder
        pictures = draw(summary, folder)
        files |= pictures | csv_files(summary, findings, folder)
        lines += study_section(summary, [*pictures], len(studies) > 1)
    lines += claims_section(findings)
    if reference is not None:
        lines += reference_section(studies[0], reference)
    lines += appendix_section(studies, findings)
    text = "\n".join(lines).rstrip() + "\n"
    return files | {REPORT: text.encode()}


def name_study(summary: Summary, studies: list[Summary]) -> list[str]:
    return [f"**Profile {summary.study.name}.**"] if len(studies) > 1 else []


def draw(summary: Summary, folder: str) -> Files:
    return {
        join(folder, "figures", f"{name}.svg"): figures.to_svg(figure)
        for name, figure in figures.draw_all(summary).items()
    }


def csv_files(summary: Summary, findings: list[Finding], folder: str) -> Files:
    return {
        join(folder, "tables", "comparison.csv"): tables.comparison_csv(summary),
        join(folder, "tables", "claims.csv"): tables.claims_csv(findings),
        join(folder, "tables", "runs.csv"): appendix.runs_csv(summary),
        join(folder, "tables", "subjects.csv"): tables.subjects_csv(summary),
    }


def join(*parts: str) -> str:
    return "/".join(part for part in parts if part)


def study_section(summary: Summary, pictures: list[str], several: bool) -> list[str]:
    lines = []
    for track in summary.tracks:
        comparisons = [c for c in summary.comparisons if c.track == track]
        names = [name for name in pictures if name.split("/")[-1].startswith(f"{track}-")]
        title = f"Profile {summary.study.name}, track {track}" if several else f"Track {track}"
        lines += [f"## {title}", "", f"{prose.machine_line(summary)}.", ""]
        lines += refusal_lines(summary, track)
        lines += track_section(comparisons, names)
    return lines


def track_section(comparisons: list[Comparison], pictures: list[str]) -> list[str]:
    lines = [tables.headline_table(comparisons).markdown(), ""]
    notes = [
        "All figures are measured, but for the trainable parameters, which are counted.",
        prose.spread_note(comparisons),
        prose.memory_note(comparisons),
        prose.price_note(comparisons),
        *prose.chance_notes(comparisons),
    ]
    lines += [" ".join(notes), ""]
    lines += picture_lines(pictures, ("accuracy-memory", "accuracy-cost"))
    lines += ["### Accuracy", "", tables.accuracy_table(comparisons).markdown(), ""]
    lines += ["### Differences to full fine-tuning", ""]
    lines += [tables.gap_table(comparisons).markdown(), "", prose.detectable_note(comparisons), ""]
    lines += picture_lines(pictures, ("gap-to-full", "kept-and-gained"))
    lines += ["### Memory by stage", "", tables.memory_table(comparisons).markdown(), ""]
    lines += ["### Time and cost", "", tables.time_table(comparisons).markdown(), ""]
    return lines + picture_lines(pictures, ("loss",))


def picture_lines(pictures: list[str], kinds: tuple[str, ...]) -> list[str]:
    lines = []
    for kind in kinds:
        for path in pictures:
            if path.endswith(f"-{kind}.svg"):
                caption = figures.CAPTIONS[kind]
                lines += [f"![{caption}]({path})", "", f"*{caption}.*", ""]
    return lines


def refusal_lines(summary: Summary, track: str) -> list[str]:
    """Which runs were not put into one table, by field and values."""
    lines = []
    for refusal in summary.refusals:
        if refusal.track != track:
            continue
        values = "; ".join(
            f"`{value}` in {', '.join(ids)}" for value, ids in sorted(refusal.values.items())
        )
        lines.append(f"- {refusal.model}: **{refusal.field}** differs: {values}")
    if not lines:
        return []
    return ["**Not put into one table**, because these fields must be shared and are not:", "",
            *lines, ""]  # fmt: skip


def claims_section(findings: list[Finding]) -> list[str]:
    return [
        "## Claimed and measured", "",
        "Each claim of the article beside what was found, by a rule that was written down before "
        "any run (in the appendix). Counted is exact arithmetic on the model's shape, measured "
        "is a record, forecast is traced without the device.", "",
        tables.claims_table(findings).markdown(), "",
    ]  # fmt: skip


def reference_section(own: Summary, reference: Summary) -> list[str]:
    table = tables.side_by_side_table(own, reference)
    lines = ["## Beside the reference", ""]
    if table is None:
        return [*lines, "The reference has none of these runs: nothing to set beside them.", ""]
    return [
        *lines,
        f"**Yours** / reference. Yours: {prose.machine_line(own)}. Reference: "
        f"{prose.machine_line(reference)}.", "",
        table.markdown(), "",
    ]  # fmt: skip


def appendix_section(studies: list[Summary], findings: list[Finding]) -> list[str]:
    lines = ["## Appendix", ""]
    for summary in studies:
        name = f", profile {summary.study.name}" if len(studies) > 1 else ""
        lines += [f"### Runs{name}", "", appendix.runs_table(summary).markdown(), ""]
        lines += [f"### Provenance{name}", "", appendix.provenance_table(summary).markdown(), ""]
    lines += ["### Rules of the verdicts", "", tables.rules_table(findings).markdown(), ""]
    lines += ["### Limits", ""]
    return lines + [f"- {limit}" for limit in prose.limits(studies)]


# Writing ------------------------------------------------------------------------------------------


def write_files(out: Path, files: Files) -> Path:
    """Write what changed and remove pictures and tables that no record gives any more."""
    for name, content in files.items():
        path = out / name
        if path.is_file() and path.read_bytes() == content:
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explain_write_error(path, error) from error
        write_atomically(path, content)
    for name in leftovers(out, files):
        (out / name).unlink()
    return out / REPORT


def leftovers(out: Path, files: Files) -> list[str]:
    """Pictures and tables in the report's own folders that are not among its files."""
    folders = {(out / name).parent for name in files if name != REPORT}
    found = [p for folder in sorted(folders) for p in folder.glob("*") if p.suffix in ENDINGS]
    return sorted(n for p in found if (n := p.relative_to(out).as_posix()) not in files)


ENDINGS = (".svg", ".csv")
