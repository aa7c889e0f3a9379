"""The article's rule on a case: PEFT by default, full for a deep change or the last points.

studylib/article.yaml has it in the article's words.

Not covered: where the evidence parts ways with it (studylib.advice.article_rule).
"""

from __future__ import annotations

from collections.abc import Sequence

from studylib.advice.option import Option
from studylib.planning.case import Case
from studylib.schema.methods import ARTICLE, METHODS, WHOLE

LAST_POINTS_PP = 1.0
PEFT = tuple(name for name in ARTICLE if METHODS[name].adapter)


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
