"""Which method for this case: full, adapters, or a smaller model in full.

A pure function of the case and the evidence. A method fits if an allowed card holds its training,
the year is within the budget, the accuracy margin, where one is asked for, is shown to be kept
(the whole interval lies within it), and no record says that it loses most of the gain. Another
model than the reader's fits only where its loss was measured. Adapters can be merged, which leaves
the model's own shape and so its own speed: a latency limit decides how an adapter is served, not
whether.

Those that fit are ranked by a year's dollars; where dollars cannot tell them apart, points decide.
Where what methods lose was measured at no model of about this size, the article's rule is the
default and comes first: PEFT, or full for a deep change or the last points (article.yaml).

Evidence of this size from another amount of data or kind of change is not taken as it is: its
interval is widened by its own half for every factor of ten between, and once more for another kind.
A rule of caution, not a measurement, and said to be one.

Not covered: gathering the evidence (studylib.advice.evidence, studylib.forecasting.card_forecasts)
and the sentences (studylib.advice.advise).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from studylib.advice.option import HERE, SAME, THIS_SIZE, Distance, Option
from studylib.planning.case import AccuracyEvidence, Case, Evidence, LatencyEvidence, ratio
from studylib.planning.yearly_cost import Way, allowed_jobs, cost_year
from studylib.reporting.evidence_kinds import rank_learning
from studylib.reporting.team_advice import grade_kept
from studylib.schema.methods import ARTICLE, METHODS, WHOLE
from studylib.schema.ranges import NOTHING, Range

WAYS: tuple[Way, ...] = ("merged", "apart")
SMALL_USD = 50.0  # a year
GRADES = ("enough", "once", "open", "short", None, "poor")  # best first; None: nothing tells
LAST_POINTS_PP = 1.0
PEFT = tuple(name for name in ARTICLE if METHODS[name].adapter)


def rank_options(case: Case, evidence: Evidence) -> tuple[Option, ...]:
    """All options, those that fit first; the unpriced last."""
    pairs = [(case.model, method) for method in case.weighed]
    pairs += sorted(key for key in evidence.sizes_of if key[0] != case.model and key[1] == WHOLE)
    options = [weigh_option(case, evidence, model, method) for model, method in pairs]
    options.sort(key=lambda o: (o.usd, pairs.index((o.model, o.method))))
    fitting = settle_close([o for o in options if o.fits])
    ranked = (*fitting, *(o for o in options if not o.fits))
    if not has_default(case, ranked):
        return ranked
    method, _ = article_method(case, ranked)
    first = [o for o in fitting if (o.model, o.method) == (case.model, method)]
    return (*first, *(o for o in ranked if o not in first))


def has_default(case: Case, options: Sequence[Option]) -> bool:
    """Whether the article's rule stands: no method's loss is known at this size, and none other
    than full fine-tuning was asked to show it."""
    own = [o for o in options if o.model == case.model and o.method != WHOLE]
    return not any(o.known for o in own) and case.max_accuracy_loss_pp is None


def settle_close(options: Sequence[Option]) -> list[Option]:
    """Options by dollars; those whose dollars the cheapest of them cannot be told from, by points:
    points lost where they are known of all, else shares kept and what their records' word is."""
    left, settled = list(options), []
    while left:
        group = [o for o in left if o is left[0] or too_close(left[0], o)]
        by_points = all(o.accuracy_loss for o in group)
        settled += sorted(group, key=lambda o: (o.points_lost or 0) if by_points else share_lost(o))
        left = [o for o in left if o not in group]
    return settled


def share_lost(option: Option) -> tuple[int, float]:
    if option.method == WHOLE:
        return GRADES.index("enough"), 0.0
    kept = min((piece.kept.mid for piece in option.kept if piece.kept), default=0.0)
    return GRADES.index(option.grade), 1 - kept


def too_close(one: Option, other: Option) -> bool:
    """Whether the dollars between two options decide nothing: they are within what their hours are
    uncertain by, or less than an hour of somebody's work costs."""
    if one.cost is None or other.cost is None:
        return False
    spans = (one.cost.training_usd, other.cost.training_usd)
    unsure = max((s.high - s.low) / 2 for s in spans)
    return abs(other.usd - one.usd) < max(unsure, SMALL_USD)


def weigh_option(case: Case, evidence: Evidence, model: str, method: str) -> Option:
    """One option with its cost, its accuracy and latency, and what it fails."""
    timed = nearest_latency(case, evidence, method) if method != WHOLE else None
    dynamic = widen_latency(case, evidence, timed)
    pieces = {way: nearest_accuracy(case, evidence, model, method, way) for way in WAYS}
    losses = {way: widen(*piece) for way, piece in pieces.items()}
    ways = allowed_ways(case, method, losses, dynamic)
    cost = cost_year(case, evidence, model, method, ways)
    way = "merged" if cost is None or cost.way == "whole" else cost.way
    measured, distance = pieces[way]
    loss = NOTHING if (model, method) == (case.model, WHOLE) else losses[way]
    latency = NOTHING if cost is None or cost.way != "apart" else dynamic
    keeps = shown(loss, case.max_accuracy_loss_pp) and (model == case.model or loss is not None)
    kept = kept_elsewhere(case, evidence, model, method, measured, distance)
    grade = grade_kept([ShareOfGain(piece) for piece in kept]) if kept else None
    quick = shown(latency, case.max_latency_overhead_percent)
    affordable = cost is not None and (case.budget_usd is None or cost.usd.mid <= case.budget_usd)
    jobs = allowed_jobs(case, evidence, model, method)
    holds = any(job.fit.may_run for job in jobs)
    ids = [*(cost.ids if cost else ()), *(measured.ids if measured else ())]
    ids += [i for piece in kept for i in piece.ids]
    if cost is not None and cost.way == "apart" and timed is not None:
        ids.append(timed.id)
    if cost is None:
        ids += [job.id for job in jobs]
    return Option(
        method=method,
        model=model,
        usd_per_year=cost.usd.mid if cost else None,
        fits=holds and affordable and keeps and quick and grade != "poor",
        accuracy_loss=loss,
        latency_overhead=latency,
        evidence=tuple(dict.fromkeys(ids)),
        cost=cost,
        fits_memory=holds,
        fits_budget=affordable,
        keeps_margin=keeps,
        keeps_latency=quick,
        keeps_gain=grade != "poor",
        grade=grade,
        kept=kept,
        measured=measured,
        distance=distance,
        timed=timed,
    )


class ShareOfGain:
    """A share's interval and seeds as studylib.reporting.team_advice judges it."""

    def __init__(self, piece: AccuracyEvidence) -> None:
        assert piece.kept is not None
        self.low, self.high, self.seeds = piece.kept.low, piece.kept.high, piece.seeds


def kept_elsewhere(
    case: Case,
    evidence: Evidence,
    model: str,
    method: str,
    measured: AccuracyEvidence | None,
    distance: Distance,
) -> tuple[AccuracyEvidence, ...]:
    """The shares of the gain that a method keeps: of this size's record, else of all records of the
    best kind of model and the largest, as the report's first screen takes them."""
    if model != case.model or method == WHOLE:
        return ()
    if measured is not None and distance.this_size:
        return (measured,) if measured.kept else ()
    found = [
        piece
        for piece in evidence.accuracy
        if piece.method == method
        and piece.against == piece.model
        and piece.kept
        and (piece.change == "language") == (case.change == "language")
    ]
    best = max((rank_learning(p.model, p.params) for p in found), default=None)
    return tuple(p for p in found if rank_learning(p.model, p.params) == best)


def allowed_ways(
    case: Case, method: str, losses: dict[Way, Range | None], dynamic: Range | None
) -> tuple[Way, ...]:
    """The ways to serve an adapter that keep the latency, and the accuracy where any does.

    Merged weights have the model's own shape and speed, so that this way is always quick enough.
    """
    apart_is_quick = shown(dynamic, case.max_latency_overhead_percent)
    quick = tuple(way for way in ways_of(method) if way == "merged" or apart_is_quick)
    good = tuple(way for way in quick if shown(losses[way], case.max_accuracy_loss_pp))
    return good or quick


def ways_of(method: str) -> tuple[Way, ...]:
    """How an adapter can be served; what cannot be switched between requests is merged."""
    return WAYS if "switch" in METHODS[method].serve else WAYS[:1]


def shown(figure: Range | None, limit: float | None) -> bool:
    """Whether the whole interval lies within a limit; no limit needs no showing."""
    return limit is None or (figure is not None and figure.high <= limit)


def nearest_accuracy(
    case: Case, evidence: Evidence, model: str, method: str, way: Way
) -> tuple[AccuracyEvidence | None, Distance]:
    """The measured gap nearest to the case, and how far away it is: of this size before others, of
    pretrained models before toys.

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
        kind = [-rank for rank in rank_learning(piece.model, 0)]
        order = (not away.this_size, piece.merged != (way == "merged"), away.tenfolds)
        found.append(((order[0], kind[:1], *order[1:], piece.ids), piece, away))
    if not found:
        return None, HERE
    _, piece, away = min(found, key=lambda entry: entry[0])
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


def widen(piece: AccuracyEvidence | None, distance: Distance) -> Range | None:
    """The measured points, the interval wider by its half for every factor of ten away; None where
    they are not known, or of a model of another size."""
    if piece is None or piece.loss_pp is None or not distance.this_size:
        return None
    return widen_range(piece.loss_pp, distance.tenfolds, -100.0, 100.0)


def widen_range(span: Range, distance: float, least: float, most: float) -> Range:
    if distance <= SAME:
        return span
    factor = 1 + distance
    return Range(
        low=max(least, span.mid - factor * (span.mid - span.low)),
        mid=span.mid,
        high=min(most, span.mid + factor * (span.high - span.mid)),
    )


def nearest_latency(case: Case, evidence: Evidence, method: str) -> LatencyEvidence | None:
    """The measured overhead of this method at the nearest size; none where that is no like it, or
    where it was timed on a processor and is of another model."""
    rows = [
        row
        for row in evidence.latency
        if row.method == method and (row.model == case.model or is_like(case, evidence, row))
    ]
    return min(rows, key=lambda row: (latency_distance(case, evidence, row), row.id), default=None)


def is_like(case: Case, evidence: Evidence, row: LatencyEvidence) -> bool:
    sizes = evidence.sizes_of.get((case.model, WHOLE))
    if sizes is None or row.params is None or row.device.upper().startswith("CPU"):
        return False
    return ratio(sizes.params, row.params) <= THIS_SIZE


def latency_distance(case: Case, evidence: Evidence, row: LatencyEvidence) -> float:
    """Factors of ten in parameters; none of the reader's own model."""
    sizes = evidence.sizes_of.get((case.model, WHOLE))
    if row.model == case.model or sizes is None or row.params is None:
        return 0.0
    return math.log10(ratio(sizes.params, row.params))


def widen_latency(case: Case, evidence: Evidence, row: LatencyEvidence | None) -> Range | None:
    """The measured per cent; no answer takes less than no time, which is -100."""
    if row is None:
        return None
    return widen_range(row.overhead_percent, latency_distance(case, evidence, row), -100.0, 1000.0)


def article_method(case: Case, options: Sequence[Option]) -> tuple[str, str]:
    """(method, why) by the rule; which of LoRA and QLoRA it leaves open: the first of the ranked
    options that fits, or that a card holds."""
    if case.change == "language":
        return WHOLE, "a new language is a deep change"
    margin = case.max_accuracy_loss_pp
    if margin is not None and margin < LAST_POINTS_PP:
        return WHOLE, f"a margin of {margin:g} pp asks for the last points"
    peft = [o for o in options if o.model == case.model and o.method in PEFT]
    if not peft:
        return WHOLE, "neither LoRA nor QLoRA is weighed"
    chosen = min(peft, key=lambda o: (not o.fits, not o.fits_memory))
    words = METHODS[chosen.method].in_words
    return chosen.method, f"PEFT is its default, and {words} the better one here"
