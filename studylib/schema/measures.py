"""One table of what is measured on held-out examples, and how a record holds each figure.

A measure that a profile asks for (`evaluate.measures`) gives one or two figures; each is a row:
name, unit, direction, format, meaning, and which sums make it. Records, tables, csv files and the
choice of a learning rate follow the table.

Not covered: how an item is measured (studylib.scoring.held_out), intervals and differences
(studylib.core.item_stats).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from studylib.core.metrics import Metric
from studylib.schema.settings import EvaluateSettings, Frozen

Of = Literal["held_out", "retention"]


@dataclass(frozen=True)
class Measure(Metric):
    """A figure over items: the sum of a column, times `factor`, over the sum of another.

    asked: the measure that gives it. over: the column that is summed below; None counts items.
    A share lies between 0 and 1 by item.
    """

    asked: str = ""
    column: str = "value"
    over: str | None = None
    factor: float = 1.0

    @property
    def is_share(self) -> bool:
        return self.over is None

    @property
    def sign(self) -> int:
        """1 where more is better, -1 where less is."""
        return 1 if self.better == "up" else -1


_TABLE = (
    Measure("loss", "Held-out loss", "nats/token", "down", 4,
            "mean of -log p over the answers' tokens of held-out examples, end of turn included",
            asked="loss", column="nats", over="tokens"),
    Measure("bits_per_byte", "Held-out bits", "bits/byte", "down", 4,
            "the same sum in bits over the UTF-8 bytes of the answers: comparable between "
            "tokenizers", asked="loss", column="nats", over="bytes", factor=1 / math.log(2)),
    Measure("labels", "Right label", "%", "up", 3,
            "held-out examples whose own label is the most likely of the labels that occur in "
            "training, each scored whole, end of turn included", 100, asked="labels"),
    Measure("exact", "Exact match", "%", "up", 3,
            "greedy answers that equal the reference after Unicode NFKC, with every run of white "
            "space as one blank and none at the ends; case and punctuation count", 100,
            asked="exact"),
    Measure("number", "Right number", "%", "up", 3,
            "greedy answers whose last number is the reference's last number", 100,
            asked="number"),
)  # fmt: skip

MEASURES: dict[str, Measure] = {measure.key: measure for measure in _TABLE}


def figures_of(asked: str) -> list[Measure]:
    """The figures that a measure gives, the first of them the one that chooses a rate."""
    return [measure for measure in _TABLE if measure.asked == asked]


def held_out_part(asked: EvaluateSettings) -> Literal["validation", "test"]:
    """The part of the data that measures are taken on."""
    return "validation" if asked.part == "validation" else "test"


class MeasureFigure(Frozen):
    """One figure of one run on one set of weights, with its 95 % interval over items.

    of: the held-out examples, or those on what the base knew (`retention_data`). groups: what was
    resampled (conversations or documents). counts: of what was left out or cut, in words.
    """

    of: Of
    weights: str
    value: float
    low: float
    high: float
    unit: str
    items: int
    groups: int
    counts: dict[str, int] = Field(default_factory=dict)
