"""The order of a report: from summaries to its parts in Markdown, its pictures and csv files.

REPORT.md is the parts one after the other; the report notebook, and report.html with it, shows the
same parts. Nothing is read or written here, and no figure is computed.

Not covered: which records go in and where the files go (studylib.reporting.report).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from studylib.reporting import (
    appendix,
    exports,
    figures,
    forecast_errors,
    measure_tables,
    method_notes,
    notes,
    panels,
    prose,
    serve_tables,
    tables,
)
from studylib.reporting.capacity import (
    capacity_table,
    detectable_sentence,
    is_capacity,
    tell_capacity,
    tell_limits,
)
from studylib.reporting.card_section import card_section, is_card, tell_card
from studylib.reporting.claims import Finding, tally_findings
from studylib.reporting.forecast_tables import brief
from studylib.reporting.forecast_tables import section as forecast_section
from studylib.reporting.limits import limits
from studylib.reporting.made_from import REPORT, Files
from studylib.reporting.memory_grid import grid_table, is_grid, tell_grid
from studylib.reporting.serve_figures import draw_monthly
from studylib.reporting.serve_section import serve_section
from studylib.reporting.summary import Comparison, Summary
from studylib.schema.forecast_book import ForecastBook


@dataclass(frozen=True)
class Report:
    """A report's parts, name to Markdown, in their order; and all of its files by relative path.

    parts: answer, results, claims, serving, forecast, beside (the reference), appendix. Pictures
    and records are named in the Markdown as they lie from the report's folder.
    """

    parts: Mapping[str, str]
    files: Files


def compose(
    studies: list[Summary],
    findings: list[Finding],
    reference: Summary | None,
    own_folder: str | None = None,
    book: ForecastBook | None = None,
) -> Report:
    """All of a report. own_folder: where a reader's own figures go; None: the shipped report, whose
    figures lie beside each study's records."""
    shipped = own_folder is None
    files: Files = {}
    results: list[str] = []
    for summary in studies:
        folder = summary.study.link if own_folder is None else own_folder
        pictures = draw(summary, folder) if shows_pictures(summary, studies) else {}
        files |= pictures | csv_files(summary, findings, folder)
        results += study_section(summary, [*pictures], len(studies) > 1)
    files |= draw_counted(studies, own_folder)
    parts = {
        "answer": answer_section(studies, findings, book),
        "results": results,
        "claims": claims_section(findings),
        "serving": serve_section(beside_cards(studies), [*files]),
        "forecast": forecast_section(
            book, forecast_errors.section([s.study for s in studies if not is_card(s)])
        ),
        "beside": reference_section(studies[0], reference) if reference is not None else [],
        "appendix": appendix_section(studies, findings, shipped),
    }
    whole = "\n".join(line for lines in parts.values() for line in lines).rstrip() + "\n"
    texts = {name: "\n".join(lines) for name, lines in parts.items()}
    return Report(texts, files | {REPORT: whole.encode()})


def beside_cards(studies: list[Summary]) -> list[Summary]:
    """The studies whose serving stands in the part on serving: a card's stands in its own part,
    unless there is no other."""
    return [summary for summary in studies if not is_card(summary)] or studies


def shows_pictures(summary: Summary, studies: list[Summary]) -> bool:
    """A card's part has tables alone; its serving is drawn where no other study's is told."""
    return summary in beside_cards(studies)


def answer_section(
    studies: list[Summary], findings: list[Finding], book: ForecastBook | None
) -> list[str]:
    """What was found, in a paragraph each: tracks, serving, forecast, the article's claims."""
    lines = ["# PEFT or full fine-tuning? What these runs show", "", "## The answer", ""]
    for summary in studies:
        lines += [*name_study(summary, studies), tell(summary, len(studies) > 1), ""]
        lines += [note, ""] if (note := notes.not_run_note(summary)) else []
    serves = [record for s in beside_cards(studies) for record in s.study.serves]
    lines += [serve_tables.brief(serves), ""]
    lines += [brief(book), ""] if book is not None else []
    return [*lines, tally_findings(findings, studies), ""]


def tell(summary: Summary, several: bool) -> str:
    """The answer of a study: whole where it is the only one of one track, else in brief."""
    if is_card(summary):
        return tell_card(summary)
    if is_capacity(summary):
        return tell_limits(summary)
    if is_grid(summary):
        return tell_grid(summary)
    if several or len(summary.tracks) > 1:
        return prose.answer_briefly(summary)
    return prose.answer(summary)


def name_study(summary: Summary, studies: list[Summary]) -> list[str]:
    return [f"**Profile {summary.study.name}.**"] if len(studies) > 1 else []


def draw(summary: Summary, folder: str) -> Files:
    return {
        join(folder, "figures", f"{name}.svg"): panels.to_svg(figure)
        for name, figure in figures.draw_all(summary).items()
        if not is_card(summary) or name.startswith("serve-")
    }


def draw_counted(studies: list[Summary], own_folder: str | None) -> Files:
    """The counted picture of serving, once: beside the first study that has serving records."""
    home = next((s for s in studies if s.study.serves), studies[0])
    figure = draw_monthly()
    folder = home.study.link if own_folder is None else own_folder
    name = join(folder, "figures", "serve-monthly.svg")
    return {} if figure is None else {name: panels.to_svg(figure)}


def csv_files(summary: Summary, findings: list[Finding], folder: str) -> Files:
    serves = summary.study.serves
    served = {join(folder, "tables", "serving.csv"): exports.serving_csv(serves)} if serves else {}
    if any(comparison.measured for comparison in summary.comparisons):
        served[join(folder, "tables", "measures.csv")] = exports.measures_csv(summary)
    return served | {
        join(folder, "tables", "comparison.csv"): exports.comparison_csv(summary),
        join(folder, "tables", "claims.csv"): exports.claims_csv(findings),
        join(folder, "tables", "runs.csv"): exports.runs_csv(summary),
        join(folder, "tables", "subjects.csv"): exports.subjects_csv(summary),
        join(folder, "tables", "forecasts.csv"): exports.forecasts_csv(summary),
    }


def join(*parts: str) -> str:
    return "/".join(part for part in parts if part)


def study_section(summary: Summary, pictures: list[str], several: bool) -> list[str]:
    if is_card(summary):
        return card_section(summary, several)
    if is_capacity(summary):
        return capacity_section(summary, pictures, several)
    if is_grid(summary):
        return grid_section(summary, several)
    lines = []
    for track in summary.tracks:
        comparisons = [c for c in summary.comparisons if c.track == track]
        names = [name for name in pictures if name.split("/")[-1].startswith(f"{track}-")]
        title = f"Profile {summary.study.name}, track {track}" if several else f"Track {track}"
        title = "Results" if not several and len(summary.tracks) == 1 else title
        lines += [f"## {title}", "", f"{notes.machine_line(summary)}.", ""]
        lines += notes.refusal_lines(summary, track)
        told = several or len(summary.tracks) > 1  # else the whole answer stands at the top
        words = prose.answer_track(summary, track, named=False) if told else []
        lines += track_section(comparisons, names, words)
    return lines


def capacity_section(summary: Summary, pictures: list[str], several: bool) -> list[str]:
    """One curve and one table for all tracks of a capacity study."""
    title = f"Profile {summary.study.name}: new facts" if several else "New facts"
    lines = [f"## {title}", "", f"{notes.machine_line(summary)}.", ""]
    for track in summary.tracks:
        lines += notes.refusal_lines(summary, track)
    lines += figures.picture_lines(pictures, ("capacity",))
    reading = f"{detectable_sentence(summary)} Bold: behind full fine-tuning by the rule above."
    lines += [tell_capacity(summary), "", capacity_table(summary).markdown(), ""]
    return [*lines, reading.strip(), "", *rate_lines(summary.comparisons)]


def grid_section(summary: Summary, several: bool) -> list[str]:
    """One table for all shapes of a pass."""
    title = "Memory by rows and tokens of a pass"
    title = f"Profile {summary.study.name}: {title.lower()}" if several else title
    lines = [f"## {title}", "", f"{notes.machine_line(summary)}.", ""]
    for track in summary.tracks:
        lines += notes.refusal_lines(summary, track)
    reading = f"{notes.memory_note(summary.comparisons)} {notes.price_note(summary.comparisons)}"
    return [*lines, tell_grid(summary), "", grid_table(summary).markdown(), "", reading, ""]


def track_section(
    comparisons: list[Comparison], pictures: list[str], words: list[str]
) -> list[str]:
    lines = [tables.headline_table(comparisons).markdown(), ""]
    reading = [
        "All figures are measured, but for the trainable parameters, which are counted.",
        notes.spread_note(comparisons),
        notes.memory_note(comparisons),
        notes.price_note(comparisons),
        notes.end_to_end_note(comparisons),
        notes.command_note(comparisons),
        *method_notes.method_notes(comparisons),
        *notes.chance_notes(comparisons),
    ]
    lines += [" ".join(text for text in reading if text), ""]
    lines += figures.picture_lines(pictures, ("accuracy-memory", "accuracy-cost"))
    lines += [line for paragraph in words for line in (paragraph, "")]
    lines += measure_tables.section(comparisons)
    lines += accuracy_lines(comparisons)
    lines += figures.picture_lines(pictures, ("gap-to-full", "kept-and-gained", "subjects"))
    lines += ["### Memory by stage", "", tables.memory_table(comparisons).markdown(), ""]
    lines += ["### Time and cost", "", tables.time_table(comparisons).markdown(), ""]
    lines += rate_lines(comparisons)
    return lines + figures.picture_lines(pictures, ("tuning", "loss"))


def accuracy_lines(comparisons: Sequence[Comparison]) -> list[str]:
    """Accuracies and their differences; none where a track has measures and no questions."""
    asked = any(row.accuracy for c in comparisons for row in c.rows)
    if not asked and any(c.measured for c in comparisons):
        return []
    lines = ["### Accuracy", "", tables.accuracy_table(comparisons).markdown(), ""]
    lines += ["### Differences to full fine-tuning", ""]
    return [*lines, tables.gap_table(comparisons).markdown(), "",
            notes.detectable_note(comparisons), ""]  # fmt: skip


def rate_lines(comparisons: Sequence[Comparison]) -> list[str]:
    """The searches for learning rates, where there were any."""
    if not any(comparison.sweeps for comparison in comparisons):
        return []
    table = tables.tuning_table(comparisons).markdown()
    return ["### Learning rates", "", table, "", notes.tuning_note(comparisons), ""]


def claims_section(findings: list[Finding]) -> list[str]:
    return [
        "## Claimed and measured", "",
        "Each claim of the article beside what was found, by a rule that was written down before "
        "any run (in the appendix). Counted is exact arithmetic on the model's shape, measured "
        "is a record, forecast is traced without the device. **Reproduced**: all that our figure "
        "leaves possible (its 95 % interval or range) agrees with the claim by the rule; "
        "**differs**: nothing of it does; **inconclusive**: some of it, or fewer seeds than the "
        "rule asks; **not comparable**: it says nothing on this claim.", "",
        tables.verdicts_table(findings).markdown(), "",
        "### Each finding", "", tables.claims_table(findings).markdown(), "",
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


def appendix_section(studies: list[Summary], findings: list[Finding], shipped: bool) -> list[str]:
    lines = ["## Appendix", ""]
    for summary in studies:
        name = f", profile {summary.study.name}" if len(studies) > 1 else ""
        lines += [f"### Runs{name}", "", appendix.runs_table(summary).markdown(), ""]
        lines += [f"### Provenance{name}", "", appendix.provenance_table(summary).markdown(), ""]
    served = [record for summary in studies for record in summary.study.serves]
    if served:
        lines += ["### Serving runs", "", appendix.serves_table(studies).markdown(), ""]
    words = appendix.words_table(measure_tables.words(studies))
    lines += ["### What the columns mean", "", words.markdown(), ""]
    lines += ["### Rules of the verdicts", "", tables.rules_table(findings).markdown(), ""]
    lines += ["### Limits", ""]
    lines += [f"- {limit}" for limit in limits(studies)]
    return lines + (["", "### Corrections", "", *appendix.corrections()] if shipped else [])
