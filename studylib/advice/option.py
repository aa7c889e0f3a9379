"""One method on one model as advice weighs it, and the sentences that are said of it.

Not covered: how an option is judged and ranked (studylib.advice.rank_methods).
"""

from __future__ import annotations

import math

from pydantic import Field, field_serializer

from studylib.planning.case import AccuracyEvidence, LatencyEvidence
from studylib.planning.yearly_cost import YearlyCost
from studylib.schema.ranges import Range
from studylib.schema.settings import Frozen

SAME = 0.05  # of a factor of ten: what counts as the case that was measured
THIS_SIZE = 10.0  # times the parameters: beyond it, points measured elsewhere say nothing here
OTHER_KIND = 1.0  # factors of ten that another kind of change counts for


class Sentence(Frozen):
    """What is said, and the ids of what it rests on."""

    text: str
    evidence: tuple[str, ...]


class Distance(Frozen):
    """How far the case is from where something was measured, as ratios of 1 or more."""

    params_ratio: float = 1.0
    tokens_ratio: float = 1.0
    facts_ratio: float = 1.0
    other_kind: bool = False

    @property
    def tenfolds(self) -> float:
        """Factors of ten, another kind of change counted as one."""
        ratios = (self.params_ratio, self.tokens_ratio, self.facts_ratio)
        return sum(math.log10(ratio) for ratio in ratios) + OTHER_KIND * self.other_kind

    @property
    def near(self) -> bool:
        return self.tenfolds <= SAME

    @property
    def this_size(self) -> bool:
        """Whether a figure measured there says anything of this case's."""
        return self.params_ratio <= THIS_SIZE


HERE = Distance()


class Option(Frozen):
    """One method on one model. usd_per_year: at the median price; null where no card takes it.

    accuracy_loss: None where nothing was measured at this size; then `kept` has the shares of full
    fine-tuning's gain that records of other sizes say it keeps, and `grade` their word
    (studylib.reporting.team_advice.grade_kept). measured: the record of the points or the share.
    The JSON has the first seven keys, null in low, mid and high of what is not known; the others
    serve the sentences.
    """

    method: str
    model: str
    usd_per_year: float | None
    fits: bool
    accuracy_loss: Range | None
    latency_overhead: Range | None
    evidence: tuple[str, ...]
    cost: YearlyCost | None = Field(default=None, exclude=True)
    fits_memory: bool = Field(default=True, exclude=True)
    fits_budget: bool = Field(default=True, exclude=True)
    keeps_margin: bool = Field(default=True, exclude=True)
    keeps_latency: bool = Field(default=True, exclude=True)
    keeps_gain: bool = Field(default=True, exclude=True)
    grade: str | None = Field(default=None, exclude=True)
    kept: tuple[AccuracyEvidence, ...] = Field(default=(), exclude=True)
    measured: AccuracyEvidence | None = Field(default=None, exclude=True)
    distance: Distance = Field(default=HERE, exclude=True)
    timed: LatencyEvidence | None = Field(default=None, exclude=True)
    reasons: tuple[Sentence, ...] = Field(default=(), exclude=True)

    @field_serializer("accuracy_loss", "latency_overhead")
    def three_ends(self, figure: Range | None) -> dict[str, float | None]:
        return figure.model_dump() if figure else dict.fromkeys(Range.model_fields)

    @property
    def known(self) -> bool:
        """Whether a record of about this size tells what it loses or keeps."""
        here = self.measured is not None and self.distance.this_size
        return self.accuracy_loss is not None or here

    @property
    def lacks_proof_alone(self) -> bool:
        """Whether all that it fails is that it is not shown to keep the margin."""
        others = self.fits_memory and self.fits_budget and self.keeps_latency
        return others and not self.keeps_margin

    @property
    def points_lost(self) -> float | None:
        return self.accuracy_loss.mid if self.accuracy_loss else None

    @property
    def usd(self) -> float:
        return float("inf") if self.usd_per_year is None else self.usd_per_year


class Missing(Frozen):
    """What nothing tells, why it matters, and the command that would get it."""

    what: str
    command: str
    evidence: tuple[str, ...]


class Flip(Frozen):
    """A value of one input from which on the answer is another one."""

    what: str
    value: float | None
    sentence: str
    evidence: tuple[str, ...]


class ArticleSays(Frozen):
    """The article's rule on this case. usd_difference: its year's dollars less our answer's."""

    method: str
    model: str
    sentence: str
    agrees: bool
    usd_difference: float | None
    evidence: tuple[str, ...]
