"""Training examples: tokenise, pack. The same rows in the same order for every method.

Only the answers of an example are learned. Examples are packed into rows of seq_len tokens;
positions restart at each example, so that none attends across its neighbours. The order depends on
the seed and the number of examples alone. What a run does not reach in this order is not tokenised.

Not covered: reading them (studylib.inputs.examples, studylib.inputs.parts), tokens
(studylib.inputs.tokens), questions for the evaluation (studylib.scoring.tasks).
"""

from __future__ import annotations

import hashlib
import random
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from studylib.core.errors import StudyError
from studylib.inputs.examples import read_example_file, read_examples
from studylib.inputs.forms import Example
from studylib.inputs.packed import PackedRows, Row, TokenStore
from studylib.inputs.parts import read_part
from studylib.inputs.templates import prompt_and_answer, prompt_of, resolve_template
from studylib.inputs.tokens import IGNORED, Tokenised, tokenise, unfold
from studylib.schema.profile import DataSettings, TrainSettings
from studylib.schema.records import canonical

__all__ = [
    "IGNORED",
    "Row",
    "Tokenised",
    "TrainingData",
    "hash_examples",
    "pack",
    "prepare_data",
    "prompt_and_answer",
    "prompt_of",
    "read_example_file",
    "read_examples",
    "read_part",
    "row_multiple",
    "spell_examples",
    "tokenise",
    "unfold",
]

TOKENISED_AT_ONCE = 64
UNSEEN, NOTHING = -2, -1  # in place of an example's number in the store


def row_multiple(on_card: bool) -> int:
    """What the lengths of rows are filled up to a multiple of, in tokens.

    cuDNN, PyTorch's first choice of attention on Hopper, makes a plan for every new length.
    """
    return 128 if on_card else 1


def shuffle(count: int, seed: int) -> Iterator[int]:
    """Numbers of examples, epoch after epoch without end, each in an order of its own."""
    rng = random.Random(f"order {seed}")
    while True:
        order = list(range(count))
        rng.shuffle(order)
        yield from order


def spell_examples(
    examples: Sequence[Any],
    order: Iterator[int],
    template: str,
    tokenizer: Any,
    seq_len: int,
    store: TokenStore,
) -> Iterator[tuple[int, int | None]]:
    """(number, its number in the store; None where it teaches nothing) of examples in an order,
    tokenised when they are asked for, each once.

    StudyError where it has seen all examples and none has an answer that begins within seq_len.
    """
    known, left = array("q", [UNSEEN]) * len(examples), len(examples)
    while batch := list(islice(order, TOKENISED_AT_ONCE)):
        new = [i for i in dict.fromkeys(batch) if known[i] == UNSEEN]
        made = tokenise([examples[i] for i in new], template, tokenizer, seq_len) if new else []
        for i, tokens in zip(new, made, strict=True):
            known[i] = NOTHING if tokens is None else store.add(tokens)
        left -= len(new)
        if not left and not len(store):
            raise StudyError(
                f"train.seq_len = {seq_len}",
                "no example's answer begins within it",
                "Make it longer, or the prompts shorter.",
            )
        yield from ((i, None if known[i] == NOTHING else known[i]) for i in batch)


def pack(examples: Iterator[tuple[int, int]], seq_len: int, rows: int) -> list[list[int]]:
    """`rows` rows of numbers of examples, each of at most seq_len tokens; takes no more examples,
    (number, tokens), than they need.

    First fit over a few open rows: a row is closed when nothing that comes soon fits into it.
    """
    packed: list[list[int]] = []
    open_rows: list[tuple[int, list[int]]] = []
    while len(packed) < rows:
        place_example(*next(examples), seq_len, open_rows, packed)
    return packed


def place_example(
    example: int,
    length: int,
    seq_len: int,
    open_rows: list[tuple[int, list[int]]],
    packed: list[list[int]],
) -> None:
    """Put an example into the first open row with room; close the fullest when eight are open."""
    for i, (used, row) in enumerate(open_rows):
        if used + length <= seq_len:
            open_rows[i] = (used + length, [*row, example])
            return
    if len(open_rows) == 8:
        fullest = max(range(8), key=lambda i: open_rows[i][0])
        packed.append(open_rows.pop(fullest)[1])
    open_rows.append((length, [example]))


@dataclass(frozen=True)
class TrainingData:
    """Rows for one run and the counts that go into its record.

    examples: of the training part, as what is tokenised one by one (windows of a text, say); sha256
    is of all of them. drawn: those that packing came to until the last row was full; all of them in
    a run of an epoch or more. Of these, left_out: their prompt alone fills a row; cut: their answer
    was cut short. skipped: rows of the source that are no examples, are asked by another part, or
    are refused by the chat template. template: as it became. divided: conversations that the chat
    template rewrites, each of them one example an answer.
    """

    rows: Sequence[Row]
    examples: int
    sha256: str
    order_sha256: str
    drawn: int
    left_out: int = 0
    cut: int = 0
    skipped: int = 0
    template: str = "alpaca"
    divided: int = 0

    @property
    def epochs(self) -> float:
        """Examples seen over those that can be: as large a share of all as of those drawn."""
        usable = self.examples * (self.drawn - self.left_out) / self.drawn
        return self.examples_seen / usable

    @property
    def examples_seen(self) -> int:
        return sum(len(row) for row in self.rows)

    @property
    def tokens_seen(self) -> int:
        return sum(self.lengths())

    def lengths(self) -> list[int]:
        """Tokens of every packed example."""
        return [len(e["input_ids"]) for row in self.rows for e in row]

    @property
    def answer_tokens_seen(self) -> int:
        return sum(label != IGNORED for row in self.rows for e in row for label in e["labels"])


def hash_examples(examples: Iterable[Example]) -> str:
    """One hash of all examples, in their order."""
    return hash_list(map(canonical, examples))


def hash_list(values: Iterable[bytes]) -> str:
    """The SHA-256 of a list's canonical JSON, of which one value at a time is there."""
    digest = hashlib.sha256(b"[")
    for number, value in enumerate(values):
        digest.update(b"," * bool(number) + value)
    digest.update(b"]")
    return digest.hexdigest()


def prepare_data(
    data: DataSettings, train: TrainSettings, tokenizer: Any, seed: int
) -> TrainingData:
    """Read, tokenise and pack what one run sees: steps × accumulation × micro_batch rows."""
    examples = read_part(data, "train")
    template = resolve_template(data.template, examples, tokenizer)
    unfolded = unfold(examples, template, tokenizer, train.seq_len)
    pieces = unfolded.pieces
    order = shuffle(len(pieces), seed)
    store = TokenStore()
    met, drawn = bytearray(len(pieces)), Counter[str]()

    def usable() -> Iterator[tuple[int, int]]:
        for i, number in spell_examples(pieces, order, template, tokenizer, train.seq_len, store):
            if not met[i]:
                met[i] = True
                drawn["all"] += 1
                drawn["left out"] += number is None
                drawn["cut"] += number is not None and store.is_cut(number)
            if number is not None:
                yield number, store.length(number)

    count = train.steps * train.accumulation * train.micro_batch
    rows = PackedRows(store, pack(usable(), train.seq_len, count))
    return TrainingData(
        rows=rows,
        examples=len(pieces),
        sha256=hash_examples(examples),
        order_sha256=hash_list(rows.as_json()),
        drawn=drawn["all"],
        left_out=drawn["left out"],
        cut=drawn["cut"],
        skipped=examples.rows_skipped + unfolded.refused.total(),
        template=template,
        divided=unfolded.divided,
    )
