"""How much of a lead was its learning rate: all methods at one rate, beside each at its own.

From the searches' curves: one seed, validation questions. The shared rate is the one that LoRA's
search chose, as a study without searches would have set it.

Not covered: the ranking itself (studylib.reporting.ranking), the curves' picture
(studylib.reporting.curves).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from studylib.core.metrics import plain_number
from studylib.reporting.blocks import Block, Number, Table, Text, cell_of, figures, named
from studylib.reporting.curves import rate_height
from studylib.reporting.notes import join_words
from studylib.reporting.ranking import MANY, Ranking
from studylib.reporting.summary import Row
from studylib.schema.measures import MEASURES
from studylib.schema.tuning import TunePoint

DIGITS = 3


@dataclass(frozen=True)
class Shared:
    """One method's search: its own best rate, and the shared one, None where it was not tried."""

    row: Row
    own: TunePoint
    shared: TunePoint | None

    @property
    def known(self) -> TunePoint | None:
        """What came of the shared rate, where it came to anything."""
        return None if self.shared is None or self.shared.is_out else self.shared


def share_rate(ranking: Ranking) -> tuple[float, list[Shared]] | None:
    """(LoRA's rate, every ranked method at its own rate and at that one); None where the methods
    were not searched for."""
    sweeps = {
        sweep.method: sweep
        for sweep in ranking.comparison.sweeps
        if any(not point.is_out for point in sweep.points)
    }
    if ranking.reference.method.slug not in sweeps:
        return None
    rate = sweeps[ranking.reference.method.slug].best.learning_rate
    found = [
        Shared(place.row, sweep.best, at_rate(sweep.points, rate))
        for place in ranking.places
        if (sweep := sweeps.get(place.row.method.slug)) is not None
    ]
    return (rate, found) if len(found) >= MANY else None


def at_rate(points: Iterable[TunePoint], rate: float) -> TunePoint | None:
    return next((p for p in points if np.isclose(p.learning_rate, rate, rtol=1e-3)), None)


def shared_rate_section(ranking: Ranking) -> list[Block]:
    """The table at one rate beside the tuned one, with what follows; empty without searches."""
    shared = share_rate(ranking)
    if shared is None:
        return []
    return [Text(tell_shared_rate(ranking, *shared)), table(ranking, *shared)]


def tell_shared_rate(ranking: Ranking, rate: float, found: list[Shared]) -> str:
    label, unit = ranking.reference.label, unit_of(found[0].own).replace("%", "points")
    both = [(one, one.known) for one in found if one.known is not None]
    own = [rate_height(one.own) for one, _ in both]
    same = [rate_height(point) for _, point in both]
    left = [one.row.label for one in found if one.shared is None]
    text = (
        f"**How much of it was the rate:** on the validation part the {len(both)} methods that "
        f"were tried at {label}'s own rate ({rate:g}) lie {spread_width(same)} {unit} apart at "
        f"that one rate, and {spread_width(own)} {unit} apart at the best that each was tried with."
    )
    if left:
        text += f" Not tried at it: {join_words(left)}."
    return text


def table(ranking: Ranking, rate: float, found: list[Shared]) -> Table:
    """Best first at each method's own rate."""
    unit = unit_of(found[0].own)
    sign = point_sign(found[0].own)
    at = next(one for one in found if one.row is ranking.reference)
    label = ranking.reference.label
    header = (named("Method"), *figures("Its own rate", f"Validation at it ({unit})",
              f"Validation at {rate:g} ({unit})", f"Less {label}'s, each at its own",
              f"Less {label}'s, all at {rate:g}", "Of the difference, the rate's"))  # fmt: skip
    rows: list[tuple[str, ...]] = []
    for one in sorted(found, key=lambda one: -sign * rate_height(one.own)):
        lead = rate_height(one.own) - rate_height(at.own)
        own = rate_height(one.own)
        name = (one.row.label, cell_of(one.own.learning_rate, "{:g}".format), short_number(own))
        if one.known is None:
            why = "not tried" if one.shared is None else one.shared.text()
            rows.append((*name, why, signed_number(lead), why, "—"))
            continue
        other = rate_height(one.known) - rate_height(at.own)
        leads = (signed_number(difference) for difference in (lead, other, lead - other))
        rows.append((*name, short_number(rate_height(one.known)), *leads))
    return Table(header, tuple(rows))


def unit_of(point: TunePoint) -> str:
    """The unit that a curve is shown in."""
    return "%" if point.measure is None else MEASURES[point.measure].unit


def point_sign(point: TunePoint) -> int:
    return 1 if point.measure is None else MEASURES[point.measure].sign


def spread_width(values: list[float]) -> str:
    return short_number(max(values) - min(values)) if values else "0"


def short_number(value: float) -> Number:
    return Number(plain_number(value, DIGITS), value)


def signed_number(value: float) -> str:
    text = short_number(value)
    return text if text == "0" or value < 0 else Number(f"+{text}", value)
