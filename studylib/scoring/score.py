"""All that a model is asked after its training: questions, and measures on held-out examples.

Not covered: each of the two (studylib.scoring.evaluate, studylib.scoring.held_out).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
from torch import nn

from studylib.schema.spec import RunSpec
from studylib.scoring.evaluate import Answers, NotANumber, build_lm, engine_of, evaluate_model
from studylib.scoring.held_out import HeldOut, measure_held_out
from studylib.scoring.samples import sample_answers


@dataclass(frozen=True)
class Scored:
    """What a model gave; None where it was not asked. samples: its answers to a few prompts."""

    answers: Answers | None
    held_out: HeldOut | None
    engine: str
    samples: pd.DataFrame | None = None

    def counts(self) -> dict[str, Any]:
        """What a record's evaluate block holds of it."""
        block: dict[str, Any] = {"scores": (), "engine": self.engine}
        if self.answers is not None:
            block |= self.answers.counts()
        return block | ({"measures": self.held_out.figures} if self.held_out is not None else {})

    def tables(self) -> dict[str, pd.DataFrame]:
        """Every item by file name."""
        found = {}
        if self.answers is not None:
            found["items.parquet"] = self.answers.items
        if self.held_out is not None:
            found["held_out.parquet"] = self.held_out.items
        if self.samples is not None:
            found["answers.parquet"] = self.samples
        return found

    def __add__(self, other: Scored) -> Scored:
        """Both together, this one's first; of the same items by other weights."""
        answers, held_out = self.answers, self.held_out
        if answers is not None and other.answers is not None:
            answers = answers + other.answers
        if held_out is not None and other.held_out is not None:
            held_out = held_out + other.held_out
        return Scored(answers, held_out, self.engine, self.samples)


def score_model(model: nn.Module, tokenizer: Any, spec: RunSpec, weights: str) -> Scored:
    """Ask the questions of a run's settings and take its measures. weights: which, in words.

    Raises NotANumber where the model's answers mean nothing.
    """
    lm, asked = build_lm(model, tokenizer), spec.evaluate
    answers = held_out = samples = None
    if asked.questions or asked.retention:
        answers = evaluate_model(model, tokenizer, asked, weights, lm)
    try:
        if asked.measures:
            held_out = measure_held_out(lm, tokenizer, spec, weights)
            if asked.samples:
                samples = sample_answers(lm, tokenizer, spec, weights)
    except NotANumber as error:
        raise NotANumber(f"{weights}: {error}") from None
    return Scored(answers, held_out, engine_of(lm), samples)
