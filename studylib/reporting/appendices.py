"""The report's appendices: the evidence for each claim, all figures of each study, every run.

Each begins with a heading of the second level and is written to a file of its own; the report
notebook and report.html show them after the report.

Not covered: how they are written and linked (studylib.reporting.appendix_files), the report itself
(studylib.reporting.compose).
"""

from __future__ import annotations

from collections.abc import Sequence

from studylib.reporting import (
    appendix,
    figures,
    forecast_errors,
    forecast_tables,
    measure_tables,
    method_notes,
    notes,
    ranking_section,
    serve_section,
    stage_errors,
    tables,
)
from studylib.reporting.appendix_files import title_of
from studylib.reporting.article_table import claim_rows
from studylib.reporting.capacity import capacity_lines, is_capacity
from studylib.reporting.card_section import card_details, is_card
from studylib.reporting.claims import Finding
from studylib.reporting.evidence_kinds import kind_of
from studylib.reporting.kept import is_toy
from studylib.reporting.memory_grid import is_grid
from studylib.reporting.summary import Comparison, Summary
from studylib.schema.forecast_book import ForecastBook


def make_appendices(
    studies: list[Summary],
    findings: list[Finding],
    book: ForecastBook | None,
    pictures: list[str],
) -> dict[str, str]:
    """Name to Markdown, in order; those with nothing to say are left out."""
    parts = {
        "claims": claims_lines(findings) if findings else [],
        "details": details_lines(studies, pictures),
        "serving": serve_section.serve_details(
            serving_studies(studies), pictures, are_brief(studies)
        ),
        "forecasts": forecast_lines(studies, book),
        "runs": runs_lines(studies),
    }
    return {name: titled(name, lines) for name, lines in parts.items() if lines}


def titled(name: str, lines: Sequence[str]) -> str:
    """An appendix below its heading."""
    return "\n".join([f"## {title_of(name)}", "", *lines]).rstrip() + "\n"


def serving_studies(studies: list[Summary]) -> list[Summary]:
    """The studies whose serving stands in the part on serving: a card's stands in its own part,
    unless there is no other."""
    return [summary for summary in studies if not is_card(summary)] or studies


def are_brief(studies: list[Summary]) -> bool:
    """Whether what was served takes less room: toys' beside other studies."""
    served = [record.spec.model for s in serving_studies(studies) for record in s.study.serves]
    return len(studies) > 1 and all(kind_of(model) == "toy" for model in served)


# Claims -------------------------------------------------------------------------------------------

VERDICTS = (
    "Each finding is judged by a rule that was written down before any run. **Reproduced**: all "
    "that our figure leaves possible (its 95 % interval or range) agrees with the claim; "
    "**differs**: nothing of it does; **inconclusive**: some of it, or fewer seeds than the rule "
    "asks; **not comparable**: it says nothing on this claim. The verdict of a claim: it **holds** "
    "where findings of each part agree and none differs, it **does not hold** where all differ, it "
    "**depends** where they do not agree among themselves, and else it is **not known yet**. Toy "
    "models settle nothing of what large ones learn."
)


def claims_lines(findings: Sequence[Finding]) -> list[str]:
    lines = [VERDICTS, ""]
    for row in claim_rows(findings):
        own = [f for f in findings if f.claim == row.claim]
        verdict = f"The article: {row.says}. Verdict: **{row.verdict}**{row.because}."
        lines += [f"### {row.title}", "", verdict]
        lines += ["", tables.claims_table(own).markdown(), ""]
        lines += [f"- {article}: {rule}." for article, rule in tables.rules_of(own)]
        lines += [""]
    return lines


DETAIL_PICTURES = ("gap-to-full", "accuracy-memory", "kept-and-gained", "subjects")


# Trainings ----------------------------------------------------------------------------------------


def details_lines(studies: list[Summary], pictures: list[str]) -> list[str]:
    lines = []
    for summary in studies:
        if is_card(summary):
            lines += card_details(summary)
        elif is_capacity(summary):
            lines += [f"### {name_of(summary, studies)}new facts", ""]
            lines += capacity_lines(summary) if len(studies) > 1 else []
            lines += rate_lines(summary.comparisons)
        elif not is_grid(summary):
            for track in summary.tracks:
                lines += track_details(summary, track, name_of(summary, studies), pictures)
                if len(studies) > 1 and is_toy(summary):
                    lines += ranked_lines(summary, track)
    words = appendix.words_table()
    return [*lines, "### What the columns mean", "", words.markdown(), ""]


def ranked_lines(summary: Summary, track: str) -> list[str]:
    """A ranking's tables, which the report leaves out where it is brief; empty without one."""
    comparisons = [c for c in summary.comparisons if c.track == track]
    ranked = ranking_section.section(comparisons, [])
    return [*ranked, tables.headline_table(comparisons).markdown(), ""] if ranked else []


def name_of(summary: Summary, studies: Sequence[Summary]) -> str:
    return f"Profile {summary.study.name}, " if len(studies) > 1 else ""


def track_details(summary: Summary, track: str, name: str, pictures: list[str]) -> list[str]:
    comparisons = [c for c in summary.comparisons if c.track == track]
    own = [p for p in pictures if p.split("/")[-1].startswith(f"{track}-")
           and p.startswith(summary.study.link)]  # fmt: skip
    lines = [f"### {name}track {track}", ""]
    reading = [
        "All figures are measured, but for the trainable parameters, which are counted.",
        notes.memory_note(comparisons),
        notes.stages_note(comparisons),
        notes.end_to_end_note(comparisons),
        notes.command_note(comparisons),
        *method_notes.method_notes(comparisons),
    ]
    lines += [" ".join(text for text in reading if text), ""]
    lines += measure_tables.section(comparisons)
    lines += accuracy_lines(comparisons)
    lines += figures.picture_lines(own, DETAIL_PICTURES)
    lines += ["**Memory by stage**", "", tables.memory_table(comparisons).markdown(), ""]
    lines += ["**Time and cost**", "", tables.time_table(comparisons).markdown(), ""]
    lines += [notes.price_note(comparisons), "", *rate_lines(comparisons)]
    return lines + figures.picture_lines(own, ("tuning", "loss"))


def accuracy_lines(comparisons: Sequence[Comparison]) -> list[str]:
    """Accuracies and their differences; none where a track has measures and no questions."""
    asked = any(row.accuracy for c in comparisons for row in c.rows)
    if not asked and any(c.measured for c in comparisons):
        return []
    lines = ["**Accuracy**", "", tables.accuracy_table(comparisons).markdown(), ""]
    lines += ["**Differences to full fine-tuning**", ""]
    return [*lines, tables.gap_table(comparisons).markdown(), "", notes.DETECTABLE, ""]


def rate_lines(comparisons: Sequence[Comparison]) -> list[str]:
    """The searches for learning rates, where there were any."""
    if not any(comparison.sweeps for comparison in comparisons):
        return []
    table = tables.tuning_table(comparisons).markdown()
    return ["**Learning rates**", "", table, "", notes.tuning_note(comparisons), ""]


# Forecasts and runs -------------------------------------------------------------------------------


def forecast_lines(studies: list[Summary], book: ForecastBook | None) -> list[str]:
    measured = forecast_errors.section([s.study for s in studies if not is_card(s)])
    staged = stage_errors.section([s.study for s in studies])
    return [*measured, *staged, *(forecast_tables.details(book) if book is not None else [])]


def runs_lines(studies: list[Summary]) -> list[str]:
    lines = []
    for summary in studies:
        name = f", profile {summary.study.name}" if len(studies) > 1 else ""
        lines += [f"### Runs{name}", "", appendix.runs_table(summary).markdown(), ""]
        lines += [f"### Provenance{name}", "", appendix.provenance_table(summary).markdown(), ""]
    if any(summary.study.serves for summary in studies):
        lines += ["### Serving runs", "", appendix.serves_table(studies).markdown(), ""]
    return lines
