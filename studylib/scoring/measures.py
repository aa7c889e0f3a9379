"""The measures on held-out examples: one function each, from a model and examples to rows by item.

What a measure needs of an example (a prompt, a number in the reference, an answer within seq_len)
and does not find there leaves that example out of it.

Not covered: which examples, and figures with intervals (studylib.scoring.held_out).
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any

import numpy as np

from studylib.inputs.data import Tokenised, prompt_and_answer, tokenise
from studylib.inputs.forms import Example
from studylib.inputs.parts import hash_of
from studylib.inputs.templates import Unfolded
from studylib.inputs.tokens import unfold
from studylib.planning.answers import answer_of, check_prompts, read_labels
from studylib.schema.spec import RunSpec
from studylib.scoring.answer_loss import learned_spans, measure_losses, score_labels
from studylib.scoring.evaluate import NotANumber, choose_all
from studylib.scoring.greedy import Answer, answer_all
from studylib.scoring.token_tree import common_prefix_length

MOST_NEW_TOKENS, MARGIN_TOKENS = 512, 16
TAIL, MOST_TAILS = 16, 256  # characters before a label; how many such ends are remembered
Rows = list[dict[str, Any]]
Counts = dict[str, int]
Choices = list[tuple[list[int], list[int]]]
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True)
class Prompted:
    """An example that asks for one answer, as texts and as tokens, the end of turn with the
    answer's."""

    example: Example
    prompt: str
    prompt_ids: list[int]
    answer: str
    answer_ids: list[int]

    def row(self, value: float, given: str) -> dict[str, Any]:
        texts = {"prompt": self.prompt, "answer": self.answer, "given": given}
        return row_of(self.example, value) | texts


@dataclass(frozen=True)
class Asked:
    """Examples to be measured with the model that is asked."""

    lm: Any
    tokenizer: Any
    spec: RunSpec
    examples: Sequence[Example]

    @property
    def template(self) -> str:
        return self.spec.data.template

    @property
    def seq_len(self) -> int:
        """Tokens of an example as in training, as far as the model's context reaches."""
        return min(self.spec.train.seq_len, self.lm.max_length)

    @cached_property
    def unfolded(self) -> Unfolded:
        """The examples as in training: a text as windows, without what the template refuses."""
        return unfold(self.examples, self.template, self.tokenizer, self.seq_len)

    @cached_property
    def prompted(self) -> list[Prompted]:
        """Examples with a prompt that fits the model's context, and their last answer. StudyError:
        plain text has no prompt."""
        check_prompts(self.examples, self.spec.track)
        kept = [self.examples[i] for i in dict.fromkeys(self.unfolded.of)]
        made = self.tokenise(kept, self.lm.max_length)
        found = []
        for example, tokens in zip(kept, made, strict=True):
            if tokens is not None:
                prompt, answer = split_last(tokens)
                text = prompt_and_answer(example, self.template, self.tokenizer)[0]
                found.append(Prompted(example, text, prompt, answer_of(example), answer))
        return found

    def count_long(self, measured: int) -> Counts:
        """Of the examples that the template takes, those of which nothing fits the context."""
        return {"too_long": len(set(self.unfolded.of)) - measured}

    @cached_property
    def answers(self) -> tuple[list[Answer], Counts]:
        """The greedy answer to each prompt, made once for all measures that read it."""
        longest = max((len(one.answer_ids) for one in self.prompted), default=1)
        most = min(longest + MARGIN_TOKENS, MOST_NEW_TOKENS, self.lm.max_length // 2)
        prompts = [one.prompt_ids for one in self.prompted]
        room = self.lm.max_length - most
        ends = {i for one in self.prompted for i in one.answer_ids}
        stops = end_tokens(ends, self.tokenizer)
        found = answer_all(self.lm.model, self.tokenizer, [p[-room:] for p in prompts], stops, most)
        return found, {
            "max_new_tokens": most,
            "unfinished": sum(not answer.finished for answer in found),
            "prompts_cut": sum(len(prompt) > room for prompt in prompts),
            **self.count_long(len(self.prompted)),
        }

    def tokenise(self, examples: Sequence[Any], length: int) -> list[Tokenised | None]:
        return tokenise(examples, self.template, self.tokenizer, length)


def loss_rows(asked: Asked) -> tuple[Rows, Counts]:
    made = asked.tokenise(asked.unfolded.pieces, asked.seq_len)
    usable = [i for i, t in enumerate(made) if t is not None and learned_spans(t["labels"])]
    losses = measure_losses(
        asked.lm, asked.tokenizer, [t for i in usable if (t := made[i]) is not None]
    )
    broken = sum(not math.isfinite(loss.nats) for loss in losses)
    if broken:
        raise NotANumber(f"the loss of {broken:,} of {len(losses):,} held-out examples")
    rows = []
    for i, loss in zip(usable, losses, strict=True):
        found = {"nats": loss.nats, "tokens": loss.tokens, "bytes": loss.bytes}
        example = asked.examples[asked.unfolded.of[i]]
        if loss.bytes > 0:
            rows.append(row_of(example, loss.nats / loss.tokens) | found)
    fit = {of for t, of in zip(made, asked.unfolded.of, strict=True) if t is not None}
    return number_windows(rows), asked.count_long(len(fit))


def number_windows(rows: Rows) -> Rows:
    """Items of one example told apart: windows of a text, answers of a conversation."""
    seen = Counter[str]()
    for row in rows:
        seen[row["group"]] += 1
        row["item"] += f".{seen[row['group']]}" if seen[row["group"]] > 1 else ""
    return rows


def label_rows(asked: Asked) -> tuple[Rows, Counts]:
    """An example whose label never occurs in training cannot be right, and counts as wrong."""
    known = read_labels(asked.spec.data)
    spelled = list(spell_labels(asked, known))
    chosen = choose_all(list(score_labels(asked.lm, (choices for _, choices in spelled))))
    rows = []
    for (one, _), best in zip(spelled, chosen, strict=True):
        given = known[best] if best >= 0 else ""
        rows.append(one.row(float(given == one.answer), given))
    unknown = sum(one.answer not in known for one, _ in spelled)
    counts = {"labels": len(known), "unknown_labels": unknown}
    return rows, counts | asked.count_long(len(spelled))


def spell_labels(asked: Asked, labels: Sequence[str]) -> Iterator[tuple[Prompted, Choices]]:
    """Each example with the tokens that all labels have before them, and those of each label.

    How a label is cut into tokens depends on what stands right before it, and one token may hold a
    piece of both: it then belongs to the label, so that all labels follow the same tokens. Where
    two prompts end alike, and the second with its own answer is cut as the first was with it, the
    first's cuts are taken: a chat template need not be rendered again for each of many labels.
    """
    after: dict[str, dict[str, list[int]]] = {}
    for one in asked.prompted:
        tail = one.prompt[-TAIL:]
        start, ends = tokens_before_answer(one, after.get(tail, {})), after.get(tail, {})
        if start is None:
            texts = [with_answer(one.example, label) for label in labels]
            made = [t for t in asked.tokenise(texts, asked.lm.max_length) if t is not None]
            if len(made) < len(labels):
                continue
            pairs = [split_last(tokens) for tokens in made]
            first = np.array(pairs[0][0])
            shared = min(common_prefix_length(first, np.array(prompt)) for prompt, _ in pairs)
            start = pairs[0][0][:shared]
            ends = dict(zip(labels, ((a + b)[shared:] for a, b in pairs), strict=True))
            if len(after) < MOST_TAILS:
                after[tail] = ends
        if all(len(start) + len(end) <= asked.lm.max_length for end in ends.values()):
            yield one, [(start, ends[label]) for label in labels]


def tokens_before_answer(one: Prompted, ends: dict[str, list[int]]) -> list[int] | None:
    """The tokens before an example's answer, if it is cut as `ends` has it; else None."""
    whole, end = one.prompt_ids + one.answer_ids, ends.get(one.answer)
    return whole[: -len(end)] if end and whole[-len(end) :] == end else None


def split_last(tokens: Tokenised) -> tuple[list[int], list[int]]:
    """Tokens before the last answer, and that answer's with what ends its turn."""
    start, stop = learned_spans(tokens["labels"])[-1]
    return tokens["input_ids"][:start], tokens["input_ids"][start:stop]


def end_tokens(answer: Iterable[int], tokenizer: Any) -> set[int]:
    """The tokens that end an answer: the end of the sequence, and what the template ends it by."""
    return (set(answer) & set(tokenizer.all_special_ids)) | {tokenizer.eos_token_id}


def with_answer(example: Example, answer: str) -> Example:
    """The example with another last answer."""
    if "messages" not in example:
        return example | {"output": answer}
    *before, last = example["messages"]
    return example | {"messages": [*before, last | {"content": answer}]}


def exact_rows(asked: Asked) -> tuple[Rows, Counts]:
    answers, counts = asked.answers
    rows = []
    for one, said in zip(asked.prompted, answers, strict=True):
        rows.append(one.row(float(normalise(said.text) == normalise(one.answer)), said.text))
    return rows, dict(counts)


def number_rows(asked: Asked) -> tuple[Rows, Counts]:
    """An example whose reference holds no number is left out."""
    answers, counts = asked.answers
    rows = []
    for one, said in zip(asked.prompted, answers, strict=True):
        wanted = last_number(one.answer)
        if wanted is not None:
            rows.append(one.row(float(last_number(said.text) == wanted), said.text))
    return rows, dict(counts)


MEASURED: dict[str, Callable[[Asked], tuple[Rows, Counts]]] = {
    "loss": loss_rows,
    "labels": label_rows,
    "exact": exact_rows,
    "number": number_rows,
}


def normalise(text: str) -> str:
    """Unicode NFKC, every run of white space one blank, none at the ends."""
    return " ".join(unicodedata.normalize("NFKC", text).split())


def last_number(text: str) -> Decimal | None:
    """The last number of a text, thousands' commas taken out; None where there is none."""
    found = NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "")) if found else None


def row_of(example: Example, value: float) -> dict[str, Any]:
    item = item_id(example)
    empty = {"nats": None, "tokens": 0, "bytes": 0, "prompt": None, "answer": None, "given": None}
    return {"item": item, "group": item, "value": value, **empty}


def item_id(example: Example) -> str:
    """A short id of an example by its content, the same wherever it is measured."""
    return hash_of(example).hex()[:16]
