"""Advice in plain English: each sentence is built from figures and carries their ids.

Not covered: the figures (studylib.advice.rank_methods), what is missing
(studylib.advice.missing_evidence), and what would change the answer
(studylib.advice.turning_points).
"""

from __future__ import annotations

from studylib.advice.rank_methods import Distance, Option, Sentence
from studylib.advice.turning_points import capital, money, name_option
from studylib.core.metrics import byte_size
from studylib.planning.case import CHANGE_WORDS, Case, Evidence, Span
from studylib.planning.yearly_cost import allowed_jobs
from studylib.schema.methods import WHOLE


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
                    *explain_latency(case, evidence, option),
                )
            }
        )
        for option in options
    )


def say_answer(case: Case, options: tuple[Option, ...]) -> Sentence:
    """The answer in a sentence or two."""
    best = options[0]
    if not best.fits:
        every = tuple(dict.fromkeys(i for option in options for i in option.evidence))
        words = "; ".join(fail_words(case, options))
        return Sentence(text=f"Nothing fits: {words}.", evidence=every)
    assert best.cost is not None
    text = (
        f"{capital(name_option(best, case))} on {cards_words(best)}: about {money(best.usd)} a year"
        f" ({money_range(best.cost.usd)})"
    )
    ids = list(best.evidence)
    if len(options) > 1 and options[1].fits:
        second = options[1]
        ids += second.evidence
        text += f", {money(second.usd - best.usd)} less than {name_option(second, case)}"
        if too_close(best, second):
            text += " (less than the forecast of their hours can tell apart)"
    text += "."
    if (best.model, best.method) != (case.model, WHOLE):
        text += f" {capital(loss_words(best))}."
    cheaper = [o for o in options if not o.fits and o.usd < best.usd]
    for option in cheaper:
        ids += option.evidence
        text += (
            f" {capital(name_option(option, case))} would cost {money(option.usd)}, but "
            f"{' and '.join(why_not(case, option))}."
        )
    return Sentence(text=text, evidence=tuple(dict.fromkeys(ids)))


def too_close(one: Option, other: Option) -> bool:
    """Whether the dollars between two options are within what their hours are uncertain by."""
    assert one.cost is not None and other.cost is not None
    spans = (one.cost.training_usd, other.cost.training_usd)
    unsure = max(((s.high or 0) - (s.low or 0)) / 2 for s in spans)
    return abs(other.usd - one.usd) < unsure


def loss_words(option: Option) -> str:
    """What the answer costs in points, or that nothing tells."""
    if not option.accuracy_loss.known:
        return "how many points it loses against full fine-tuning was never measured"
    lost = span_words(option.accuracy_loss)
    far = ", as measured" if option.distance.near else ", by a record from elsewhere"
    return f"it loses {lost} pp against full fine-tuning{far}"


def fail_words(case: Case, options: tuple[Option, ...]) -> list[str]:
    return [f"{name_option(o, case)}: {' and '.join(why_not(case, o))}" for o in options]


def why_not(case: Case, option: Option) -> list[str]:
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
    return words


def cards_words(option: Option) -> str:
    assert option.cost is not None
    job = option.cost.job
    return f"{job.gpus} × {job.gpu}" if job.gpus > 1 else job.gpu


def times_a_year(case: Case) -> str:
    count = case.trainings_per_year
    return "once a year" if count == 1 else f"{count:g} times a year"


def money_range(usd: Span) -> str:
    low, high = money(usd.low or 0), money(usd.high or 0)
    return "by all offers" if low == high else f"{low} to {high}"


def explain_memory(case: Case, evidence: Evidence, option: Option) -> Sentence:
    """The forecast peak against the card, on the chosen cards or on the nearest miss."""
    jobs = allowed_jobs(case, evidence, option.model, option.method)
    if not jobs:
        ids = tuple(s.id for s in evidence.sizes if s.model == option.model)[:1]
        return Sentence(text="Nothing was forecast for the cards at hand.", evidence=ids)
    job = option.cost.job if option.cost else min(jobs, key=lambda j: (not j.fits, j.peak_bytes))
    verb = "fits" if job.fits else "does not fit"
    cards = f"{job.gpus} cards {job.gpu}, each" if job.gpus > 1 else job.gpu
    text = (
        f"Its training {verb} {cards}: a peak of {byte_size(job.peak_bytes)} (forecast) of "
        f"{byte_size(job.usable_bytes)}."
    )
    return Sentence(text=text, evidence=(job.id,))


def explain_cost(case: Case, option: Option) -> list[Sentence]:
    """Training, storage and serving, with their hours and bytes."""
    cost = option.cost
    if cost is None:
        return []
    hours = cost.hours
    training = (
        f"Training: {case.variants:,} variants, each {times_a_year(case)}, "
        f"{hours.mid or 0:,.2f} h ({hours.low or 0:,.2f} to {hours.high or 0:,.2f}, forecast) on "
        f"{cards_words(option)} = {money(cost.training_usd.mid or 0)} "
        f"({money_range(cost.training_usd)})."
    )
    ways = {
        "whole": "each variant a whole model",
        "merged": "each adapter merged into a whole model",
        "apart": "adapters kept apart on one base",
    }
    where = f" on {cost.serving_gpu}" if cost.serving_gpu else ""
    serving = (
        f"Serving{where}, {ways[cost.way]}, all variants ready for "
        f"{case.serving_hours_per_year:,.0f} h = {money(cost.serving_usd.mid or 0)} "
        f"({money_range(cost.serving_usd)}); storage {money(cost.storage_usd)}."
    )
    prices = [i for i in cost.ids if i.startswith("price:")]
    counts = [i for i in cost.ids if i.startswith("count:")]
    return [
        Sentence(text=training, evidence=(cost.job.id, f"price:{cost.job.gpu}")),
        Sentence(text=serving, evidence=(*counts, *prices)),
    ]


def explain_accuracy(case: Case, option: Option) -> list[Sentence]:
    """The points lost, from which record, and how far from the case it was measured."""
    loss, piece = option.accuracy_loss, option.measured
    if (option.model, option.method) == (case.model, WHOLE):
        text = "Full fine-tuning of this model is what points are counted from."
        return [Sentence(text=text, evidence=option.evidence[:1])]
    if piece is None:
        text = f"How many points it loses on {CHANGE_WORDS[case.change]} was never measured."
        return [Sentence(text=text, evidence=option.evidence[:1])]
    measured = piece.loss_pp
    text = (
        f"Measured on {piece.model}, {CHANGE_WORDS[piece.change]}, {piece.tokens:,} tokens: "
        f"{span_words(measured)} pp behind full "
        f"({piece.questions:,} questions, {seeds_words(piece.seeds)})."
    )
    said = [Sentence(text=text, evidence=piece.ids)]
    if not option.distance.near:
        text = (
            f"This case is elsewhere ({distance_words(option.distance)}), so the interval is taken "
            f"wider, {minus(f'{loss.low:.1f} to {loss.high:.1f}')} pp: a rule of caution, not a "
            "measurement."
        )
        said.append(Sentence(text=text, evidence=piece.ids))
    kept = piece.kept_pp
    if kept.mid is not None and kept.low is not None and kept.low > 0:
        text = f"There it forgot {span_words(kept)} pp of what the base knew."
        said.append(Sentence(text=text, evidence=piece.ids))
    return said


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


def minus(text: str) -> str:
    return text.replace("-", "−")


def span_words(span: Span) -> str:
    return minus(f"{span.mid:.1f} ({span.low:.1f} to {span.high:.1f})")


def explain_latency(case: Case, evidence: Evidence, option: Option) -> list[Sentence]:
    """What the chosen way of serving adds to an answer's time."""
    cost = option.cost
    if cost is None:
        return []
    if cost.way != "apart":
        text = "Served as a whole model it has the model's own shape and speed: 0 % overhead."
        counts = tuple(i for i in cost.ids if i.startswith("count:"))
        return [Sentence(text=text, evidence=counts)]
    timed, overhead = option.timed, option.latency_overhead
    if timed is None:
        text = "What adapters kept apart add to an answer's time was never measured here."
        return [Sentence(text=text, evidence=(cost.job.id,))]
    text = (
        f"Adapters kept apart added {span_words(timed.overhead_percent)} % to an answer's time on "
        f"{timed.model} ({timed.device}); for this case "
        f"{minus(f'{overhead.low:.0f} to {overhead.high:.0f}')} % is assumed."
    )
    return [Sentence(text=text, evidence=(timed.id,))]
