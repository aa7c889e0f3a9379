"""What was never measured near a case, and the command that would measure it.

Not covered: what is known (studylib.advice.evidence).
"""

from __future__ import annotations

from studylib.advice.advice_words import distance_words
from studylib.advice.option import Missing, Option
from studylib.advice.turning_points import capital, money, name_option
from studylib.planning.case import CHANGE_WORDS, Case, Evidence
from studylib.schema.methods import METHODS, WHOLE


def name_missing(
    case: Case, evidence: Evidence, options: tuple[Option, ...]
) -> tuple[Missing, ...]:
    """What was never measured near the case, and the command that would measure it."""
    found = [
        *missing_accuracy(case, options),
        *missing_latency(case, options),
    ]
    for left in evidence.left_out:
        what = f"{capital(left.what)} could not be used: {left.why}."
        found.append(Missing(what=what, command=left.command, evidence=options[0].evidence[:1]))
    unpriced = [o for o in options if o.fits_memory and o.cost is None]
    if unpriced:
        job = f"{case.serving_gpu or case.gpu or 'the card'}"
        found.append(
            Missing(
                what=f"Nobody's price for {job} is known.",
                command="study advise ... --usd-per-gpu-hour USD, or --prices FILE.csv",
                evidence=unpriced[0].evidence[:1],
            )
        )
    return tuple(found)


def missing_accuracy(case: Case, options: tuple[Option, ...]) -> list[Missing]:
    """Gaps that come from elsewhere or nowhere, with the run that would measure them."""
    found = []
    for option in options:
        if (option.model, option.method) == (case.model, WHOLE):
            continue
        if option.accuracy_loss.known and option.distance.near:
            continue
        methods = WHOLE if option.method == WHOLE else f"{WHOLE},{option.method}"
        models = case.model if option.model == case.model else f"{case.model},{option.model}"
        away = (
            f"; the nearest record is elsewhere: {distance_words(option.distance)}"
            if option.measured and not option.distance.near
            else ""
        )
        what = (
            f"The points that {name_option(option, case)} loses on {CHANGE_WORDS[case.change]} at "
            f"this size and amount of data{away}.{worth_words(options[0], option)}"
        )
        ids = tuple(dict.fromkeys([*option.evidence, *options[0].evidence]))
        found.append(Missing(what=what, command=measure_command(models, methods), evidence=ids))
    return found


def worth_words(best: Option, option: Option) -> str:
    """What proof that an option keeps the margin would save in a year, if that is all it lacks."""
    lacks = option.fits_memory and option.fits_budget and option.keeps_latency
    if option.keeps_margin or not lacks or not best.fits or option.usd >= best.usd:
        return ""
    return f" If it keeps the margin, the year costs {money(best.usd - option.usd)} less."


def measure_command(models: str, methods: str) -> str:
    """The command that measures methods on models; a shape has no weights to measure with."""
    names = [
        f"hub:ORGANISATION/{name.partition(':')[2]}" if name.startswith("shape:") else name
        for name in models.split(",")
    ]
    if all(name.startswith("ladder:") for name in names):
        return f"study reproduce --profile cpu --model {','.join(names)} --methods {methods}"
    return (
        f"study reproduce --profile custom --model {','.join(names)} --data FILE --mmlu FOLDER "
        f"--methods {methods} --seeds 0,1,2"
    )


def missing_latency(case: Case, options: tuple[Option, ...]) -> list[Missing]:
    """The overhead of adapters kept apart, where it was not timed on this model."""
    found = []
    for option in options:
        timed = option.timed
        asked = case.max_latency_overhead_percent is not None
        apart = option.cost is not None and option.cost.way == "apart"
        if option.method == WHOLE or not (asked or apart):
            continue
        if timed is not None and timed.model == case.model:
            continue
        where = f"; the nearest record is of {timed.model}" if timed else ""
        what = (
            f"What {METHODS[option.method].in_words} adapters kept apart on {case.model} add to an "
            f"answer's time{where}."
        )
        command = (
            "study serve --profile cpu"
            if case.model.startswith("ladder:")
            else f"study serve --profile FILE.yaml (with models: [{case.model}])"
        )
        ids = (timed.id,) if timed else option.evidence[:1]
        found.append(Missing(what=what, command=command, evidence=ids))
    return found
