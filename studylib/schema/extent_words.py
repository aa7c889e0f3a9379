"""Words for how far a method extends over a model: what is in 4 bits, what the adapter reaches.

Plan, records and report say it alike.

Not covered: counting either (studylib.modelling.four_bit, studylib.modelling.reach).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from studylib.schema.records import Reached

WHOLE_SHARE = 0.9  # below it a base is not called 4-bit without saying how much of it is
MOST_NAMED = 4


def spell_base(share: float, kind: str) -> str:
    """A base's storage, its kind (`nf4`) or how much of the model that is."""
    if share >= WHOLE_SHARE:
        return kind
    return f"{kind} ({percent_below(share)} of the weights outside embeddings)"


def tell_base(label: str, share: float | None) -> str:
    """What a method's name promises and its base does not keep; empty where it does."""
    if share is None or share >= WHOLE_SHARE:
        return ""
    return (
        f"{label}: {percent_below(share)} of the base's weights outside embeddings are in 4 bits, "
        "the others stay in 16 or 32, so its memory is not that of a 4-bit model"
    )


def tell_reach(label: str, reached: Sequence[Reached], rank: int | None) -> str:
    """What of a model's linear layers an adapter leaves out, and where it has another rank; empty
    where it reaches all of them at one rank."""
    total = sum(row.params for row in reached)
    if not total:
        return ""
    left = [row.layer for row in reached if row.adapted < row.params]
    said = []
    if left:
        share = percent_below(sum(row.adapted for row in reached) / total)
        said.append(f"{label} reaches {share} of the linear weights: not {name_layers(left)}")
    for other in sorted({row.rank for row in reached if row.rank} - {rank}):
        layers = [row.layer for row in reached if row.rank == other]
        said.append(f"{'' if said else f'{label}: '}rank {other} on {name_layers(layers)}")
    return "; ".join(said)


def name_layers(layers: Sequence[str]) -> str:
    more = len(layers) - MOST_NAMED
    return ", ".join(layers[:MOST_NAMED]) + (f" and {more} more kinds" if more > 0 else "")


def percent_below(share: float) -> str:
    """A share in whole percent, never more than it is: what is not all is not 100 %."""
    return f"{math.floor(100 * share)} %"
