"""The words that the report uses, each once in plain English; first screens lead here.

Not covered: what they say, which is in words.yaml for a writer to change.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import yaml

from studylib.core.places import PACKAGE
from studylib.reporting.appendix_files import slug
from studylib.reporting.article import enough_words
from studylib.reporting.blocks import Block, Heading, Text
from studylib.reporting.made_from import REPORT

TITLE = "Words"
WORDS_LINK = f"{REPORT}#{slug(TITLE)}"


@lru_cache(maxsize=1)
def read_words() -> dict[str, Any]:
    """The report's fixed texts by name (words.yaml)."""
    return yaml.safe_load((PACKAGE / "words.yaml").read_text(encoding="utf-8"))


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
