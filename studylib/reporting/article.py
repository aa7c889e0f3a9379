"""The article whose claims are checked, and what counts as enough in the advice (article.yaml).

Not covered: the claims themselves (claims.yaml), advice (studylib.reporting.team_advice).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import yaml

from studylib.core.places import PACKAGE

SEED_WORDS = {1: "one seed", 2: "two seeds"}


@dataclass(frozen=True)
class Enough:
    """When a method is enough. share: of full fine-tuning's gain, above which its whole interval
    lies; poor: below which it lies where the method is no choice; seeds: in as many, or more."""

    share: float
    poor: float
    seeds: int


@lru_cache(maxsize=1)
def read_article() -> dict[str, Any]:
    """title, publisher, address, rule of the article; `enough` of the advice."""
    return yaml.safe_load((PACKAGE / "article.yaml").read_text(encoding="utf-8"))


def enough_rule() -> Enough:
    return Enough(**read_article()["enough"])


def enough_words() -> str:
    """The rule as the glossary has it."""
    rule = enough_rule()
    return (
        "the whole 95 % interval of what a method keeps lies above "
        f"{100 * rule.share:g} % of full fine-tuning's gain, in {rule.seeds} seeds or more"
    )


def few_seeds(seeds: int | None) -> str:
    """How many seeds a figure rests on where that is fewer than the rule asks; else empty."""
    if seeds is None or seeds >= enough_rule().seeds:
        return ""
    return SEED_WORDS.get(seeds, f"{seeds} seeds")
