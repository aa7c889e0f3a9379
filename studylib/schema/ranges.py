"""Three values of one quantity, the best case, the expected one and the worst, and sums of them.

Not covered: what they are ranges of: hours and dollars (studylib.planning.estimate), shares of a
card's speed (studylib.planning.roofline); intervals of what was measured (studylib.core.stats).
"""

from __future__ import annotations

from studylib.schema.frozen import Frozen


class Range(Frozen):
    """The best case, the expected one and the worst, case by case in every sum and product."""

    low: float
    mid: float
    high: float

    def __add__(self, other: Range) -> Range:
        return Range(
            low=self.low + other.low, mid=self.mid + other.mid, high=self.high + other.high
        )

    def __mul__(self, other: Range | float) -> Range:
        by = other if isinstance(other, Range) else exactly(other)
        return Range(low=self.low * by.low, mid=self.mid * by.mid, high=self.high * by.high)

    def __truediv__(self, other: Range | float) -> Range:
        """Time of an amount at a speed: the least amount at the highest speed is the best case."""
        by = other if isinstance(other, Range) else exactly(other)
        return Range(low=self.low / by.high, mid=self.mid / by.mid, high=self.high / by.low)

    def rounded(self) -> Range:
        """Six figures: a sum of many operators' seconds depends on their order beyond that."""
        return Range(
            **{name: float(f"{getattr(self, name):.6g}") for name in ("low", "mid", "high")}
        )


def exactly(value: float) -> Range:
    return Range(low=value, mid=value, high=value)


NOTHING = exactly(0.0)
