"""The verdict rule: does a measured value bear out a published claim?

A rule is written down before a run and read from a file; this module applies it and says in words
which figure decided. There are four verdicts:

- reproduced: everything that the measurement leaves possible agrees with the claim;
- differs: nothing that it leaves possible agrees;
- inconclusive: the measurement is too coarse to say, or too few seeds stand behind it;
- not comparable: it measures something else (another model, unit or recipe), or nothing at all.

"Agrees" is a band: the claimed value or range, widened by the tolerance on both sides. "What the
measurement leaves possible" is its 95 % interval; a count, or a reading that no sampling blurs, is
its own interval. An interval inside the band is an equivalence test at the tolerance (two one-sided
tests at 2.5 % each, stricter than the usual 5 %: Schuirmann 1987, Journal of Pharmacokinetics and
Biopharmaceutics 15); an interval that only overlaps it decides nothing, however close its middle.

Not covered: how a measurement or its interval is made (stats), which records may be compared, and
the reading of files: a rule is parsed from a mapping. Verdicts are one claim at a time.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from math import isfinite
from typing import Any, Literal, get_args

from studylib.core.errors import StudyError

Kind = Literal["exact", "within_ratio", "range", "gap"]


class Verdict(StrEnum):
    """The four answers, as they are printed."""

    REPRODUCED = "reproduced"
    DIFFERS = "differs"
    INCONCLUSIVE = "inconclusive"
    NOT_COMPARABLE = "not comparable"


@dataclass(frozen=True)
class Rule:
    """What a claim says and how near counts, in the claim's own unit.

    kind and its band, for a claim of `low` to `high` (equal where one value is claimed):
    exact: low - tolerance to high + tolerance; for counts, tolerance is half of the claim's last
        digit; a point decides.
    within_ratio: low / (1 + tolerance) to high * (1 + tolerance), 0.1 being one part in ten: the
        same factor up and down, so that claims above zero only.
    range: low - tolerance to high + tolerance, for a value with or without interval.
    gap: as range, for a difference between methods (in points, say), which must have an interval.

    min_seeds: fewer trained runs a method cannot bear a verdict on the method. lower_is_better:
    only colours the words of a value that differs; None where neither side is better.
    """

    kind: Kind
    low: float
    high: float
    unit: str
    tolerance: float = 0.0
    lower_is_better: bool | None = None
    min_seeds: int = 1

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise StudyError(self.kind, f"a kind is one of {', '.join(get_args(Kind))}", "Choose.")
        if not (isfinite(self.low) and isfinite(self.high) and self.low <= self.high):
            raise StudyError(f"{self.low} to {self.high}", "low is at most high", "Swap them.")
        if not (isfinite(self.tolerance) and self.tolerance >= 0):
            raise StudyError(self.tolerance, "a tolerance is 0 or more", "Give how near counts.")
        if self.kind == "within_ratio" and self.low <= 0:
            raise StudyError(self.low, "a ratio needs a claim above 0", "Use range or gap.")
        if self.min_seeds < 1:
            raise StudyError(self.min_seeds, "min_seeds is 1 or more", "Give a count of seeds.")

    @property
    def band(self) -> tuple[float, float]:
        """Lowest and highest value that agree with the claim, in its unit."""
        if self.kind == "within_ratio":
            return self.low / (1 + self.tolerance), self.high * (1 + self.tolerance)
        return self.low - self.tolerance, self.high + self.tolerance


@dataclass(frozen=True)
class Measured:
    """A measured value in the claim's unit, with its 95 % interval where sampling has a part.

    seeds: trained runs behind it; None where nothing was trained (a count, a reading).
    """

    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    seeds: int | None = None

    def __post_init__(self) -> None:
        if not isfinite(self.value):
            raise StudyError(self.value, "a measured value is a number", "Pass None for missing.")
        if (self.low is None) != (self.high is None):
            raise StudyError(f"{self.low}, {self.high}", "an interval has two ends", "Give both.")
        if (
            self.low is not None
            and self.high is not None
            and not self.low <= self.value <= self.high
        ):
            raise StudyError(
                f"{self.low} to {self.high}", "an interval holds its value", "Mend it."
            )

    @property
    def interval(self) -> tuple[float, float]:
        """The interval's ends; the value twice where it has none."""
        if self.low is None or self.high is None:
            return self.value, self.value
        return self.low, self.high


@dataclass(frozen=True)
class Judgement:
    """A verdict and the figure that decided it, in words."""

    verdict: Verdict
    reason: str


def parse_rule(fields_of_rule: Mapping[str, Any]) -> Rule:
    """Rule from a mapping as a YAML file gives it; `value: x` is short for low and high both x.

    StudyError: an unknown or missing field, a text where a number belongs, or a rule that breaks
    what `Rule` asks.
    """
    given = dict(fields_of_rule)
    if "value" in given:
        if "low" in given or "high" in given:
            raise StudyError(given, "a rule has value, or low and high", "Keep one of the two.")
        given["low"] = given["high"] = given.pop("value")
    known = {field.name for field in fields(Rule)}
    for name in given.keys() - known:
        raise StudyError(
            name, f"a rule has {', '.join(sorted(known))}, value", "Rename or drop it."
        )
    for name in ("kind", "low", "high", "unit"):
        if name not in given:
            raise StudyError(
                f"no {name}", "a rule has kind, unit, and value or low and high", "Add."
            )
    for name in ("low", "high", "tolerance", "min_seeds"):
        number = given.get(name, 0)
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise StudyError(number, f"{name} is a number", "Write it without unit or quotes.")
    return Rule(**given)


def judge_claim(rule: Rule, measured: Measured | None, obstacle: str | None = None) -> Judgement:
    """Apply a rule to a measurement.

    measured: None where there is none. obstacle: in words, why measurement and claim may not be set
    side by side ("other items: 14,042 and 800"), None where nothing hinders.
    """
    if obstacle:
        return Judgement(Verdict.NOT_COMPARABLE, obstacle)
    if measured is None:
        return Judgement(Verdict.NOT_COMPARABLE, "nothing was measured")
    if measured.unit != rule.unit:
        reason = f"measured in {measured.unit}, claimed in {rule.unit}"
        return Judgement(Verdict.NOT_COMPARABLE, reason)
    if rule.kind == "gap" and measured.low is None:
        return Judgement(Verdict.INCONCLUSIVE, "a gap without an interval decides nothing")
    low, high = measured.interval
    band_low, band_high = rule.band
    figure = describe_figure(rule, measured)
    if measured.seeds is not None and measured.seeds < rule.min_seeds:
        reason = f"{figure}, but {measured.seeds} of the {rule.min_seeds} seeds that the rule asks"
        return Judgement(Verdict.INCONCLUSIVE, reason)
    if band_low <= low and high <= band_high:
        return Judgement(Verdict.REPRODUCED, f"{figure}: inside")
    if high < band_low or low > band_high:
        side = "below" if high < band_low else "above"
        return Judgement(Verdict.DIFFERS, f"{figure}: {side}{describe_side(rule, side)}")
    return Judgement(Verdict.INCONCLUSIVE, f"{figure}: partly inside")


def describe_figure(rule: Rule, measured: Measured) -> str:
    """The measured figure, the claim and its band, as one phrase."""
    text = f"measured {measured.value:.4g} {measured.unit}"
    if measured.low is not None and measured.high is not None:
        text += f", 95 % interval {measured.low:.4g} to {measured.high:.4g}"
    claim = f"{rule.low:.4g}"
    if rule.high > rule.low:
        claim += f" to {rule.high:.4g}"
    text += f"; claimed {claim} {rule.unit}"
    if rule.tolerance:
        text += ", agreeing from {:.4g} to {:.4g}".format(*rule.band)
    return text


def describe_side(rule: Rule, side: str) -> str:
    """Whether a value that differs is better or worse than claimed."""
    if rule.lower_is_better is None:
        return ""
    return ", better than claimed" if rule.lower_is_better == (side == "below") else ", worse"
