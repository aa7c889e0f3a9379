"""The report's fixed texts: its words, each once in plain English, and the article that it checks.

What they say is in words.yaml and article.yaml, for a writer to change.

Not covered: the claims themselves (claims.yaml), advice (studylib.reporting.team_advice).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml

from studylib.core.places import PACKAGE
from studylib.reporting.appendix_files import slug
from studylib.reporting.blocks import Block, Heading, Text
from studylib.reporting.made_from import REPORT

TITLE = "Words"
WORDS_LINK = f"{REPORT}#{slug(TITLE)}"
SEED_WORDS = {1: "one seed", 2: "two seeds"}


@cache
def read_texts(name: str) -> Any:
    """What a file of the package says that is there for a writer to change."""
    return yaml.safe_load((PACKAGE / name).read_text(encoding="utf-8"))


def read_words() -> dict[str, Any]:
    """The report's fixed texts by name."""
    return read_texts("words.yaml")


def say(name: str, **holes: object) -> str:
    """A text of words.yaml with its holes filled."""
    return read_words()[name].format(**holes)


def glossary(measured: Sequence[tuple[str, str]] = ()) -> list[Block]:
    """The part on words, each below a heading of its own, which links lead to. measured: name and
    meaning of measures on held-out examples."""
    blocks: list[Block] = [Heading(2, TITLE)]
    for word, meaning in (*read_words()["terms"].items(), *measured):
        blocks += [Heading(4, word), Text(meaning.replace("{enough}", enough_words()))]
    return blocks


def word_link(word: str) -> str:
    """A link's target: one term of the words. KeyError: there is no such term."""
    if word not in read_words()["terms"]:
        raise KeyError(word)
    return f"{REPORT}#{slug(word)}"


@dataclass(frozen=True)
class Enough:
    """When a method is enough. share: of full fine-tuning's gain, above which its whole interval
    lies; poor: below which it lies where the method is no choice; seeds: in as many, or more."""

    share: float
    poor: float
    seeds: int


def read_article() -> dict[str, Any]:
    """title, publisher, address, rule of the article; `enough` of the advice."""
    return read_texts("article.yaml")


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
