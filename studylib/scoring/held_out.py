"""Measure a model on held-out examples of its own task, and on what the base knew before.

Every measure gives a value by item, so that methods are compared on the same items. What a measure
needs of an example (a prompt, a number in the reference, an answer within seq_len) and does not
find there leaves that example out of it, and the record counts it.

Not covered: the split into parts (studylib.inputs), questions with choices
(studylib.scoring.evaluate), differences between methods (studylib.core.item_stats).
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from studylib.core import item_stats
from studylib.core.errors import StudyError
from studylib.inputs.data import Tokenised, tokenise
from studylib.inputs.examples import Example
from studylib.inputs.parts import prompt_and_answer, read_part
from studylib.schema.measures import MEASURES, MeasureFigure, Of, figures_of
from studylib.schema.records import canonical
from studylib.schema.settings import EvaluateSettings
from studylib.schema.spec import RunSpec
from studylib.scoring.answer_loss import learned_spans, measure_losses, score_labels
from studylib.scoring.evaluate import NotANumber, choose_all, hash_column
from studylib.scoring.greedy import Answer, answer_all

MOST_LABELS = 1000
MOST_NEW_TOKENS, MARGIN_TOKENS = 512, 16
EXAMPLES_AT_ONCE = 32  # whose labels are tokenised together
Rows = list[dict[str, Any]]
Figures = dict[str, tuple[MeasureFigure, ...]]
Counts = dict[str, int]
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
COLUMNS = ("of", "measure", "weights", "item", "group", "value", "nats", "tokens", "bytes",
           "prompt", "answer", "given")  # fmt: skip


@dataclass(frozen=True)
class HeldOut:
    """Values by item (COLUMNS) and the figures that a record holds of them."""

    items: pd.DataFrame
    figures: Figures

    def __add__(self, other: HeldOut) -> HeldOut:
        """Both together, this one's first; of the same examples by other weights."""
        names = dict.fromkeys([*self.figures, *other.figures])
        figures = {n: self.figures.get(n, ()) + other.figures.get(n, ()) for n in names}
        return HeldOut(pd.concat([self.items, other.items], ignore_index=True), figures)

    def first(self, name: str) -> MeasureFigure:
        """The first figure of a measure: the one by which a rate is chosen."""
        return self.figures[figures_of(name)[0].key][0]


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
    def pairs(self) -> list[tuple[str, str]]:
        """Prompt and answer of each example as text. StudyError: an example without a prompt."""
        pairs = [prompt_and_answer(e, self.template, self.tokenizer) for e in self.examples]
        if not all(prompt.strip() for prompt, _ in pairs):
            raise StudyError(
                f"evaluate.measures of track {self.spec.track}",
                "an example has no prompt that could be answered, as plain text has none",
                "Measure loss alone.",
            )
        return pairs

    @cached_property
    def answers(self) -> tuple[list[Answer], Counts]:
        """The greedy answer to each prompt, made once for all measures that read it."""
        whole = [need(t) for t in self.tokenise(self.examples, self.lm.max_length)]
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

    def tokenise(self, examples: Sequence[Example], length: int) -> list[Tokenised | None]:
        return tokenise(examples, self.template, self.tokenizer, length)


def measure_held_out(lm: Any, tokenizer: Any, spec: RunSpec, weights: str) -> HeldOut:
    """All measures of a run's settings by one model. weights: which, in words.

    lm: lm-eval's view of the model (studylib.scoring.evaluate.build_lm). Raises NotANumber where a
    likelihood is not finite, StudyError where there is nothing to measure.
    """
    settings = spec.evaluate
    asked = Asked(lm, tokenizer, spec, read_held_out(spec))
    found = [measure_one(asked, name, "held_out", weights) for name in settings.measures]
    if settings.retention_data is not None:
        data = spec.data.model_copy(update={"source": settings.retention_data})
        kept = spec.model_copy(update={"data": data})
        known = take(read_part(data, "train"), settings.held_out_limit)
        also = Asked(lm, tokenizer, kept, known)
        found.append(measure_one(also, "loss", "retention", weights))
    return sum(found[1:], found[0])


def read_held_out(spec: RunSpec) -> list[Example]:
    """The examples of a run's held-out part, at most as many as it asks for."""
    part = held_out_part(spec.evaluate)
    examples = take(read_part(spec.data, part), spec.evaluate.held_out_limit)
    if len(examples) < 2:
        raise StudyError(
            f"{spec.data.source}, {part}",
            f"{len(examples)} examples are held out, too few to measure anything",
            "Hold out more (data.held_out), or give the part as a file of its own.",
        )
    return examples


def held_out_part(settings: EvaluateSettings) -> Any:
    return "validation" if settings.part == "validation" else "test"


def take(examples: Sequence[Example], limit: int | None) -> list[Example]:
    """At most `limit` examples, those of the lowest hash, in their order: files are often sorted,
    and the first of them would be of one kind."""
    if limit is None or len(examples) <= limit:
        return list(examples)
    order = sorted(range(len(examples)), key=lambda i: item_id(examples[i]))
    return [examples[i] for i in sorted(order[:limit])]


def item_id(example: Example) -> str:
    """A short id of an example by its content, the same wherever it is measured."""
    return hashlib.sha256(canonical(example)).hexdigest()[:16]


def measure_one(asked: Asked, name: str, of: Of, weights: str) -> HeldOut:
    """One measure: its values by item, and the figures with their intervals."""
    rows, counts = MEASURED[name](asked)
    counts["left_out"] = len(asked.examples) - len(rows)
    if len(rows) < 2:
        raise StudyError(
            f"{name} on {len(asked.examples)} examples of {asked.spec.data.source}",
            f"{len(rows)} of them can be measured",
            "Hold out more examples, or choose another measure.",
        )
    frame = pd.DataFrame(rows).assign(of=of, measure=name, weights=weights)
    counts = {key: count for key, count in counts.items() if count}
    figures: Figures = {
        figure.key: (summarise(frame, figure.key, counts),) for figure in figures_of(name)
    }
    return HeldOut(frame[list(COLUMNS)], figures)


def summarise(frame: pd.DataFrame, key: str, counts: dict[str, int]) -> MeasureFigure:
    """A figure of one model with its interval over items."""
    measure = MEASURES[key]
    estimate = item_stats.measure(as_items([frame], key, fixed=True))
    return MeasureFigure(
        of=frame["of"].iloc[0], weights=frame["weights"].iloc[0], value=estimate.value,
        low=estimate.low, high=estimate.high, unit="share" if measure.is_share else measure.unit,
        items=estimate.items, groups=estimate.clusters, counts=counts,
    )  # fmt: skip


def as_items(frames: Sequence[pd.DataFrame], key: str, fixed: bool) -> item_stats.Items:
    """What runs of one method gave for a figure; every frame has the same items in their order."""
    measure, first = MEASURES[key], frames[0]
    sums = np.stack([f[measure.column].to_numpy(dtype=float) * measure.factor for f in frames])
    sizes = np.ones(len(first)) if measure.over is None else first[measure.over].to_numpy()
    return item_stats.Items.of(sums, sizes, first["group"], measure.is_share, fixed)


def hash_held_out(items: pd.DataFrame) -> str:
    """One hash of what was measured on which examples; on other weights it is the same again."""
    once = items[items["weights"] == items["weights"].iloc[0]]
    return hash_column(once, ["of", "measure", "item", "tokens", "bytes"])


# One function a measure: rows of values by item ------------------------------------------------


def loss_rows(asked: Asked) -> tuple[Rows, Counts]:
    made = asked.tokenise(asked.examples, asked.seq_len)
    usable = [i for i, t in enumerate(made) if t is not None and learned_spans(t["labels"])]
    losses = measure_losses(asked.lm, asked.tokenizer, [need(made[i]) for i in usable])
    broken = sum(not math.isfinite(loss.nats) for loss in losses)
    if broken:
        raise NotANumber(f"the loss of {broken:,} of {len(losses):,} held-out examples")
    rows = [
        row_of(asked, i, loss.nats / loss.tokens)
        | {"nats": loss.nats, "tokens": loss.tokens, "bytes": loss.bytes}
        for i, loss in zip(usable, losses, strict=True)
        if loss.bytes > 0
    ]
    return rows, {}


def label_rows(asked: Asked) -> tuple[Rows, Counts]:
    """An example whose label never occurs in training cannot be right, and counts as wrong."""
    known = read_labels(asked)
    scores = list(score_labels(asked.lm, spell_labels(asked, known)))
    chosen = choose_all(scores)
    rows = []
    for i, (prompt, answer) in enumerate(asked.pairs):
        given = known[chosen[i]] if chosen[i] >= 0 else ""
        right = given.strip() == answer.strip()
        rows.append(row_of(asked, i, float(right)) | spell_texts(prompt, answer, given))
    names = {label.strip() for label in known}
    unknown = sum(answer.strip() not in names for _, answer in asked.pairs)
    return rows, {"labels": len(known), "unknown_labels": unknown}


def read_labels(asked: Asked) -> list[str]:
    """The labels that occur in training, sorted. StudyError: they are no set of labels."""
    train = read_part(asked.spec.data, "train")
    found = sorted({prompt_and_answer(e, asked.template, asked.tokenizer)[1] for e in train})
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
    for first in range(0, len(asked.examples), EXAMPLES_AT_ONCE):
        block = asked.examples[first : first + EXAMPLES_AT_ONCE]
        texts = [with_answer(example, label) for example in block for label in labels]
        made = [need(tokens) for tokens in asked.tokenise(texts, asked.lm.max_length)]
        for i in range(0, len(made), len(labels)):
            yield made[i : i + len(labels)]


def with_answer(example: Example, answer: str) -> Example:
    return example | {"output": answer.strip()}


def exact_rows(asked: Asked) -> tuple[Rows, Counts]:
    pairs, (answers, counts) = asked.pairs, asked.answers
    rows = [
        row_of(asked, i, float(normalise(said.text) == normalise(answer)))
        | spell_texts(prompt, answer, said.text)
        for i, ((prompt, answer), said) in enumerate(zip(pairs, answers, strict=True))
    ]
    return rows, dict(counts)


def number_rows(asked: Asked) -> tuple[Rows, Counts]:
    """An example whose reference holds no number is left out."""
    pairs, (answers, counts) = asked.pairs, asked.answers
    rows = []
    for i, ((prompt, answer), said) in enumerate(zip(pairs, answers, strict=True)):
        wanted = last_number(answer)
        if wanted is not None:
            right = float(last_number(said.text) == wanted)
            rows.append(row_of(asked, i, right) | spell_texts(prompt, answer, said.text))
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


def row_of(asked: Asked, number: int, value: float) -> dict[str, Any]:
    item = item_id(asked.examples[number])
    empty = {"nats": None, "tokens": 0, "bytes": 0, "prompt": None, "answer": None, "given": None}
    return {"item": item, "group": item, "value": value, **empty}


def spell_texts(prompt: str, answer: str, given: str) -> dict[str, str]:
    return {"prompt": prompt, "answer": answer.strip(), "given": given.strip()}


def need(tokens: Tokenised | None) -> Tokenised:
    """Tokens of an example whose answer begins within the model's context."""
    if tokens is None:
        raise StudyError(
            "a held-out example", "its prompt alone fills the model's context", "Shorten it."
        )
    return tokens
