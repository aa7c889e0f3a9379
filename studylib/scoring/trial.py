"""Ask a trained model and its base a few prompts, as the training spelled them.

Each prompt becomes one turn in the run's own template; the answer is greedy and ends where the
model ends its turn, or after so many tokens. The base's answer is that of the same weights without
what was learned: an adapter is switched off, a whole model's base is loaded beside it.

Not covered: which weights stayed (studylib.modelling.kept), answers that are measured
(studylib.scoring.measures).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studylib.core.errors import StudyError
from studylib.inputs.examples import shorten
from studylib.inputs.forms import Example
from studylib.inputs.tokens import tokenise
from studylib.modelling.kept import open_kept
from studylib.modelling.preflight import model_positions
from studylib.schema.records import Record
from studylib.scoring.greedy import Answer, answer_all
from studylib.scoring.measures import end_tokens, split_last

NO_LIMIT = 1 << 30  # tokens, where a model has no positions to run out of


@dataclass(frozen=True)
class Tried:
    """A prompt as it was asked, with the base's answer and the trained model's."""

    prompt: str
    base: Answer
    trained: Answer


def try_prompts(
    record: Record, folder: Path, prompts: Sequence[str], most: int, system: str | None = None
) -> list[Tried]:
    """Both answers to each prompt, `most` tokens long at most.

    folder: the run's. system: a text that stands before the conversation. StudyError: the run kept
    nothing, its base changed, or a prompt leaves no room for an answer.
    """
    loaded, model = open_kept(record, folder)
    template = str(record.fingerprint.get("data.template") or record.run.data.template)
    spelled = [spell_prompt(text, template, loaded.tokenizer, system) for text in prompts]
    positions = model_positions(model) or NO_LIMIT
    for text, (ids, _) in zip(prompts, spelled, strict=True):
        if len(ids) + most > positions:
            raise StudyError(
                shorten(text),
                f"{len(ids):,} tokens of prompt and {most:,} of answer are more than the model's "
                f"{positions:,} positions",
                "Shorten it, or ask for fewer tokens (--max-tokens).",
            )
    asked = [ids for ids, _ in spelled]
    stops = {stop for _, ends in spelled for stop in ends}
    adapter = record.run.method.kind.adapter
    trained = answer_all(model, loaded.tokenizer, asked, stops, most)
    with model.disable_adapter() if adapter else nullcontext():
        plain = model if adapter else loaded.model
        base = answer_all(plain, loaded.tokenizer, asked, stops, most)
    return [Tried(*row) for row in zip(prompts, base, trained, strict=True)]


def spell_prompt(
    prompt: str, template: str, tokenizer: Any, system: str | None
) -> tuple[list[int], set[int]]:
    """(tokens up to the answer, tokens that end it) of one turn in a template."""
    example: Example = {"instruction": prompt, "input": "", "output": "a"}
    if template == "chat" or system:
        turns = [("system", system), ("user", prompt), ("assistant", "a")]
        example = {"messages": [{"role": r, "content": text} for r, text in turns if text]}
    [tokens] = tokenise([example], template, tokenizer, NO_LIMIT)
    assert tokens is not None
    ids, answer = split_last(tokens)
    return ids, end_tokens(answer, tokenizer)
