"""The report's part on serving: what one more variant costs, measured on these models, and counted
for 13B; and its appendix.

Not covered: the tables themselves (studylib.reporting.serve_tables), a card's own serving
(studylib.reporting.card_section).
"""

from __future__ import annotations

from studylib.reporting import figures, serve_tables
from studylib.reporting.appendix_files import link_to
from studylib.reporting.blocks import Block, Heading, Text, bullets, paragraph, titled
from studylib.reporting.summary import Summary
from studylib.schema.serve_records import ServeRecord


def serve_section(studies: list[Summary], pictures: list[str], brief: bool = False) -> list[Block]:
    """What one more variant costs to serve: bytes and dollars counted for 13B, time measured.
    brief: the times, toy models' beside others, stand in the appendix alone."""
    records = records_of(studies)
    blocks = [
        Heading(2, "What one more variant costs to serve"),
        Text("Of a 13B model, counted:"),
        serve_tables.counted_table(),
        Text(f"{serve_tables.break_even_sentence()} {serve_tables.assumption_sentence()}"),
        *figures.show_pictures(pictures, ("serve-monthly",)),
    ]
    more = link_to("serving")
    if not records:
        return [*blocks, Text("No serving run is on record yet: `study serve` makes them.")]
    if brief:
        return [*blocks, Text(f"Toy models were served: [in detail]({more}).")]
    return [*blocks, *overheads(records), Text(f"More: [serving in detail]({more}).")]


def overheads(records: list[ServeRecord]) -> list[Block]:
    return [Text(serve_tables.setting_sentence(records)), serve_tables.overhead_table(records)]


def serve_details(studies: list[Summary], pictures: list[str], brief: bool = False) -> list[Block]:
    """The appendix: bytes, speed, swaps, mixed batches, N variants; nothing without a record.
    brief: the times between tokens as well, which the report leaves out."""
    records = records_of(studies)
    if not records:
        return []
    blocks = figures.show_pictures(pictures, ("serve-overhead",))
    blocks += [Heading(3, "Time between tokens"), *overheads(records)] if brief else []
    parts = {
        "Footprint, measured": serve_tables.footprint_table,
        "Speed": serve_tables.serve_speed_table,
        "Hot-swap": serve_tables.swap_table,
        "One batch, several adapters": serve_tables.mixed_table,
        "N variants, by measured bytes": serve_tables.measured_variants_table,
    }
    for title, make in parts.items():
        blocks += titled(title, make(records))
        blocks += paragraph(serve_tables.swap_notes(records)) if title == "Hot-swap" else []
    blocks += titled("N variants of a 13B model, counted", serve_tables.counted_variants_table())
    left_out = bullets(serve_tables.tell_skipped(records))
    return blocks + ([Heading(3, "Not measured in serving"), *left_out] if left_out else [])


def records_of(studies: list[Summary]) -> list[ServeRecord]:
    return [record for summary in studies for record in summary.study.serves]
