"""The report's appendices: the evidence for each claim, all figures of each study, every run.

Each is a file of its own; the report notebook and report.html show them after the report.

Not covered: how they are written and linked (studylib.reporting.appendix_files), the report itself
(studylib.reporting.compose).
"""

from __future__ import annotations

from collections.abc import Sequence

from studylib.reporting import (
    appendix,
    cells,
    figures,
    forecast_errors,
    forecast_tables,
    measure_tables,
    notes,
    ranking_section,
    serve_section,
    stage_errors,
    tables,
)
from studylib.reporting.article_table import claim_rows
from studylib.reporting.blocks import Block, Heading, Text, bullets, paragraph
from studylib.reporting.capacity import capacity_table_read, is_capacity
from studylib.reporting.card_section import card_details, is_card
from studylib.reporting.claims import Finding
from studylib.reporting.evidence_kinds import kind_of_model
from studylib.reporting.glossary import say
from studylib.reporting.kept import is_toy
from studylib.reporting.memory_grid import is_grid
from studylib.reporting.summary import Comparison, Summary
from studylib.schema.forecast_book import ForecastBook


def make_appendices(
    studies: list[Summary],
    findings: list[Finding],
    book: ForecastBook | None,
    pictures: list[str],
) -> dict[str, list[Block]]:
    """Name to blocks, in order; those with nothing to say are left out."""
    parts = {
        "claims": claims_evidence(findings) if findings else [],
        "details": study_details(studies, pictures),
        "serving": serve_section.serve_details(serving_studies(studies), pictures,
                                               are_brief(studies)),
        "forecasts": forecast_appendix(studies, book),
        "runs": runs(studies),
    }  # fmt: skip
    return {name: blocks for name, blocks in parts.items() if blocks}


def serving_studies(studies: list[Summary]) -> list[Summary]:
    """The studies whose serving stands in the part on serving: a card's stands in its own part,
    unless there is no other."""
    return [summary for summary in studies if not is_card(summary)] or studies


def are_brief(studies: list[Summary]) -> bool:
    """Whether what was served takes less room: toys' beside other studies."""
    served = [record.spec.model for s in serving_studies(studies) for record in s.study.serves]
    return len(studies) > 1 and all(kind_of_model(model) == "toy" for model in served)


# Claims -------------------------------------------------------------------------------------------


def claims_evidence(findings: Sequence[Finding]) -> list[Block]:
    blocks: list[Block] = [Text(say("verdicts"))]
    for row in claim_rows(findings):
        own = [f for f in findings if f.claim == row.claim]
        verdict = f"The article: {row.says}. Verdict: **{row.verdict}**{row.because}."
        blocks += [Heading(3, row.title), Text(verdict), tables.claims_table(own)]
        blocks += bullets(dict.fromkeys(f"{f.article}: {f.rule}." for f in own))
    return blocks


# Trainings ----------------------------------------------------------------------------------------


def study_details(studies: list[Summary], pictures: list[str]) -> list[Block]:
    blocks: list[Block] = []
    for summary in studies:
        if is_card(summary):
            blocks += card_details(summary)
        elif is_capacity(summary):
            blocks += [Heading(3, f"{name_of(summary, studies)}new facts")]
            blocks += capacity_table_read(summary) if len(studies) > 1 else []
            blocks += rates(summary.comparisons)
        elif not is_grid(summary):
            for track, comparisons in summary.tracks.items():
                blocks += track_details(summary, track, name_of(summary, studies), pictures)
                # A ranking's tables, which the report leaves out where it is brief.
                brief = len(studies) > 1 and is_toy(summary)
                ranked = ranking_section.rankings_section(comparisons, []) if brief else []
                blocks += [*ranked, tables.headline_table(comparisons)] if ranked else []
    return [*blocks, Heading(3, "What the columns mean"), appendix.words_table()]


def name_of(summary: Summary, studies: Sequence[Summary]) -> str:
    return f"Profile {summary.study.name}, " if len(studies) > 1 else ""


def track_details(summary: Summary, track: str, name: str, pictures: list[str]) -> list[Block]:
    comparisons = summary.tracks[track]
    own = [p for p in pictures if p.split("/")[-1].startswith(f"{track}-")
           and p.startswith(summary.study.link)]  # fmt: skip
    return [
        Heading(3, f"{name}track {track}"),
        *paragraph(
            "All figures are measured, but for the trainable parameters, which are counted.",
            notes.memory_note(comparisons),
            notes.stages_note(comparisons),
            notes.end_to_end_note(comparisons),
            notes.command_note(comparisons),
            *cells.method_notes(comparisons),
        ),
        *measure_tables.measured_section(comparisons),
        *accuracies(comparisons),
        *figures.show_pictures(
            own, ("gap-to-full", "accuracy-memory", "kept-and-gained", "subjects")
        ),
        *(Text("**Memory by stage**"), tables.memory_table(comparisons)),
        *(Text("**Time and cost**"), tables.time_table(comparisons)),
        Text(notes.price_note(comparisons)),
        *rates(comparisons),
        *figures.show_pictures(own, ("tuning", "loss")),
    ]


def accuracies(comparisons: Sequence[Comparison]) -> list[Block]:
    """Accuracies and their differences; none where a track has measures and no questions."""
    asked = any(row.accuracy for c in comparisons for row in c.rows)
    if not asked and any(c.measured for c in comparisons):
        return []
    return [Text("**Accuracy**"), tables.accuracy_table(comparisons),
            Text("**Differences to full fine-tuning**"), tables.gap_table(comparisons),
            Text(say("smallest_gap"))]  # fmt: skip


def rates(comparisons: Sequence[Comparison]) -> list[Block]:
    """The searches for learning rates, where there were any."""
    if not any(comparison.sweeps for comparison in comparisons):
        return []
    return [Text("**Learning rates**"), tables.tuning_table(comparisons),
            Text(notes.tuning_note(comparisons))]  # fmt: skip


# Forecasts and runs -------------------------------------------------------------------------------


def forecast_appendix(studies: list[Summary], book: ForecastBook | None) -> list[Block]:
    return [
        *forecast_errors.forecast_errors_section([s.study for s in studies if not is_card(s)]),
        *stage_errors.stage_errors_section([s.study for s in studies]),
        *(forecast_tables.forecast_details(book) if book is not None else []),
    ]


def runs(studies: list[Summary]) -> list[Block]:
    blocks: list[Block] = []
    for summary in studies:
        name = f", profile {summary.study.name}" if len(studies) > 1 else ""
        blocks += [Heading(3, f"Runs{name}"), appendix.runs_table(summary)]
        blocks += [Heading(3, f"Provenance{name}"), appendix.provenance_table(summary)]
    if any(summary.study.serves for summary in studies):
        blocks += [Heading(3, "Serving runs"), appendix.serves_table(studies)]
    return blocks
