"""Advice as people read it: the answer, the ranking with reasons and ids, what would change it.

Not covered: the sentences themselves (studylib.advice.advice_words).
"""

from __future__ import annotations

from studylib.advice.advice_words import name_failings, times_a_year
from studylib.advice.advise import Advice
from studylib.advice.turning_points import capital, money, name_option
from studylib.planning.case import CHANGE_WORDS, Case


def format_advice(case: Case, advice: Advice, why: bool = False) -> str:
    """Advice for people: the answer and five reasons at most. why: also the case's assumptions, the
    ranking with its evidence, what is missing, and what would change it."""
    lines = [advice.answer.text, *(f"- {reason.text}" for reason in advice.reasons)]
    if not why:
        return "\n".join([*lines, "", "More, with the records behind it: --why"])
    costs = "training, storage" + (", serving" if case.serving_hours_per_year else "")
    lines += ["", describe_case(case), "", f"Ranking, dollars a year ({costs}):"]
    for rank, option in enumerate(advice.ranking, 1):
        usd = "no price" if option.usd_per_year is None else f"{money(option.usd_per_year)}"
        state = "fits" if option.fits else "; ".join(name_failings(case, option))
        lines.append(f"{rank}. {capital(name_option(option, case))}: {usd}, {state}")
        lines += [f"   - {reason.text} [{tell_ids(reason.evidence)}]" for reason in option.reasons]
    lines += ["", "What would change it:"]
    lines += [f"- {f.sentence} [{tell_ids(f.evidence)}]" for f in advice.changes_if]
    lines += ["", "What nothing here tells, and the command that would:"]
    lines += [
        f"- {m.what} [{tell_ids(m.evidence)}]\n  {m.command}" for m in advice.missing_evidence
    ]
    lines += ["", advice.article_says.sentence]
    return "\n".join(lines)


def describe_case(case: Case) -> str:
    """The case and its assumptions in a sentence."""
    cards = f"{case.gpus} × {case.gpu}" if case.gpu else "any card on offer"
    variants = "1 variant" if case.variants == 1 else f"{case.variants:,} variants"
    hours = case.serving_hours_per_year
    serving = (
        f"all variants ready {hours:,.0f} h a year on a card at least, beyond it by share of "
        "memory (a fifth kept free for requests)"
        if hours
        else "no card rented for serving"
    )
    return (
        f"{case.model}, {CHANGE_WORDS[case.change]}, {case.tokens:,} tokens × {case.epochs:g} "
        f"epochs, {variants} trained {times_a_year(case)}, on {cards}. Assumed: the recipe of a "
        "study on a card (bf16, AdamW, fp32 masters in full fine-tuning, loss in pieces, "
        "checkpointing, packed rows of 2,048 tokens, adapters of rank 16 on all linear layers); "
        f"{serving}; storage at ${case.usd_per_gb_month:g} a GB and month."
    )


def tell_ids(ids: tuple[str, ...]) -> str:
    """The first ids in full, the others counted."""
    shown = ", ".join(ids[:2])
    return shown + (f" and {len(ids) - 2} more" if len(ids) > 2 else "")
