"""Packed rows of tokens in two or four bytes each, as lists only while a row is looked at.

An example that is learned in several epochs is kept once. Labels are kept as the spans that are
learned: within them they are the tokens themselves.

Not covered: which examples share a row (studylib.inputs.data).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

from studylib.inputs.tokens import IGNORED, Tokenised

Row = list[dict[str, list[int]]]


class TokenStore(Sequence[Tokenised]):
    """Examples as tokens, by the number that each gets when it is added."""

    def __init__(self) -> None:
        self._ids = array("H")
        self._starts = array("Q", [0])
        self._spans, self._span_starts = array("Q"), array("Q", [0])
        self._cut = bytearray()

    def add(self, tokens: Tokenised) -> int:
        ids = tokens["input_ids"]
        try:
            made = array(self._ids.typecode, ids)
        except OverflowError:  # a vocabulary of more than 65,536
            self._ids, made = array("I", self._ids), array("I", ids)
        self._ids.extend(made)
        self._starts.append(len(self._ids))
        for span in tokens.learned:
            self._spans.extend(span)
        self._span_starts.append(len(self._spans))
        self._cut.append(tokens.cut)
        return len(self._cut) - 1

    def __len__(self) -> int:
        return len(self._cut)

    @overload
    def __getitem__(self, number: int) -> Tokenised: ...
    @overload
    def __getitem__(self, number: slice) -> list[Tokenised]: ...
    def __getitem__(self, number: int | slice) -> Tokenised | list[Tokenised]:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        ids = self._ids[self._starts[number] : self._starts[number + 1]].tolist()
        ends = self._spans[self._span_starts[number] : self._span_starts[number + 1]].tolist()
        spans = list(zip(ends[::2], ends[1::2], strict=True))
        return Tokenised.of(ids, spans, bool(self._cut[number]))

    def as_json(self, number: int) -> str:
        """An example in canonical JSON, each of its numbers spelled once."""
        ids = [*map(str, self._ids[self._starts[number] : self._starts[number + 1]])]
        labels = [str(IGNORED)] * len(ids)
        spans = iter(self._spans[self._span_starts[number] : self._span_starts[number + 1]])
        for first, end in zip(spans, spans, strict=True):
            labels[first:end] = ids[first:end]
        return f'{{"input_ids":[{",".join(ids)}],"labels":[{",".join(labels)}]}}'

    def length(self, number: int) -> int:
        return self._starts[number + 1] - self._starts[number]

    def is_cut(self, number: int) -> bool:
        return bool(self._cut[number])


class PackedRows(Sequence[Row]):
    """Rows of examples of a store. rows: the examples' numbers, a row each."""

    def __init__(self, tokens: TokenStore, rows: Iterable[Iterable[int]]) -> None:
        self._tokens = tokens
        self._rows = [array("Q", row) for row in rows]

    def as_json(self) -> Iterator[bytes]:
        """Every row in canonical JSON."""
        for row in self._rows:
            yield f"[{','.join(map(self._tokens.as_json, row))}]".encode()

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, number: int) -> Row: ...
    @overload
    def __getitem__(self, number: slice) -> list[Row]: ...
    def __getitem__(self, number: int | slice) -> Row | list[Row]:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        row: Row = [self._tokens[i] for i in self._rows[number]]
        return row
