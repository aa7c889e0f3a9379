"""What kind of evidence a model is: pretrained, with random weights, or a toy; which comes first.

A pretrained model on real data outranks the toys (`ladder:`), which are exact and fast and there to
check the methods. Random weights (`shape:`) bear figures of memory, time and cost, and none of what
is learned.

Not covered: what was found (studylib.reporting.kept, claims).
"""

from __future__ import annotations

from typing import Literal

from studylib.core.metrics import plain_number
from studylib.schema.profile import ModelRef

Kind = Literal["pretrained", "random", "toy"]
KINDS: dict[str, Kind] = {"shape": "random", "ladder": "toy"}
LEARNING_RANK: dict[Kind, int] = {"pretrained": 2, "toy": 1, "random": 0}
ARTICLE_SIZE = (12.0e9, 14.0e9)  # parameters: what counts as the article's 13B model


def kind_of_model(model: str) -> Kind:
    """The kind of a model by its source."""
    return KINDS.get(ModelRef.parse(model).kind, "pretrained")


def rank_learning(model: str, params: int | None) -> tuple[int, int]:
    """Higher is better evidence on what a method learns: the kind first, then the size."""
    return LEARNING_RANK[kind_of_model(model)], params or 0


def is_article_size(params: int | None) -> bool:
    low, high = ARTICLE_SIZE
    return low <= (params or 0) <= high


def model_words(model: str, params: int | None) -> str:
    """A model for a reader who has not met it: `a toy model of 1.41M parameters`."""
    size = f" of {parameter_count(params)} parameters" if params else ""
    if kind_of_model(model) == "toy":
        return f"a toy model{size}"
    if kind_of_model(model) == "random":
        return f"{ModelRef.parse(model).name}, random weights"
    return f"{short_name(model)}{size}"


def optimizer_words(name: str) -> str:
    """An optimizer other than the usual one: `a paged 8-bit optimizer`."""
    words = {"adamw-8bit": "an 8-bit optimizer", "paged-adamw-8bit": "a paged 8-bit optimizer"}
    return words.get(name, name)


def short_name(model: str) -> str:
    """The model in few words: the last part of a folder's or a hub's name, a package's name."""
    ref = ModelRef.parse(model)
    last = {"path": ref.slug, "gguf": ref.slug, "hub": ref.name.rsplit("/", 1)[-1],
            "pypi": ref.name.partition("==")[0]}  # fmt: skip
    return last.get(ref.kind, str(ref))


def parameter_count(count: float) -> str:
    """1.42M, 7.3B: parameters in the field's short form."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{plain_number(count / size, 3)}{unit}"
    return f"{int(count)}"
