"""The few sentences that bear an answer, as they are shown below it.

Not covered: every reason of every option (studylib.advice.advice_words).
"""

from __future__ import annotations

from collections.abc import Sequence

from studylib.advice.advice_words import (
    explain_memory,
    explain_serving,
    name_failings,
    share_words,
    span_words,
)  # fmt: skip
from studylib.advice.option import Flip, Option, Sentence
from studylib.advice.rank_methods import too_close, ways_of
from studylib.advice.turning_points import capital, money, name_option
from studylib.core.metrics import byte_size
from studylib.planning.case import Case, Evidence
from studylib.reporting.evidence_kinds import model_words
from studylib.reporting.notes import join_words
from studylib.schema.methods import WHOLE

MOST = 5


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
    return tuple(sentence for sentence in said if sentence is not None)[:MOST]


def compare_learning(case: Case, options: tuple[Option, ...]) -> Sentence | None:
    """What each adapter loses or keeps, in one sentence, best evidence first."""
    own = [o for o in options if o.model == case.model and o.method != WHOLE]
    known = [o for o in own if o.accuracy_loss.known]
    if known:
        words = [f"{name_option(o, case)} {span_words(o.accuracy_loss)} pp" for o in known]
        text = f"Behind full fine-tuning: {join_words(words)}."
        return Sentence(text=text, evidence=ids_of(known))
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
        f"Training and storage: {money(best.usd - (best.cost.serving_usd.mid or 0))} a year "
        f"({best.cost.hours.mid or 0:,.2f} h a training, speed {best.cost.job.speed_source})"
    )
    words = []
    for other in others:
        close = " (too near to decide)" if too_close(best, other) else ""
        assert other.cost is not None
        usd = money(other.usd - (other.cost.serving_usd.mid or 0))
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
