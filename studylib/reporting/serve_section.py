"""The report's part on serving: what one more variant costs, measured on these models, and counted
for 13B; and its appendix.

Not covered: the tables themselves (studylib.reporting.serve_tables), a card's own serving
(studylib.reporting.card_section).
"""

from __future__ import annotations

from studylib.reporting import figures, serve_tables
from studylib.reporting.appendix_files import link_to
from studylib.reporting.summary import Summary
from studylib.schema.serve_records import ServeRecord


def serve_section(studies: list[Summary], pictures: list[str], brief: bool = False) -> list[str]:
    """What one more variant costs to serve: bytes and dollars counted for 13B, time measured.
    brief: the times, toy models' beside others, stand in the appendix alone."""
    records = records_of(studies)
    lines = ["## What one more variant costs to serve", "", "Of a 13B model, counted:", ""]
    lines += [serve_tables.counted_table().markdown(), ""]
    lines += [f"{serve_tables.break_even_sentence()} {serve_tables.assumption_sentence()}", ""]
    lines += figures.picture_lines(pictures, ("serve-monthly",))
    if not records:
        return [*lines, "No serving run is on record yet: `study serve` makes them.", ""]
    if brief:
        return [*lines, f"Toy models were served: [in detail]({link_to('serving')}).", ""]
    lines += overhead_lines(records)
    return [*lines, f"More: [serving in detail]({link_to('serving')}).", ""]


def overhead_lines(records: list[ServeRecord]) -> list[str]:
    table = serve_tables.overhead_table(records).markdown()
    return [serve_tables.setting_sentence(records), "", table, ""]


def serve_details(studies: list[Summary], pictures: list[str], brief: bool = False) -> list[str]:
    """The appendix: bytes, speed, swaps, mixed batches, N variants; nothing without a record.
    brief: the times between tokens as well, which the report leaves out."""
    records = records_of(studies)
    if not records:
        return []
    lines = figures.picture_lines(pictures, ("serve-overhead",))
    lines += ["### Time between tokens", "", *overhead_lines(records)] if brief else []
    parts = {
        "Footprint, measured": serve_tables.footprint_table,
        "Speed": serve_tables.speed_table,
        "Hot-swap": serve_tables.swap_table,
        "One batch, several adapters": serve_tables.mixed_table,
        "N variants, by measured bytes": serve_tables.measured_variants_table,
    }
    for title, make in parts.items():
        table = make(records)
        if table.rows:
            lines += [f"### {title}", "", table.markdown(), ""]
            lines += [serve_tables.swap_notes(records), ""] if title == "Hot-swap" else []
    lines += ["### N variants of a 13B model, counted", ""]
    lines += [serve_tables.counted_variants_table().markdown(), ""]
    left_out = serve_tables.skipped_lines(records)
    return lines + (["### Not measured in serving", "", *left_out, ""] if left_out else [])


def records_of(studies: list[Summary]) -> list[ServeRecord]:
    return [record for summary in studies for record in summary.study.serves]
