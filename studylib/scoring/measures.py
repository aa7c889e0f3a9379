"""The measures on held-out examples: one function each, from a model and examples to rows by item.

What a measure needs of an example (a prompt, a number in the reference, an answer within seq_len)
and does not find there leaves that example out of it.

Not covered: which examples, and figures with intervals (studylib.scoring.held_out).
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any

from studylib.core.errors import StudyError
from studylib.inputs.data import Tokenised, prompt_and_answer, tokenise
from studylib.inputs.forms import Example, messages_of
from studylib.inputs.parts import read_part
from studylib.inputs.templates import Unfolded
from studylib.inputs.tokens import unfold
from studylib.schema.records import canonical
from studylib.schema.spec import RunSpec
from studylib.scoring.answer_loss import learned_spans, measure_losses, score_labels
from studylib.scoring.evaluate import NotANumber, choose_all
from studylib.scoring.greedy import Answer, answer_all

MOST_LABELS = 1000
MOST_NEW_TOKENS, MARGIN_TOKENS = 512, 16
EXAMPLES_AT_ONCE = 32  # whose labels are tokenised together
Rows = list[dict[str, Any]]
Counts = dict[str, int]
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


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
    def prompted(self) -> list[Example]:
        """Examples with a prompt and one last answer. StudyError: plain text has no prompt."""
        if any("text" in example for example in self.examples):
            raise StudyError(
                f"evaluate.measures of track {self.spec.track}",
                "plain text has no prompt that could be answered",
                "Measure loss alone.",
            )
        return [self.examples[i] for i in dict.fromkeys(self.unfolded.of)]

    @cached_property
    def texts(self) -> list[tuple[str, str]]:
        """Prompt as the model reads it, and the reference answer, of each prompted example."""
        return [
            (prompt_and_answer(e, self.template, self.tokenizer)[0], answer_of(e))
            for e in self.prompted
        ]

    @cached_property
    def answers(self) -> tuple[list[Answer], Counts]:
        """The greedy answer to each prompt, made once for all measures that read it."""
        whole = [need(t) for t in self.tokenise(self.prompted, self.lm.max_length)]
        spans = [learned_spans(t["labels"])[-1] for t in whole]
        longest = max(stop - start for start, stop in spans)
        most = min(longest + MARGIN_TOKENS, MOST_NEW_TOKENS, self.lm.max_length // 2)
        prompts = [t["input_ids"][:start] for t, (start, _) in zip(whole, spans, strict=True)]
        room = self.lm.max_length - most
        special = set(self.tokenizer.all_special_ids)
        ends = {i for t, (a, b) in zip(whole, spans, strict=True) for i in t["input_ids"][a:b]}
        stops = (ends & special) | {self.tokenizer.eos_token_id}
        found = answer_all(self.lm.model, self.tokenizer, [p[-room:] for p in prompts], stops, most)
        return found, {
            "max_new_tokens": most,
            "unfinished": sum(not answer.finished for answer in found),
            "prompts_cut": sum(len(prompt) > room for prompt in prompts),
        }

    def tokenise(self, examples: Sequence[Any], length: int) -> list[Tokenised | None]:
        return tokenise(examples, self.template, self.tokenizer, length)


def loss_rows(asked: Asked) -> tuple[Rows, Counts]:
    made = asked.tokenise(asked.unfolded.pieces, asked.seq_len)
    usable = [i for i, t in enumerate(made) if t is not None and learned_spans(t["labels"])]
    losses = measure_losses(asked.lm, asked.tokenizer, [need(made[i]) for i in usable])
    broken = sum(not math.isfinite(loss.nats) for loss in losses)
    if broken:
        raise NotANumber(f"the loss of {broken:,} of {len(losses):,} held-out examples")
    rows = []
    for i, loss in zip(usable, losses, strict=True):
        found = {"nats": loss.nats, "tokens": loss.tokens, "bytes": loss.bytes}
        example = asked.examples[asked.unfolded.of[i]]
        if loss.bytes > 0:
            rows.append(row_of(example, loss.nats / loss.tokens) | found)
    return number_windows(rows), {}


def number_windows(rows: Rows) -> Rows:
    """Items of one example told apart: windows of a text, answers of a conversation."""
    seen = Counter[str]()
    for row in rows:
        seen[row["group"]] += 1
        row["item"] += f".{seen[row['group']]}" if seen[row["group"]] > 1 else ""
    return rows


def label_rows(asked: Asked) -> tuple[Rows, Counts]:
    """An example whose label never occurs in training cannot be right, and counts as wrong."""
    known = read_labels(asked)
    scores = list(score_labels(asked.lm, spell_labels(asked, known)))
    chosen = choose_all(scores)
    rows = []
    for example, (prompt, answer), best in zip(asked.prompted, asked.texts, chosen, strict=True):
        given = known[best] if best >= 0 else ""
        row = row_of(example, float(given == answer))
        rows.append(row | {"prompt": prompt, "answer": answer, "given": given})
    unknown = sum(answer not in known for _, answer in asked.texts)
    return rows, {"labels": len(known), "unknown_labels": unknown}


def read_labels(asked: Asked) -> list[str]:
    """The labels that occur in training, sorted. StudyError: they are no set of labels."""
    train = read_part(asked.spec.data, "train")
    found = sorted({answer_of(e) for e in train if "text" not in e})
    if not 2 <= len(found) <= min(MOST_LABELS, max(len(train) // 2, 2)):
        raise StudyError(
            f"evaluate.measures: labels, {asked.spec.data.source}",
            f"its {len(train):,} training examples have {len(found):,} different answers: labels "
            f"are 2 to {MOST_LABELS:,}, each of them seen more than once",
            "Measure exact or loss instead.",
        )
    return found


def spell_labels(asked: Asked, labels: Sequence[str]) -> Iterator[list[Tokenised]]:
    """Each example with every label in turn, spelled as in training."""
    for first in range(0, len(asked.prompted), EXAMPLES_AT_ONCE):
        block = asked.prompted[first : first + EXAMPLES_AT_ONCE]
        texts = [with_answer(example, label) for example in block for label in labels]
        made = [need(tokens) for tokens in asked.tokenise(texts, asked.lm.max_length)]
        for i in range(0, len(made), len(labels)):
            yield made[i : i + len(labels)]


def answer_of(example: Example) -> str:
    """The last answer as its source has it, without blanks at the ends."""
    return str(messages_of(example)[-1]["content"]).strip()


def with_answer(example: Example, answer: str) -> Example:
    """The example with another last answer."""
    if "messages" not in example:
        return example | {"output": answer}
    *before, last = example["messages"]
    return example | {"messages": [*before, last | {"content": answer}]}


def exact_rows(asked: Asked) -> tuple[Rows, Counts]:
    answers, counts = asked.answers
    rows = []
    for example, (prompt, answer), said in zip(asked.prompted, asked.texts, answers, strict=True):
        row = row_of(example, float(normalise(said.text) == normalise(answer)))
        rows.append(row | {"prompt": prompt, "answer": answer, "given": said.text})
    return rows, dict(counts)


def number_rows(asked: Asked) -> tuple[Rows, Counts]:
    """An example whose reference holds no number is left out."""
    answers, counts = asked.answers
    rows = []
    for example, (prompt, answer), said in zip(asked.prompted, asked.texts, answers, strict=True):
        wanted = last_number(answer)
        if wanted is not None:
            row = row_of(example, float(last_number(said.text) == wanted))
            rows.append(row | {"prompt": prompt, "answer": answer, "given": said.text})
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


def need(tokens: Tokenised | None) -> Tokenised:
    """Tokens of an example whose answer begins within the model's context."""
    if tokens is None:
        raise StudyError(
            "a held-out example", "its prompt alone fills the model's context", "Shorten it."
        )
    return tokens


def item_id(example: Example) -> str:
    """A short id of an example by its content, the same wherever it is measured."""
    return hashlib.sha256(canonical(example)).hexdigest()[:16]
