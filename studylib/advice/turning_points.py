"""What would change the answer: break-even variants, price, accuracy margin, budget.

Each is found by asking the same ranking again with another value, so that it cannot say otherwise
than the advice itself would.

Not covered: two inputs that change at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from studylib.advice.option import Flip, Option
from studylib.advice.rank_methods import rank_options
from studylib.planning.case import Case, Evidence
from studylib.schema.methods import METHODS

MOST_VARIANTS = 100_000

Winner = tuple[str, str] | None


def name_option(option: Option | None, case: Case) -> str:
    """The method in words, with the model where it is not the reader's own."""
    if option is None:
        return "nothing that fits"
    label = METHODS[option.method].in_words
    return label if option.model == case.model else f"{label} of {option.model}"


def money(usd: float) -> str:
    """Whole dollars, with cents below a hundred."""
    text = f"${abs(usd):,.0f}" if abs(usd) >= 100 else f"${abs(usd):,.2f}"
    return f"−{text}" if usd < 0 else text


def best_of(case: Case, evidence: Evidence) -> Option | None:
    first = rank_options(case, evidence)[0]
    return first if first.fits else None


def winner_of(option: Option | None) -> Winner:
    return None if option is None else (option.model, option.method)


def find_flips(case: Case, evidence: Evidence, options: tuple[Option, ...]) -> tuple[Flip, ...]:
    """Break-even variants, price ratio, accuracy margin and budget, those that there are."""
    best = options[0] if options[0].fits else None
    found = [
        *flip_variants(case, evidence, best),
        *flip_price(case, options),
        *flip_margin(case, options),
        *flip_budget(case, options),
    ]
    return tuple(found)


def flip_variants(case: Case, evidence: Evidence, best: Option | None) -> Iterator[Flip]:
    """The nearest numbers of variants, below and above, at which another answer begins."""

    def ask(variants: int) -> Option | None:
        return best_of(case.model_copy(update={"variants": variants}), evidence)

    edges = {step: first_other(ask, case.variants, winner_of(best), step) for step in (-1, 1)}
    for step, edge in edges.items():
        if edge is None:
            continue
        other = ask(edge)
        fewer = "one variant" if edge == 1 else f"{edge:,} variants or fewer"
        words = f"From {edge:,} variants on" if step > 0 else f"With {fewer}"
        text = f"{words} the answer would be {name_option(other, case)}."
        ids = (*(best.evidence if best else ()), *(other.evidence if other else ()))
        unique = tuple(dict.fromkeys(ids))
        yield Flip(what="variants", value=edge, sentence=text, evidence=unique)
    if best is not None and not any(edges.values()):
        text = f"No number of variants from 1 to {MOST_VARIANTS:,} would change the answer."
        yield Flip(what="variants", value=None, sentence=text, evidence=best.evidence)


def first_other(
    ask: Callable[[int], Option | None], start: int, winner: Winner, step: int
) -> int | None:
    """The number nearest to start, up or down, with another winner: doubling, then halving."""
    last, reach = start, 1
    while True:
        tried = start + step * reach
        tried = min(max(tried, 1), MOST_VARIANTS)
        if tried == last:
            return None
        if winner_of(ask(tried)) != winner:
            break
        last, reach = tried, reach * 2
    same, other = last, tried
    while abs(other - same) > 1:
        middle = (same + other) // 2
        if winner_of(ask(middle)) == winner:
            same = middle
        else:
            other = middle
    return other


def flip_price(case: Case, options: tuple[Option, ...]) -> list[Flip]:
    """At which ratio of hourly prices of training cards the runner-up costs as much."""
    fitting = [o for o in options if o.fits and o.cost is not None]
    if len(fitting) < 2:
        return []
    first, second = fitting[:2]
    one, other = first.cost, second.cost
    assert one is not None and other is not None
    ids = tuple(dict.fromkeys([*first.evidence, *second.evidence]))
    names = name_option(first, case), name_option(second, case)
    training = one.training_usd.mid
    if one.job.gpu == other.job.gpu:
        text = (
            f"{names[0]} and {names[1]} train on the same card ({one.job.gpu}), so that its price "
            f"moves both: the difference is {money(other.usd.mid - one.usd.mid)} a year now."
        )
        return [Flip(what="price ratio", value=None, sentence=capital(text), evidence=ids)]
    if training <= 0:
        return []
    factor = (training + other.usd.mid - one.usd.mid) / training
    text = (
        f"If an hour of {one.job.gpu} cost {factor:,.2f} times as much for training, all else "
        f"alike, {names[1]} on {other.job.gpu} would cost no more than {names[0]}."
    )
    return [Flip(what="price ratio", value=factor, sentence=text, evidence=ids)]


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def flip_margin(case: Case, options: tuple[Option, ...]) -> Iterator[Flip]:
    """The margin from which on a cheaper method is shown to be good enough, or ours no longer."""
    best, what = options[0] if options[0].fits else None, "accuracy margin"
    for option in options if case.max_accuracy_loss_pp is not None else ():
        cheaper = best is None or option.usd < best.usd
        if option.lacks_proof_alone and cheaper and option.accuracy_loss:
            high = option.accuracy_loss.high
            text = (
                f"With a margin of {high:.1f} pp or more {name_option(option, case)} would do, for "
                f"{money(option.usd)} a year."
            )
            yield Flip(what=what, value=high, sentence=text, evidence=option.evidence)
    if best is not None and best.accuracy_loss and (high := best.accuracy_loss.high) > 0:
        text = (
            f"With a margin below {high:.1f} pp {name_option(best, case)} is not shown to be good "
            "enough by the evidence that there is."
        )
        yield Flip(what=what, value=high, sentence=text, evidence=best.evidence)
    elif best is not None and not best.accuracy_loss:
        text = (
            f"With any margin {name_option(best, case)} is not shown to be good enough: nothing "
            "like it was measured."
        )
        yield Flip(what=what, value=None, sentence=text, evidence=best.evidence)


def flip_budget(case: Case, options: tuple[Option, ...]) -> list[Flip]:
    """The budget from which on something cheaper than ours, or anything at all, fits."""
    if case.budget_usd is None or options[0].fits:
        return []
    lacking = [
        o for o in options
        if o.fits_memory and o.keeps_margin and o.keeps_latency and o.usd_per_year is not None
    ]  # fmt: skip
    if not lacking:
        return []
    option = min(lacking, key=lambda o: o.usd)
    text = f"From {money(option.usd)} a year on {name_option(option, case)} would fit the budget."
    return [Flip(what="budget", value=option.usd, sentence=text, evidence=option.evidence)]
