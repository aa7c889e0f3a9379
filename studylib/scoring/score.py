"""All that a model is asked after its training: questions, measures, and a few prompts to be read.

The prompts are the held-out examples of the lowest hash: the same for every model, whatever it
answers. Plain text is continued from the middle of its first window. Answers are greedy, bounded in
tokens and in seconds, and kept so that methods can be read side by side.

Not covered: questions (studylib.scoring.evaluate), measures and whether an answer is right
(studylib.scoring.held_out, measures), showing the answers (studylib.reporting.own_study).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
from torch import nn

from studylib.inputs.forms import Example, messages_of
from studylib.schema.spec import RunSpec
from studylib.scoring.evaluate import Answers, NotANumber, build_lm, engine_of, evaluate_model
from studylib.scoring.greedy import answer_all
from studylib.scoring.held_out import HeldOut, measure_held_out, read_held_out, take
from studylib.scoring.measures import Asked, item_id

MOST_TOKENS = 128  # of an answer
MOST_SECONDS = 60.0  # of a batch of them; such an answer is marked as unfinished
COLUMNS = ("item", "prompt", "answer", "given", "finished", "weights")


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


def sample_answers(lm: Any, tokenizer: Any, spec: RunSpec, weights: str) -> pd.DataFrame:
    """COLUMNS of each prompt: what was asked, the reference, what the model gave, whether it ended
    by itself. Empty where no prompt fits the model's context. weights: which, in words."""
    chosen = take(read_held_out(spec), spec.evaluate.samples)
    asked = Asked(lm, tokenizer, spec, chosen)
    texts = "text" in chosen[0]
    rows = text_rows(asked) if texts else prompt_rows(asked)
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return frame.assign(weights=weights)


def prompt_rows(asked: Asked) -> list[dict[str, Any]]:
    most = min(MOST_TOKENS, asked.lm.max_length // 2)
    room = asked.lm.max_length - most
    prompts = [one.prompt_ids[-room:] for one in asked.prompted]
    ends = {i for one in asked.prompted for i in one.answer_ids}
    stops = ends & set(asked.tokenizer.all_special_ids) | {asked.tokenizer.eos_token_id}
    found = answer_all(asked.lm.model, asked.tokenizer, prompts, stops, most, MOST_SECONDS)
    return [
        {"item": item_id(one.example), "prompt": show_prompt(one.example), "answer": one.answer,
         "given": said.text, "finished": said.finished}
        for one, said in zip(asked.prompted, found, strict=True)
    ]  # fmt: skip


def text_rows(asked: Asked) -> list[dict[str, Any]]:
    """Each text's first window, cut in the middle: the first half is given, what the model makes of
    it stands beside the second."""
    made = asked.tokenise(asked.unfolded.pieces, asked.seq_len)
    firsts = {of: tokens for of, tokens in reversed(list(zip(asked.unfolded.of, made, strict=True)))
              if tokens is not None and len(tokens["input_ids"]) > 1}  # fmt: skip
    order = sorted(firsts)
    halves = {of: len(firsts[of]["input_ids"]) // 2 for of in order}
    prompts = [firsts[of]["input_ids"][max(0, halves[of] - MOST_TOKENS) : halves[of]]
               for of in order]  # fmt: skip
    most = min(MOST_TOKENS, asked.lm.max_length // 2)
    stops = {asked.tokenizer.eos_token_id}
    found = answer_all(asked.lm.model, asked.tokenizer, prompts, stops, most, MOST_SECONDS)

    def spell(ids: Any) -> str:
        return str(asked.tokenizer.decode(ids, skip_special_tokens=True))

    return [
        {"item": item_id(asked.examples[of]), "prompt": spell(prompt),
         "answer": spell(firsts[of]["input_ids"][halves[of] : halves[of] + most]),
         "given": said.text, "finished": said.finished}
        for of, prompt, said in zip(order, prompts, found, strict=True)
    ]  # fmt: skip


def show_prompt(example: Example) -> str:
    """What an example asks, as people read it: one question as it stands, else who said what."""
    before = messages_of(example)[:-1]
    if len(before) == 1:
        return str(before[0]["content"])
    return "\n".join(f"{message['role']}: {message['content']}" for message in before)
