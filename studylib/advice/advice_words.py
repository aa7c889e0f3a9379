"""Advice in plain English: each sentence is built from figures and carries their ids.

Not covered: the figures (studylib.advice.rank_methods), what is missing
(studylib.advice.advise), and what would change the answer
(studylib.advice.turning_points).
"""

from __future__ import annotations

from collections.abc import Iterator

from studylib.advice.option import Distance, Option, Sentence
from studylib.advice.rank_methods import article_method, has_default
from studylib.advice.turning_points import capital, money, name_option
from studylib.core.metrics import byte_size, decimals
from studylib.planning.case import CHANGE_WORDS, AccuracyEvidence, Case, Evidence
from studylib.planning.yearly_cost import allowed_jobs
from studylib.reporting.evidence_kinds import model_words
from studylib.reporting.team_advice import share_range
from studylib.schema.methods import WHOLE
from studylib.schema.ranges import Range


def explain_options(
    case: Case, evidence: Evidence, options: tuple[Option, ...]
) -> tuple[Option, ...]:
    """The options with their reasons: cost, memory, accuracy, latency."""
    return tuple(
        option.model_copy(
            update={
                "reasons": (
                    explain_memory(case, evidence, option),
                    *explain_cost(case, option),
                    *explain_accuracy(case, option),
                    *explain_latency(case, option),
                )
            }
        )
        for option in options
    )


def say_answer(case: Case, options: tuple[Option, ...]) -> Sentence:
    """The answer in a sentence or two: the method, where, for how much, and by what."""
    best = options[0]
    if not best.fits:
        every = tuple(dict.fromkeys(i for option in options for i in option.evidence))
        words = "; ".join(
            f"{name_option(o, case)}: {' and '.join(name_failings(case, o))}" for o in options
        )
        return Sentence(text=f"Nothing fits: {words}.", evidence=every)
    assert best.cost is not None
    text = f"{capital(name_option(best, case))} on {cards_words(best)}"
    if has_default(case, options):
        _, why = article_method(case, options)
        named = (best.model, best.method) == (case.model, article_method(case, options)[0])
        text += f", by the article's rule ({why})" if named else ""
        text += ": what methods lose is not known at this size"
    elif (best.model, best.method) != (case.model, WHOLE):
        text += f": {loss_words(best)}"
    text += f". About {money(best.usd)} a year ({money_range(best.cost.usd)})."
    return Sentence(text=text, evidence=best.evidence)


def share_words(option: Option) -> str:
    """86 %, or 87 to 89 %: the middles of all its records."""
    return share_range(piece.kept.mid for piece in option.kept if piece.kept)


def loss_words(option: Option) -> str:
    """What the answer costs in points, or in share of the gain, or that nothing tells."""
    if option.accuracy_loss:
        lost = span_words(option.accuracy_loss)
        far = ", as measured" if option.distance.near else ", by a record from elsewhere"
        return f"it loses {lost} pp against full fine-tuning{far}"
    if option.kept and option.known:
        return f"it kept {share_words(option)} of full fine-tuning's gain"
    return "what it loses against full fine-tuning is not known at this size"


def name_failings(case: Case, option: Option) -> list[str]:
    """What an option fails, in words; empty where it fits."""
    words = []
    if not option.fits_memory:
        words.append("no allowed card holds its training")
    elif option.cost is None:
        words.append("its card has no price")
    elif not option.fits_budget:
        words.append(
            f"{money(option.usd)} a year is beyond the budget of {money(case.budget_usd or 0)}"
        )
    if not option.keeps_margin:
        margin = case.max_accuracy_loss_pp
        words.append(
            "nothing tells what it loses"
            if margin is None
            else f"it is not shown to stay within {margin:g} pp"
        )
    if not option.keeps_latency:
        words.append("it is not shown to be quick enough")
    if not option.keeps_gain:
        words.append(f"it kept {share_words(option)} of full fine-tuning's gain on "
                     f"{model_words(option.kept[0].model, option.kept[0].params)}")  # fmt: skip
    return words


def cards_words(option: Option) -> str:
    assert option.cost is not None
    job = option.cost.job
    return f"{job.gpus} × {job.gpu}" if job.gpus > 1 else job.gpu


def times_a_year(case: Case) -> str:
    count = case.trainings_per_year
    return "once a year" if count == 1 else f"{count:g} times a year"


def money_range(usd: Range) -> str:
    low, high = money(usd.low), money(usd.high)
    return "by all offers" if low == high else f"{low} to {high}"


def explain_memory(case: Case, evidence: Evidence, option: Option) -> Sentence:
    """The forecast peak against the card, on the chosen cards or on the nearest miss."""
    jobs = allowed_jobs(case, evidence, option.model, option.method)
    if not jobs:
        ids = tuple(s.id for s in evidence.sizes if s.model == option.model)[:1]
        return Sentence(text="Nothing was forecast for the cards at hand.", evidence=ids)
    job = option.cost.job if option.cost else min(jobs, key=lambda j: j.fit.least_bytes)
    cards = f"{job.gpus} cards {job.gpu}, each" if job.gpus > 1 else job.gpu
    verb = {"fits": f"fits {cards}", "does not fit": f"does not fit {cards}"}
    text = (
        f"Its training {verb.get(job.fit.word, f'is tight on {cards}')}: it needs "
        f"{byte_size(job.fit.least_bytes)} (forecast) of {byte_size(job.fit.usable_bytes)}."
    )
    return Sentence(text=text, evidence=(job.id,))


def explain_cost(case: Case, option: Option) -> list[Sentence]:
    """Training with its hours, and serving apart from it where it was asked for."""
    cost = option.cost
    if cost is None:
        return []
    hours = cost.hours
    each = "1 variant" if case.variants == 1 else f"{case.variants:,} variants, each"
    training = (
        f"Training: {each} {times_a_year(case)}, {hours.mid:,.2f} h "
        f"({hours.low:,.2f} to {hours.high:,.2f}, forecast; {cost.job.speed_source}) on "
        f"{cards_words(option)} = {money(cost.training_usd.mid)} "
        f"({money_range(cost.training_usd)}); storage {money(cost.storage_usd)}."
    )
    said = [Sentence(text=training, evidence=(cost.job.id, f"price:{cost.job.gpu}"))]
    return [*said, explain_serving(case, option)] if case.serving_hours_per_year else said


def explain_serving(case: Case, option: Option) -> Sentence:
    cost = option.cost
    assert cost is not None
    ways = {
        "whole": "each variant a whole model",
        "merged": "each adapter merged into a whole model",
        "apart": "adapters kept apart on one base",
    }
    text = (
        f"Serving on {cost.serving_gpu}, {ways[cost.way]}, all variants ready for "
        f"{case.serving_hours_per_year:,.0f} h = {money(cost.serving_usd.mid)} a year "
        f"({money_range(cost.serving_usd)})."
    )
    prices = [i for i in cost.ids if i.startswith("price:")]
    counts = [i for i in cost.ids if i.startswith("count:")]
    return Sentence(text=text, evidence=(*counts, *prices))


def explain_accuracy(case: Case, option: Option) -> Iterator[Sentence]:
    """The points lost, from which record, and how far from the case it was measured."""
    loss, piece, first = option.accuracy_loss, option.measured, option.evidence[:1]
    if (option.model, option.method) == (case.model, WHOLE):
        text = "Full fine-tuning of this model is what points are counted from."
        yield Sentence(text=text, evidence=first)
        return
    if option.kept and loss is None:
        if not option.known:
            text = "How many points it loses is not known at this size."
            yield Sentence(text=text, evidence=first)
        yield from map(tell_kept_gain, option.kept)
        return
    if piece is None or piece.loss_pp is None or loss is None:
        text = f"What it loses on {CHANGE_WORDS[case.change]} is not known at this size."
        yield Sentence(text=text, evidence=first)
        return
    text = (
        f"Measured on {piece.model}, {CHANGE_WORDS[piece.change]}, {piece.tokens:,} tokens: "
        f"{span_words(piece.loss_pp)} pp behind full "
        f"({piece.questions:,} questions, {seeds_words(piece.seeds)})."
    )
    yield Sentence(text=text, evidence=piece.ids)
    if not option.distance.near:
        text = (
            f"This case is elsewhere ({distance_words(option.distance)}), so the interval is taken "
            f"wider, {ends_words(loss, 1)} pp: a rule of caution, not a measurement."
        )
        yield Sentence(text=text, evidence=piece.ids)
    if piece.forgot_pp and piece.forgot_pp.low > 0:
        text = f"There it forgot {span_words(piece.forgot_pp)} pp of what the base knew."
        yield Sentence(text=text, evidence=piece.ids)


def tell_kept_gain(piece: AccuracyEvidence) -> Sentence:
    assert piece.kept is not None
    share = span_words(piece.kept * 100, 0)
    text = (
        f"On {model_words(piece.model, piece.params)}, {CHANGE_WORDS[piece.change]}, "
        f"{piece.tokens:,} tokens, it kept {share} % of full fine-tuning's gain "
        f"({seeds_words(piece.seeds)})."
    )
    return Sentence(text=text, evidence=piece.ids)


def seeds_words(seeds: int) -> str:
    return "1 seed" if seeds == 1 else f"{seeds} seeds"


def distance_words(distance: Distance) -> str:
    """What differs by how much: parameters × 9,000, tokens × 400, another kind of change."""
    ratios = {
        "parameters": distance.params_ratio,
        "trained tokens": distance.tokens_ratio,
        "facts": distance.facts_ratio,
    }
    words = [
        f"{name} differ {times:,.{0 if times >= 10 else 1}f} times"
        for name, times in ratios.items()
        if times >= 1.05
    ]
    return ", ".join([*words, *(["another kind of change"] if distance.other_kind else [])])


def span_words(span: Range, digits: int = 1) -> str:
    return f"{decimals(span.mid, digits)} ({ends_words(span, digits)})"


def ends_words(span: Range, digits: int) -> str:
    return " to ".join(decimals(end, digits) for end in (span.low, span.high))


def explain_latency(case: Case, option: Option) -> list[Sentence]:
    """What the chosen way of serving adds to an answer's time."""
    cost = option.cost
    if cost is None or not case.serving_hours_per_year:
        return []
    if cost.way != "apart":
        text = "Served as a whole model it has the model's own shape and speed: 0 % overhead."
        ids = tuple(i for i in cost.ids if i.startswith("count:"))
    elif (timed := option.timed) is None or (overhead := option.latency_overhead) is None:
        text = "What adapters kept apart add to an answer's time is not known at this size."
        ids = (cost.job.id,)
    else:
        text = (
            f"Adapters kept apart added {span_words(timed.overhead_percent)} % to an answer's time "
            f"on {timed.model} ({timed.device}); for this case {ends_words(overhead, 0)} % is "
            "assumed."
        )
        ids = (timed.id,)
    return [Sentence(text=text, evidence=ids)]
