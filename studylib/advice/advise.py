"""Advice on a case from evidence: the ranking, its reasons, what is missing, what would change it.

A pure function: the same case and evidence give the same words. Every sentence carries the ids of
the records, forecasts, counts and prices that it rests on.

Not covered: gathering the evidence (studylib.commands.gather), every reason of every option
(studylib.advice.advice_words), the text for people (studylib.advice.advice_text).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from studylib.advice.advice_words import (
    distance_words,
    explain_memory,
    explain_options,
    explain_serving,
    name_failings,
    say_answer,
    share_words,
    span_words,
)  # fmt: skip
from studylib.advice.article_rule import apply_article
from studylib.advice.option import ArticleSays, Flip, Missing, Option, Sentence
from studylib.advice.rank_methods import rank_options, too_close, ways_of
from studylib.advice.turning_points import capital, find_flips, money, name_option
from studylib.core.metrics import byte_size
from studylib.planning.case import CHANGE_WORDS, Case, Evidence
from studylib.reporting.evidence_kinds import model_words
from studylib.reporting.notes import join_words
from studylib.schema.methods import METHODS, WHOLE
from studylib.schema.settings import Frozen

MOST_REASONS = 5


class Advice(Frozen):
    """The answer. `answer` is what people read first."""

    ranking: tuple[Option, ...]
    missing_evidence: tuple[Missing, ...]
    changes_if: tuple[Flip, ...]
    article_says: ArticleSays
    reasons: tuple[Sentence, ...]
    answer: Sentence

    @property
    def best(self) -> Option | None:
        first = self.ranking[0]
        return first if first.fits else None


def advise(case: Case, evidence: Evidence) -> Advice:
    """Rank, explain, say what is missing, what would change it, and what the article says."""
    options = explain_options(case, evidence, rank_options(case, evidence))
    flips = find_flips(case, evidence, options)
    return Advice(
        ranking=options,
        missing_evidence=name_missing(case, evidence, options),
        changes_if=flips,
        article_says=apply_article(case, options),
        reasons=five_reasons(case, evidence, options, flips),
        answer=say_answer(case, options),
    )


def five_reasons(
    case: Case, evidence: Evidence, options: tuple[Option, ...], flips: tuple[Flip, ...]
) -> tuple[Sentence, ...]:
    """At most five sentences that bear the answer: points, fit, money, serving, what changes it."""
    best = options[0]
    said = [compare_learning(case, options), explain_memory(case, evidence, best)]
    if best.fits:
        said += [tell_cheaper(case, options), compare_money(case, options)]
        said.append(say_serving(case, evidence, best))
    said += [Sentence(text=flip.sentence, evidence=flip.evidence) for flip in flips if flip.value]
    return tuple(sentence for sentence in said if sentence is not None)[:MOST_REASONS]


def compare_learning(case: Case, options: tuple[Option, ...]) -> Sentence | None:
    """What each adapter loses or keeps, in one sentence, best evidence first."""
    own = [o for o in options if o.model == case.model and o.method != WHOLE]
    losses = {o: o.accuracy_loss for o in own if o.accuracy_loss}
    if losses:
        words = [f"{name_option(o, case)} {span_words(loss)} pp" for o, loss in losses.items()]
        text = f"Behind full fine-tuning: {join_words(words)}."
        return Sentence(text=text, evidence=ids_of([*losses]))
    kept = [o for o in own if o.kept]
    if not kept:
        return None
    piece = kept[0].kept[0]
    where = model_words(piece.model, piece.params)
    here = " This is about your size." if kept[0].known else " It may differ at your size."
    words = [f"{name_option(o, case)} {share_words(o)}" for o in kept]
    text = f"Of full fine-tuning's gain kept, on {where}: {join_words(words)}.{here}"
    return Sentence(text=text, evidence=ids_of(kept))


def ids_of(options: Sequence[Option]) -> tuple[str, ...]:
    """The records behind what options lose or keep."""
    found = [p for o in options for p in (*o.kept, *([o.measured] if o.measured else []))]
    return tuple(dict.fromkeys(i for piece in found for i in piece.ids))


def compare_money(case: Case, options: tuple[Option, ...]) -> Sentence:
    """Training's dollars of the answer beside those of the other options that fit."""
    best, others = options[0], [o for o in options[1:] if o.fits and o.cost is not None]
    assert best.cost is not None
    text = (
        f"Training and storage: {money(best.usd - best.cost.serving_usd.mid)} a year "
        f"({best.cost.hours.mid:,.2f} h a training, speed {best.cost.job.speed_source})"
    )
    words = []
    for other in others:
        close = " (too near to decide)" if too_close(best, other) else ""
        assert other.cost is not None
        usd = money(other.usd - other.cost.serving_usd.mid)
        words.append(f"{name_option(other, case)} {usd}{close}")
    text += f"; {join_words(words)}." if words else "."
    ids = dict.fromkeys(i for o in (best, *others) for i in o.evidence)
    return Sentence(text=text, evidence=tuple(ids))


def tell_cheaper(case: Case, options: tuple[Option, ...]) -> Sentence | None:
    """What would cost less, and what it fails."""
    cheaper = [o for o in options if not o.fits and o.usd < options[0].usd]
    if not cheaper:
        return None
    words = [
        f"{name_option(o, case)} would cost {money(o.usd)}, but "
        f"{' and '.join(name_failings(case, o))}"
        for o in cheaper
    ]
    ids = dict.fromkeys(i for option in cheaper for i in option.evidence)
    return Sentence(text=f"{capital('; '.join(words))}.", evidence=tuple(ids))


def say_serving(case: Case, evidence: Evidence, option: Option) -> Sentence:
    """Serving's dollars where it was asked for; else the memory that all variants take."""
    cost, sizes = option.cost, evidence.sizes_of[option.model, option.method]
    assert cost is not None
    if case.serving_hours_per_year:
        return explain_serving(case, option)
    count = f"{case.variants:,} variant" + ("" if case.variants == 1 else "s")
    whole = byte_size(case.variants * sizes.whole_bytes)
    verb = "takes" if case.variants == 1 else "take"
    text = f"Serving is not in it: {count} kept ready {verb} {whole} as whole models"
    if sizes.adapter_bytes and "apart" in ways_of(option.method):
        apart = sizes.base_bytes + case.variants * sizes.adapter_bytes
        text += f", {byte_size(apart)} as adapters on one base"
    text += " (--serving-hours-per-year 8760 adds a card that is rented all year)."
    return Sentence(text=text, evidence=(sizes.id,))


def name_missing(
    case: Case, evidence: Evidence, options: tuple[Option, ...]
) -> tuple[Missing, ...]:
    """What was never measured near the case, and the command that would measure it."""
    found = [*missing_accuracy(case, options), *missing_latency(case, options)]
    for left in evidence.left_out:
        what = f"{capital(left.what)} could not be used: {left.why}."
        found.append(Missing(what=what, command=left.command, evidence=options[0].evidence[:1]))
    if unpriced := [o for o in options if o.fits_memory and o.cost is None]:
        what = f"Nobody's price for {case.serving_gpu or case.gpu or 'the card'} is known."
        command = "study advise ... --usd-per-gpu-hour USD, or --prices FILE.csv"
        found.append(Missing(what=what, command=command, evidence=unpriced[0].evidence[:1]))
    return tuple(found)


def missing_accuracy(case: Case, options: tuple[Option, ...]) -> Iterator[Missing]:
    """Gaps that come from elsewhere or nowhere, with the run that would measure them."""
    for option in options:
        if (option.model, option.method) == (case.model, WHOLE):
            continue
        if option.accuracy_loss and option.distance.near:
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
        yield Missing(what=what, command=measure_command(models, methods), evidence=ids)


def worth_words(best: Option, option: Option) -> str:
    """What proof that an option keeps the margin would save in a year, if that is all it lacks."""
    if not option.lacks_proof_alone or not best.fits or option.usd >= best.usd:
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


def missing_latency(case: Case, options: tuple[Option, ...]) -> Iterator[Missing]:
    """The overhead of adapters kept apart, where it was not timed on this model."""
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
        yield Missing(what=what, command=command, evidence=ids)
