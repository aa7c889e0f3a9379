"""Does something keep enough? Non-inferiority by an interval's bound, and what would decide it.

What is kept is a share or a difference, more being better; the floor is the least that is enough.
The whole 95 % interval at or above the floor: enough (a one-sided test at 2.5 %: Schuirmann 1987,
Journal of Pharmacokinetics and Biopharmaceutics 15). The whole of it below: not enough. Else these
data do not decide, and it is reckoned how many more items, or seeds, would, if the value found
stayed where it is: the items' part of the interval shrinks with the root of their number, the
seeds' part with that of theirs.

Not covered: how the estimate is made (studylib.core.stats, item_stats), and words
(studylib.reporting.verdict).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from scipy import stats as distributions

from studylib.core.stats import CONFIDENCE, Estimate

MOST_TIMES = 1000  # as many items as there are: beyond it the value lies at the floor itself
MOST_SEEDS = 50

Kind = Literal["enough", "not enough", "open"]


@dataclass(frozen=True)
class Decision:
    """times_items: of as many items as there are, and more_seeds: runs a method, either of which
    would decide by itself; None where it would not, or the question is not open."""

    kind: Kind
    times_items: float | None = None
    more_seeds: int | None = None


def decide_enough(kept: Estimate, floor: float) -> Decision:
    """Whether `kept` is at least `floor`, by its interval."""
    if kept.low >= floor:
        return Decision("enough")
    if kept.high < floor:
        return Decision("not enough")
    distance = abs(kept.value - floor)
    items, seeds = split_width(kept)
    return Decision("open", times_items(distance, items, seeds), more_seeds(kept, distance, items))


def split_width(estimate: Estimate) -> tuple[float, float]:
    """(the items' part of the interval's half-width, the seeds'); their squares add up to it."""
    half = quantile(estimate, estimate.df) * estimate.se
    if not estimate.seed_se:
        return half, 0.0
    items = min(half, quantile(estimate, max(estimate.clusters - 1, 1)) * estimate.item_se)
    return items, math.sqrt(max(half**2 - items**2, 0.0))


def times_items(distance: float, items: float, seeds: float) -> float | None:
    room = distance**2 - seeds**2
    if room <= 0 or items**2 / room > MOST_TIMES:
        return None
    return items**2 / room


def more_seeds(kept: Estimate, distance: float, items: float) -> int | None:
    if not kept.seed_se or items >= distance:
        return None
    for number in range(kept.seeds + 1, MOST_SEEDS + 1):
        spread = kept.seed_se * math.sqrt(kept.seeds / number)
        if math.hypot(items, quantile(kept, 2 * (number - 1)) * spread) <= distance:
            return number - kept.seeds
    return None


def quantile(estimate: Estimate, df: float) -> float:
    return float(distributions.t.ppf((1 + CONFIDENCE) / 2, df))
