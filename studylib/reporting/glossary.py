"""The words that the report uses, each once in plain English; first screens lead here.

Not covered: columns and tests of the appendices (studylib.reporting.appendix.words_table).
"""

from __future__ import annotations

from collections.abc import Sequence

from studylib.reporting.appendix_files import slug
from studylib.reporting.article import enough_words
from studylib.reporting.blocks import Block, Heading, Text
from studylib.reporting.made_from import REPORT

TITLE = "Words"
WORDS_LINK = f"{REPORT}#{slug(TITLE)}"
TERMS = {
    "full fine-tuning": "all weights of a model are trained",
    "PEFT, adapter": "the model stays as it is; a small set of added weights, the adapter, is "
    "trained beside it",
    "LoRA, r=16": "an adapter of two thin matrices beside each weight matrix; r is how thin, its "
    "rank",
    "QLoRA": "LoRA on a model whose own weights are held in 4 bits",
    "LoRA + embeddings": "LoRA that also trains the table of words, which a new language needs",
    "base": "the model before any training",
    "merged, dynamic": "an adapter added into the weights before serving, or computed beside them "
    "at each token",
    "toy model": "one of the small models that come with the study (`ladder:`); they check methods",
    "random weights": "a model of the published shape, untrained (`shape:`): its memory, time and "
    "cost are real, what it answers is not",
    "counted, measured, forecast": "exact arithmetic on a model's shape; taken from a run on "
    "record; one training step traced without a card",
    "points, pp": "percentage points: from 70 % to 68 % is −2 pp",
    "gain, gap": "what a method reached less the base's; less full fine-tuning's",
    "kept knowledge": "change on what the base knew before; below zero it has forgotten",
    "±, [ ]": "95 % interval: over subjects or examples, and over seeds where there are several",
    "no clear difference": "the gap may be chance, all methods of the table considered (p by Holm "
    "above 0.05)",
    "enough": enough_words(),
    "seed": "one of several trainings that differ in chance alone, as the order of the data",
    "track": "one of a study's tasks: its data and its questions",
    "rows × tokens": "what one step reads at once: examples, and tokens in each",
    "checkpointing": "parts of a step are computed twice to save memory",
    "packed, padded": "examples set one after the other in a row, or one a row and filled up",
    "NVML": "the memory that the card's driver counts: what one rents",
    "live tensors": "without a card: the bytes of all tensors alive in a training step, counted",
    "Clean step": "median time of one update, warm-up and loading left out",
    "Train peak": "largest memory in training",
    "One more variant": "bytes on disk that one more fine-tuned model needs",
}


def glossary(measured: Sequence[tuple[str, str]] = ()) -> list[Block]:
    """The part on words, each below a heading of its own, which links lead to. measured: name and
    meaning of measures on held-out examples."""
    blocks: list[Block] = [Heading(2, TITLE)]
    for word, meaning in (*TERMS.items(), *measured):
        blocks += [Heading(4, word), Text(meaning)]
    return blocks


def word_link(word: str) -> str:
    """A link's target: one term of the words. KeyError: there is no such term."""
    if word not in TERMS:
        raise KeyError(word)
    return f"{REPORT}#{slug(word)}"
