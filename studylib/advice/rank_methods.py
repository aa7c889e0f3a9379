"""Which method for this case: full, LoRA, QLoRA, or a smaller model in full, by a year's dollars.

A pure function of the case and the evidence. A method fits if an allowed card holds its training,
the year is within the budget, and the accuracy margin, where one is asked for, is shown to be kept
(the whole interval lies within it). Another model than the reader's fits only where its loss
was measured. Adapters can be merged, which leaves the model's own shape and
so its own speed: a latency limit decides how an adapter is served, not whether.

Evidence from another size, amount of data or kind of change is not taken as it is: its interval is
widened by its own half for every factor of ten between, and once more for another kind. A rule of
caution, not a measurement, and said to be one.

Not covered: gathering the evidence (studylib.advice.evidence, studylib.forecasting.card_forecasts)
and the sentences (studylib.advice.advise).
"""

from __future__ import annotations

import math

from pydantic import Field

from studylib.planning.case import (
    UNKNOWN,
    ZERO,
    AccuracyEvidence,
    Case,
    Evidence,
    LatencyEvidence,
    Span,
    ratio,
)
from studylib.planning.yearly_cost import Way, YearlyCost, allowed_jobs, cost_year
from studylib.schema.methods import ADVISED, WHOLE
from studylib.schema.settings import Frozen

SAME = 0.05  # of a factor of ten: what counts as the case that was measured
WAYS: tuple[Way, ...] = ("merged", "apart")
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


HERE = Distance()


class Option(Frozen):
    """One method on one model. usd_per_year: at the median price; null where no card takes it.

    The JSON has the first seven keys; the others serve the sentences.
    """

    method: str
    model: str
    usd_per_year: float | None
    fits: bool
    accuracy_loss: Span
    latency_overhead: Span
    evidence: tuple[str, ...]
    cost: YearlyCost | None = Field(default=None, exclude=True)
    fits_memory: bool = Field(default=True, exclude=True)
    fits_budget: bool = Field(default=True, exclude=True)
    keeps_margin: bool = Field(default=True, exclude=True)
    keeps_latency: bool = Field(default=True, exclude=True)
    measured: AccuracyEvidence | None = Field(default=None, exclude=True)
    distance: Distance = Field(default=HERE, exclude=True)
    timed: LatencyEvidence | None = Field(default=None, exclude=True)
    reasons: tuple[Sentence, ...] = Field(default=(), exclude=True)

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


def rank_options(case: Case, evidence: Evidence) -> tuple[Option, ...]:
    """All options, those that fit first, each part by dollars; the unpriced last."""
    pairs = [(case.model, method) for method in ADVISED]
    pairs += sorted(key for key in evidence.sizes_of if key[0] != case.model and key[1] == WHOLE)
    options = [judge(case, evidence, model, method) for model, method in pairs]
    return tuple(
        sorted(options, key=lambda o: (not o.fits, o.usd, pairs.index((o.model, o.method))))
    )


def judge(case: Case, evidence: Evidence, model: str, method: str) -> Option:
    """One option with its cost, its accuracy and latency, and what it fails."""
    timed = nearest_latency(case, evidence, method) if method != WHOLE else None
    dynamic = widen_latency(case, evidence, timed)
    pieces = {way: nearest_accuracy(case, evidence, model, method, way) for way in WAYS}
    losses = {way: widen(*piece) for way, piece in pieces.items()}
    cost = cost_year(case, evidence, model, method, allowed_ways(case, losses, dynamic))
    way = "merged" if cost is None or cost.way == "whole" else cost.way
    measured, distance = pieces[way]
    loss = ZERO if (model, method) == (case.model, WHOLE) else losses[way]
    latency = ZERO if cost is None or cost.way != "apart" else dynamic
    margin, limit = case.max_accuracy_loss_pp, case.max_latency_overhead_percent
    keeps = shown(loss, margin) and (model == case.model or loss.known)
    quick = shown(latency, limit)
    affordable = cost is not None and (case.budget_usd is None or cost.mid <= case.budget_usd)
    holds = any(job.fits for job in allowed_jobs(case, evidence, model, method))
    ids = [*(cost.ids if cost else ()), *(measured.ids if measured else ())]
    if cost is not None and cost.way == "apart" and timed is not None:
        ids.append(timed.id)
    if cost is None:
        ids += [job.id for job in allowed_jobs(case, evidence, model, method)]
    return Option(
        method=method,
        model=model,
        usd_per_year=None if cost is None else cost.mid,
        fits=holds and affordable and keeps and quick,
        accuracy_loss=loss,
        latency_overhead=latency,
        evidence=tuple(dict.fromkeys(ids)),
        cost=cost,
        fits_memory=holds,
        fits_budget=affordable,
        keeps_margin=keeps,
        keeps_latency=quick,
        measured=measured,
        distance=distance,
        timed=timed,
    )


def allowed_ways(case: Case, losses: dict[Way, Span], dynamic: Span) -> tuple[Way, ...]:
    """The ways to serve an adapter that keep the latency, and the accuracy where any does.

    Merged weights have the model's own shape and speed, so that this way is always quick enough.
    """
    apart_is_quick = shown(dynamic, case.max_latency_overhead_percent)
    quick = tuple(way for way in WAYS if way == "merged" or apart_is_quick)
    good = tuple(way for way in quick if shown(losses[way], case.max_accuracy_loss_pp))
    return good or quick


def shown(figure: Span, limit: float | None) -> bool:
    """Whether the whole interval lies within a limit; no limit needs no showing."""
    return limit is None or (figure.high is not None and figure.high <= limit)


def nearest_accuracy(
    case: Case, evidence: Evidence, model: str, method: str, way: Way
) -> tuple[AccuracyEvidence | None, Distance]:
    """The measured gap nearest to the case, and how far away it is.

    A smaller model's loss counts for that very pair only; a new language is told by a new language
    only, and tells nothing about other changes.
    """
    if (model, method) == (case.model, WHOLE):
        return None, HERE
    other_model = model != case.model
    found = []
    for piece in evidence.accuracy:
        if piece.method != method or (piece.against != piece.model) != other_model:
            continue
        if other_model and (piece.model, piece.against) != (model, case.model):
            continue
        if "language" in (piece.change, case.change) and piece.change != case.change:
            continue
        away = distance_of(case, evidence, model, piece)
        found.append((piece.merged != (way == "merged"), away.tenfolds, piece, away))
    if not found:
        return None, HERE
    _, _, piece, away = min(found, key=lambda entry: (*entry[:2], entry[2].ids))
    return piece, away


def distance_of(case: Case, evidence: Evidence, model: str, piece: AccuracyEvidence) -> Distance:
    """In parameters, trained tokens, facts where both are known, and kind of change."""
    sizes = evidence.sizes_of.get((model, WHOLE))
    facts = ratio(case.facts, piece.facts) if case.facts and piece.facts else 1.0
    return Distance(
        params_ratio=ratio(sizes.params, piece.params) if sizes else 1.0,
        tokens_ratio=ratio(case.trained_tokens, max(piece.tokens, 1)),
        facts_ratio=facts,
        other_kind=piece.change != case.change,
    )


def widen(piece: AccuracyEvidence | None, distance: Distance) -> Span:
    """The measured points, the interval wider by its half for every factor of ten away."""
    if piece is None:
        return UNKNOWN
    return widen_span(piece.loss_pp, distance.tenfolds, -100.0, 100.0)


def widen_span(span: Span, distance: float, least: float, most: float) -> Span:
    if span.low is None or span.mid is None or span.high is None or distance <= SAME:
        return span
    factor = 1 + distance
    return Span(
        low=max(least, span.mid - factor * (span.mid - span.low)),
        mid=span.mid,
        high=min(most, span.mid + factor * (span.high - span.mid)),
    )


def nearest_latency(case: Case, evidence: Evidence, method: str) -> LatencyEvidence | None:
    """The measured overhead of this method at the nearest size."""
    rows = [row for row in evidence.latency if row.method == method]
    return min(rows, key=lambda row: (latency_distance(case, evidence, row), row.id), default=None)


def latency_distance(case: Case, evidence: Evidence, row: LatencyEvidence) -> float:
    """Factors of ten in parameters, and one where it was timed on another kind of device."""
    sizes = evidence.sizes_of.get((case.model, WHOLE))
    if row.model == case.model:
        away = 0.0
    elif sizes is None or row.params is None:
        away = OTHER_KIND
    else:
        away = math.log10(ratio(sizes.params, row.params))
    return away + OTHER_KIND * row.device.upper().startswith("CPU")


def widen_latency(case: Case, evidence: Evidence, row: LatencyEvidence | None) -> Span:
    """The measured per cent; no answer takes less than no time, which is -100."""
    if row is None:
        return UNKNOWN
    return widen_span(row.overhead_percent, latency_distance(case, evidence, row), -100.0, 1000.0)
