"""The order of a report: from summaries to the bytes of REPORT.md, its pictures and csv files.

Nothing is read or written here, and no figure is computed.

Not covered: which records go in and where the files go (studylib.report).
"""

from __future__ import annotations

from studylib import appendix, exports, figures, notes, panels, prose, tables
from studylib.claims import Finding
from studylib.made_from import REPORT, Files
from studylib.summary import Comparison, Summary


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
        lines += [note, ""] if (note := notes.not_run_note(summary)) else []
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
        join(folder, "figures", f"{name}.svg"): panels.to_svg(figure)
        for name, figure in figures.draw_all(summary).items()
    }


def csv_files(summary: Summary, findings: list[Finding], folder: str) -> Files:
    return {
        join(folder, "tables", "comparison.csv"): exports.comparison_csv(summary),
        join(folder, "tables", "claims.csv"): exports.claims_csv(findings),
        join(folder, "tables", "runs.csv"): exports.runs_csv(summary),
        join(folder, "tables", "subjects.csv"): exports.subjects_csv(summary),
    }


def join(*parts: str) -> str:
    return "/".join(part for part in parts if part)


def study_section(summary: Summary, pictures: list[str], several: bool) -> list[str]:
    lines = []
    for track in summary.tracks:
        comparisons = [c for c in summary.comparisons if c.track == track]
        names = [name for name in pictures if name.split("/")[-1].startswith(f"{track}-")]
        title = f"Profile {summary.study.name}, track {track}" if several else f"Track {track}"
        title = "Results" if not several and len(summary.tracks) == 1 else title
        lines += [f"## {title}", "", f"{notes.machine_line(summary)}.", ""]
        lines += refusal_lines(summary, track)
        lines += track_section(comparisons, names)
    return lines


def track_section(comparisons: list[Comparison], pictures: list[str]) -> list[str]:
    lines = [tables.headline_table(comparisons).markdown(), ""]
    reading = [
        "All figures are measured, but for the trainable parameters, which are counted.",
        notes.spread_note(comparisons),
        notes.memory_note(comparisons),
        notes.price_note(comparisons),
        notes.command_note(comparisons),
        *notes.chance_notes(comparisons),
    ]
    lines += [" ".join(reading), ""]
    lines += picture_lines(pictures, ("accuracy-memory", "accuracy-cost"))
    lines += ["### Accuracy", "", tables.accuracy_table(comparisons).markdown(), ""]
    lines += ["### Differences to full fine-tuning", ""]
    lines += [tables.gap_table(comparisons).markdown(), "", notes.detectable_note(comparisons), ""]
    lines += picture_lines(pictures, ("gap-to-full", "kept-and-gained", "subjects"))
    lines += ["### Memory by stage", "", tables.memory_table(comparisons).markdown(), ""]
    lines += ["### Time and cost", "", tables.time_table(comparisons).markdown(), ""]
    if any(comparison.sweeps for comparison in comparisons):
        lines += ["### Learning rates", "", tables.tuning_table(comparisons).markdown(), ""]
    return lines + picture_lines(pictures, ("tuning", "loss"))


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
            f"`{shorten(value)}` in {', '.join(runs)}"
            for value, runs in sorted(refusal.values.items())
        )
        lines.append(f"- {refusal.model}: **{refusal.field}** differs: {values}")
    if not lines:
        return []
    return ["**Not put into one table**, because these fields must be shared and are not:", "",
            *lines, ""]  # fmt: skip


def shorten(value: str) -> str:
    """A hash by its first 16 digits; other values whole."""
    return f"{value[:16]}…" if len(value) == 64 and " " not in value else value


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
        f"**Yours** / reference. Yours: {notes.machine_line(own)}. Reference: "
        f"{notes.machine_line(reference)}.", "",
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
    return lines + [f"- {limit}" for limit in notes.limits(studies)]
