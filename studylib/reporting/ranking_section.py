"""The part of a report on many methods: one table, one picture, and the sentence that follows.

How much of a lead was its learning rate is told from the searches' curves (one seed, validation
questions): all methods at one rate, beside each at its own. The one rate is LoRA's choice, as a
study without searches would have set it.

Not covered: what is ranked (studylib.reporting.ranking), the curves' picture
(studylib.reporting.curves).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from studylib.core.all_pairs import Pair
from studylib.core.metrics import METRICS, MISSING
from studylib.reporting.blocks import (
    Block,
    Heading,
    Number,
    Table,
    Text,
    around,
    cell_of,
    figures,
    named,
)
from studylib.reporting.cells import (
    measure_number,
    p_value,
    short_number,
    spread_cell,
    trainable_cell,
)
from studylib.reporting.curves import measure_of, rate_height
from studylib.reporting.measured import RIGHT_ANSWERS
from studylib.reporting.notes import join_words
from studylib.reporting.panels import INK, Names, colour, draw_panels
from studylib.reporting.ranking import MANY, Ranking, rankings
from studylib.reporting.resources import MEMORY
from studylib.reporting.summary import Comparison, Row
from studylib.schema.tuning import TunePoint

CAPTION = (
    "Each method less LoRA, against the peak memory of its training; the intervals hold for all "
    "pairs at once"
)
INCHES_A_LABEL = 0.3
MOST_NAMED = 5


def rankings_section(
    comparisons: Sequence[Comparison], pictures: list[Block], brief: bool = False
) -> list[Block]:
    """A part for every comparison of many methods, in place of a sentence and a row for each beside
    full fine-tuning; empty without one. brief: what follows and the pictures alone, the tables
    standing in the appendix."""
    blocks: list[Block] = []
    for ranking in rankings(comparisons):
        title = f"{len(ranking.places)} methods ranked ({ranking.comparison.name})"
        table: list[Block] = (
            [] if brief else [ranking_table(ranking), Text(tell_intervals(ranking))]
        )
        blocks += [Heading(3, title), Text(tell_ranking(ranking)), *table, *pictures]
        blocks += [] if brief else shared_rate_section(ranking)
    return blocks


def tell_ranking(ranking: Ranking) -> str:
    """Whether any method beats LoRA, in one sentence, and what else is told apart."""
    label = reference_words(ranking)
    if ranking.measure is RIGHT_ANSWERS and not ranking.comparison.above_chance:
        return "**No accuracy can be told from guessing:** the ranking says nothing of learning."
    ends = [f"{place.row.label} by {lead_interval(ranking, place.lead)}" for place in ranking.ahead]
    text = f"**Better than {label}: {join_words(ends)}.**" if ends else ""
    if not any(place.row.method.kind.adapter for place in ranking.ahead):
        who = "No other adapter" if ends else "No method"
        text += " " * bool(ends) + tell_most(ranking, who, label, adapters=bool(ends))
    if ranking.behind:
        text += f" Behind it: {join_words([place.row.label for place in ranking.behind])}."
    open_ones = [p.row.label for p, lead in ranking.others if lead.low <= 0 <= lead.high]
    if len(open_ones) > MOST_NAMED:
        text += f" {len(open_ones)} others are not told apart from it."
    elif open_ones:
        text += f" Not told apart from it: {join_words(open_ones)}."
    best = [place.row.label for place in ranking.frontier]
    return f"{text} Nothing scores as much with less memory than {join_words(best, 'or')}."


def tell_most(ranking: Ranking, who: str, label: str, adapters: bool) -> str:
    """By how much any of them could beat the reference; nothing where there is none."""
    if (found := ranking.most(adapters)) is None:
        return ""
    place, pair = found
    most = measure_number(max(pair.high, 0.0), ranking.measure, signed=False)
    return (
        f"**{who} beats {label} by more than {most} {ranking.unit}** "
        f"({place.row.label} could: {lead_interval(ranking, pair)})."
    )


def tell_orders(comparisons: Sequence[Comparison], others: Sequence[Comparison]) -> str:
    """How many pairs of methods other rankings of the same ones have the other way round."""
    told = []
    for ranking in rankings(comparisons):
        labels = [place.row.label for place in ranking.places]
        for other in rankings(others):
            order = [place.row.label for place in other.places if place.row.label in labels]
            if len(order) < len(labels):
                continue
            pairs = [*combinations(labels, 2)]
            turned = sum(order.index(one) > order.index(two) for one, two in pairs)
            told.append(
                f"{other.comparison.name} has {turned} of these {len(pairs)} pairs of methods the "
                f"other way round; from its best: {', '.join(order)}."
            )
    return " ".join(told)


def reference_words(ranking: Ranking) -> str:
    return f"{'tuned ' if ranking.tuned else ''}{ranking.reference.label}"


def tell_intervals(ranking: Ranking) -> str:
    """What the intervals hold for."""
    seeds = "for new seeds as well" if ranking.seeds_known else "for these runs alone (one seed)"
    rates = "" if ranking.tuned else " Not every rate was searched for: a lead may be its rate's."
    return (
        f"Differences are on the same questions or examples. Their intervals of 95 % hold for all "
        f"{ranking.pairs} pairs at once, {seeds}; {ranking.apart} pairs are told apart by them. "
        f"Memory is {MEMORY[ranking.comparison.memory_kind]}.{rates}"
    )


def ranking_table(ranking: Ranking) -> Table:
    measure = ranking.measure
    header = (*figures("Rank"), named("Method"), *figures(measure.header,
              f"Gain over base ({ranking.unit})",
              f"Less {reference_words(ranking)} ({ranking.unit})", "p, all pairs",
              METRICS["trainable_params"].header, METRICS["train_peak_bytes"].header,
              METRICS["variant_bytes"].header, "Rate"))  # fmt: skip
    rows = []
    for rank, place in enumerate(ranking.places, 1):
        row, lead = place.row, place.lead
        peak = cell_of(place.memory, METRICS["train_peak_bytes"].number)
        gain, disk = place.gain, row.figures.get("variant_bytes")
        rows.append((
            str(rank), row.label, measure_number(measure.sign * place.score, measure, signed=False),
            MISSING if gain is None else measure_number(gain.value, measure),
            "reference" if lead is None else lead_interval(ranking, lead),
            "—" if lead is None else p_value(lead.p_value),
            trainable_cell(row), peak, spread_cell("variant_bytes", disk),
            cell_of(row.complete[0].run.learning_rate, "{:g}".format),
        ))  # fmt: skip
    return Table(header, tuple(rows))


def lead_interval(ranking: Ranking, pair: Pair | None) -> str:
    """A difference with its interval, as the figure counts it (a loss: below 0 is better)."""
    assert pair is not None
    sign = ranking.measure.sign
    low, high = sorted((sign * pair.low, sign * pair.high))
    shown = [measure_number(end, ranking.measure) for end in (sign * pair.value, low, high)]
    return around("{} [{}, {}]".format(*shown), shown[0])


def draw_ranking(comparisons: Sequence[Comparison]) -> Figure | None:
    """Every method's difference to LoRA against the memory of its training."""
    shown = [ranking for ranking in rankings(comparisons)
             if all(place.memory is not None for place in ranking.places)]  # fmt: skip
    most = max((len(one.places) for one in shown), default=0)

    def draw(panel: Axes, ranking: Ranking) -> Names:
        scale, labels = ranking.measure.scale, []
        small = all((place.memory or 0) < 1e8 for place in ranking.places)
        name, size = ("MB", 1e6) if small else ("GB", 1e9)
        for place in ranking.places:
            lead, shade = place.lead, colour(place.row.method)
            x, y = (place.memory or 0) / size, scale * (lead.value if lead else 0.0)
            ends = [[y - scale * lead.low], [scale * lead.high - y]] if lead else None
            panel.errorbar(x, y, yerr=ends, color=shade, marker=place.row.method.kind.marker,
                           markersize=7, capsize=2, linewidth=1)  # fmt: skip
            labels.append((x, y, place.row.label, shade))
        panel.axhline(0, color=INK, linewidth=0.8, linestyle=":")
        panel.margins(x=0.12, y=0.05)
        kind = MEMORY[ranking.comparison.memory_kind]
        better = "" if ranking.measure.sign > 0 else ", turned so that up is better"
        panel.set(title=ranking.comparison.name,
                  xlabel=f"← peak memory of training, {kind} ({name})",
                  ylabel=f"less {reference_words(ranking)} ({ranking.unit}{better}) ↑")  # fmt: skip
        return labels

    return draw_panels(shown, draw, max(4.0, INCHES_A_LABEL * most), 0.9 / max(most, 1))


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
        Shared(place.row, sweep.best, next(
            (p for p in sweep.points if np.isclose(p.learning_rate, rate, rtol=1e-3)), None))
        for place in ranking.places
        if (sweep := sweeps.get(place.row.method.slug)) is not None
    ]  # fmt: skip
    return (rate, found) if len(found) >= MANY else None


def shared_rate_section(ranking: Ranking) -> list[Block]:
    """The table at one rate beside the tuned one, with what follows; empty without searches."""
    shared = share_rate(ranking)
    if shared is None:
        return []
    return [Text(tell_shared_rate(ranking, *shared)), shared_rate_table(ranking, *shared)]


def tell_shared_rate(ranking: Ranking, rate: float, found: list[Shared]) -> str:
    label, unit = ranking.reference.label, measure_of(found[0].own).unit.replace("%", "points")
    own = [rate_height(one.own) for one in found if one.known]
    same = [rate_height(one.known) for one in found if one.known]
    left = [one.row.label for one in found if one.shared is None]
    text = (
        f"**How much of it was the rate:** on the validation part the {len(own)} methods that "
        f"were tried at {label}'s own rate ({rate:g}) lie {spread_width(same)} {unit} apart at "
        f"that one rate, and {spread_width(own)} {unit} apart at the best that each was tried with."
    )
    return text + (f" Not tried at it: {join_words(left)}." if left else "")


def shared_rate_table(ranking: Ranking, rate: float, found: list[Shared]) -> Table:
    """Best first at each method's own rate."""
    judge = measure_of(found[0].own)
    at = next(one for one in found if one.row is ranking.reference)
    label = ranking.reference.label
    header = (named("Method"), *figures("Its own rate", f"Validation at it ({judge.unit})",
              f"Validation at {rate:g} ({judge.unit})", f"Less {label}'s, each at its own",
              f"Less {label}'s, all at {rate:g}", "Of the difference, the rate's"))  # fmt: skip
    rows: list[tuple[str, ...]] = []
    for one in sorted(found, key=lambda one: -judge.sign * rate_height(one.own)):
        own = rate_height(one.own)
        lead = own - rate_height(at.own)
        name = (one.row.label, cell_of(one.own.learning_rate, "{:g}".format), short_number(own))
        if one.known is None:
            why = "not tried" if one.shared is None else one.shared.text()
            rows.append((*name, why, signed_number(lead), why, "—"))
            continue
        other = rate_height(one.known) - rate_height(at.own)
        leads = (signed_number(difference) for difference in (lead, other, lead - other))
        rows.append((*name, short_number(rate_height(one.known)), *leads))
    return Table(header, tuple(rows))


def spread_width(values: list[float]) -> str:
    return short_number(max(values) - min(values)) if values else "0"


def signed_number(value: float) -> str:
    text = short_number(value)
    return text if text == "0" or value < 0 else Number(f"+{text}", value)
