"""What a method's row does not say by its name: a base hardly in 4 bits, layers without an adapter,
a merged form that could not be made. All from the records.

Not covered: the words (studylib.schema.extent_words), other notes (studylib.reporting.notes).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from studylib.reporting.summary import Comparison, Row
from studylib.schema.extent_words import WHOLE_SHARE, percent_below, tell_base, tell_reach


def base_share(row: Row) -> float | None:
    """The smallest share of a row's bases in 4 bits; None where none is, or none says so."""
    loads = [record.load for record in row.records if record.load]
    return min((b.four_bit_share for b in loads if b.four_bit_share is not None), default=None)


def name_method(row: Row) -> str:
    """The method's name, and how much of its base is in 4 bits where that is not most of it."""
    share = base_share(row)
    if share is None or share >= WHOLE_SHARE:
        return row.method.label
    return f"{row.method.label} ({percent_below(share)} in 4 bits)"


def method_notes(comparisons: Sequence[Comparison]) -> list[str]:
    """One sentence for each thing of a method at a size that its name does not tell."""
    found = dict.fromkeys(
        f"At {comparison.name} {words}."
        for comparison in comparisons
        for row in comparison.rows
        for words in tell_row(row)
        if words
    )
    return list(found)


def tell_row(row: Row) -> Iterator[str]:
    label = row.method.label
    yield tell_base(label, base_share(row))
    for record in row.records:
        if record.load and record.load.reached:
            yield tell_reach(label, record.load.reached, row.method.rank)
    for record in row.complete:
        if record.evaluate and record.evaluate.scores and record.evaluate.reason:
            yield f"{label}, {record.evaluate.reason.rstrip('.')}"
