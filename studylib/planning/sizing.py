"""Whether a held-out part can show the loss that the reader cares for, before anything is spent.

What a part shows depends on how much an item's difference between two methods varies from item to
item, and nobody knows that before both are trained. A plan takes a stated case, and says it:

- a share of right answers: two methods that are right half of the time, each by chance. Methods
  trained on the same rows agree more often than that, so that it is the worst case.
- a loss: the widest that the shipped records of a real model have, in shares of full's gain.

A verdict reckons the same from the items that were measured (studylib.core.item_stats).

Not covered: seeds, whose part no plan knows.
"""

from __future__ import annotations

import math

from studylib.core.item_stats import items_to_show, shown_by
from studylib.inputs.parts import HELD_OUT, most_held_out, read_part, source_of
from studylib.schema.spec import Track

SHARE_SPREAD = math.sqrt(0.5)
LOSS_SPREAD = 0.15  # of full's gain: 500 instructions, SmolLM2-135M; a test reads the records
MOST_ROUND = 2  # significant figures of a number of examples


def tell_sizing(track: Track) -> list[str]:
    """What a track's held-out part shows, and how many examples show the margin, as one line."""
    asked = track.evaluate
    if not asked.measures or not any(name != "base" for name in track.methods):
        return []
    whole = read_part(track.data, "test")
    count = min(len(whole), asked.held_out_limit or len(whole))
    noun = whole.noun
    by_loss = asked.measures[0] == "loss"
    spread = LOSS_SPREAD if by_loss else SHARE_SPREAD
    unit = "% of full fine-tuning's gain" if by_loss else "percentage points"
    case = (
        f"items that differ by {LOSS_SPREAD:g} of the gain, the widest seen on a real model"
        if by_loss
        else "in the worst case, methods that are right half of the time independently"
    )
    if count < 2:
        return []
    shown = 100 * shown_by(spread, count)
    least = f"{shown:.2g}" if by_loss or shown < 100 else "no less than 100"
    words = f"  {count:,} held-out {noun} show a loss of {least} {unit} ({case}; seeds add "
    words += "their part)"
    if shown <= asked.margin:
        return [f"{words}: enough for MARGIN={asked.margin:g}"]
    need = round_up(items_to_show(spread, asked.margin / 100))
    return [f"{words}: MARGIN={asked.margin:g} takes about {need:,}{tell_way(track, need, spread)}"]


def tell_way(track: Track, need: int, spread: float) -> str:
    """How to have as many held-out examples, or what as many as there are would show."""
    data = track.data
    parts = [part for part in HELD_OUT if source_of(data, part) is None]
    most = len(read_part(data, "test"))
    if most >= need:
        return f" (SET=evaluate.held_out_limit={need})"
    if "test" in parts and data.held_out is not None:
        known = len(read_part(data, "train")) + sum(len(read_part(data, part)) for part in parts)
        most = most_held_out(known, len(parts))
        if most >= need:
            limit = f" evaluate.held_out_limit={need}" if track.evaluate.held_out_limit else ""
            return f" (SET='data.held_out={need}{limit}')"
    return f"; these data have at most {most:,}, which show {100 * shown_by(spread, most):.2g}"


def round_up(number: float) -> int:
    """At least one, to two significant figures, upward."""
    count = max(1, math.ceil(number))
    size = 10 ** max(0, len(str(count)) - MOST_ROUND)
    return -(-count // size) * size
