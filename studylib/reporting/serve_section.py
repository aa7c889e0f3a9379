"""The report's part on serving: what one more variant costs, measured on these models, and counted
for 13B.

Not covered: the tables themselves (studylib.reporting.serve_tables), a card's own serving
(studylib.reporting.card_section).
"""

from __future__ import annotations

from studylib.reporting import figures, serve_tables
from studylib.reporting.summary import Summary
from studylib.schema.serve_records import ServeRecord


def serve_section(studies: list[Summary], pictures: list[str]) -> list[str]:
    """What one more variant costs to serve: measured on these models, counted for 13B."""
    records = [record for summary in studies for record in summary.study.serves]
    lines = ["## What one more variant costs to serve", ""]
    if records:
        lines += [serve_tables.setting_sentence(records), ""]
        lines += ["### Footprint, measured", ""]
        lines += [serve_tables.footprint_table(records).markdown(), ""]
    else:
        lines += ["No serving run is on record yet: `study serve` makes them. What follows is "
                  "counted.", ""]  # fmt: skip
    lines += ["### Footprint of a 13B model, counted", ""]
    lines += [serve_tables.counted_table().markdown(), ""]
    if records:
        lines += serve_timings(records, pictures)
    lines += ["### N variants", ""]
    if records:
        lines += ["Measured bytes of these models:", ""]
        lines += [serve_tables.measured_variants_table(records).markdown(), ""]
    lines += figures.picture_lines(pictures, ("serve-monthly",))
    counted = f"{serve_tables.assumption_sentence()} {serve_tables.break_even_sentence()}"
    lines += [counted, ""]
    lines += [serve_tables.counted_variants_table().markdown(), ""]
    left_out = serve_tables.skipped_lines(records)
    return lines + (["### Not measured in serving", "", *left_out, ""] if left_out else [])


def serve_timings(records: list[ServeRecord], pictures: list[str]) -> list[str]:
    """Overhead, speed, hot-swap and mixed batches, as far as they were measured."""
    lines = figures.picture_lines(pictures, ("serve-overhead",))
    parts = {
        "Overhead of an adapter": serve_tables.overhead_table,
        "Speed": serve_tables.speed_table,
        "Hot-swap": serve_tables.swap_table,
        "One batch, several adapters": serve_tables.mixed_table,
    }
    for title, make in parts.items():
        table = make(records)
        if table.rows:
            lines += [f"### {title}", "", table.markdown(), ""]
            lines += [serve_tables.swap_notes(records), ""] if title == "Hot-swap" else []
    return lines
