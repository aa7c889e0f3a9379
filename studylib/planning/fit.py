"""Whether a job fits a card, in three words: the one place that decides it.

fits: also if the forecast is too low by its stated error. does not fit: also if it is too high by
it. tight: in between; such a job is started, and may run out of memory.

Not covered: the forecast (studylib.forecasting.forecast).
"""

from __future__ import annotations

from typing import Literal

from studylib.schema.frozen import Frozen

Word = Literal["fits", "tight", "does not fit"]
# The worst error against published peaks, as a share of what was measured: one card's, and those of
# several that share a model (benchmarks/forecast_published.py).
ERROR_ONE_CARD, ERROR_SEVERAL_CARDS = 0.05, 0.13


class Fit(Frozen):
    """A job's bytes on one card against what the card has.

    least_bytes: with which it still runs, which decides; shown_bytes: what the driver would show at
    most, or the least needed where the card has not as much.
    """

    word: Word
    shown_bytes: int
    least_bytes: int
    usable_bytes: int
    error: float

    @property
    def may_run(self) -> bool:
        """Whether it is worth starting: it fits, or nearly."""
        return self.word != "does not fit"

    @property
    def headroom_bytes(self) -> int:
        """What is left; negative: missing."""
        return self.usable_bytes - self.least_bytes

    @property
    def in_words(self) -> str:
        """fits; tight: within the forecast's error of 5 %; does not fit."""
        if self.word != "tight":
            return self.word
        return f"tight (within the forecast's error of {100 * self.error:.0f} %)"


def judge_fit(peak_bytes: int, least_bytes: int, usable_bytes: int, gpus: int = 1) -> Fit:
    """The word for a forecast. peak_bytes: what the driver shows on a card with room for it."""
    error = ERROR_ONE_CARD if gpus <= 1 else ERROR_SEVERAL_CARDS
    word: Word = "tight"
    if least_bytes / (1 - error) <= usable_bytes:
        word = "fits"
    elif least_bytes / (1 + error) > usable_bytes:
        word = "does not fit"
    return Fit(
        word=word,
        shown_bytes=shown_bytes(peak_bytes, least_bytes, usable_bytes),
        least_bytes=least_bytes,
        usable_bytes=usable_bytes,
        error=error,
    )


def shown_bytes(peak_bytes: int, least_bytes: int, usable_bytes: int) -> int:
    """What the driver shows at most where so much is usable; the least needed where it is more."""
    return min(peak_bytes, usable_bytes) if least_bytes <= usable_bytes else least_bytes
