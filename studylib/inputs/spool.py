"""Values one after another, packed: in memory while they are few, else in a file without a name.

A conversation as Python holds it takes several times the room that it takes in its file, and a
hundred thousand of them are read, told apart and spelled before the first is learned. Packed they
are read when they are asked for, a fresh value each time.

Not covered: what the values are.
"""

from __future__ import annotations

import os
import pickle
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import Any, TypeVar, overload

from studylib.core.files import full_disk_said

Value = TypeVar("Value")

IN_MEMORY_BYTES = 4_000_000


class Store:
    """Bytes that are only ever added to."""

    def __init__(self) -> None:
        self._file: Any = None
        self._written = 0
        self._waiting = bytearray()

    def add(self, content: bytes) -> int:
        """Where the content begins."""
        offset = self._written + len(self._waiting)
        self._waiting += content
        if len(self._waiting) > IN_MEMORY_BYTES:
            with full_disk_said(Path(gettempdir())):
                self._file = self._file or TemporaryFile()  # noqa: SIM115 -- as long as this is
                self._file.write(self._waiting)
                self._file.flush()
            self._written += len(self._waiting)
            self._waiting.clear()
        return offset

    def read(self, offset: int, size: int) -> bytes:
        if offset < self._written:
            return os.pread(self._file.fileno(), size, offset)
        start = offset - self._written
        return bytes(self._waiting[start : start + size])


class Spool(Sequence[Value]):
    """Values in their order; equal to any sequence of equal values."""

    def __init__(self, values: Iterable[Value] = ()) -> None:
        self._store = Store()
        self._offsets, self._sizes = array("Q"), array("Q")
        self.extend(values)

    def append(self, value: Value) -> None:
        content = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        self._offsets.append(self._store.add(content))
        self._sizes.append(len(content))

    def extend(self, values: Iterable[Value]) -> None:
        for value in values:
            self.append(value)

    def share(self, other: Spool[Value], numbers: Iterable[int]) -> None:
        """Become those values of another, in the order of their numbers, without a copy."""
        chosen = array("Q", numbers)
        self._store = other._store
        self._offsets = array("Q", (other._offsets[i] for i in chosen))
        self._sizes = array("Q", (other._sizes[i] for i in chosen))

    def __len__(self) -> int:
        return len(self._offsets)

    @overload
    def __getitem__(self, number: int) -> Value: ...
    @overload
    def __getitem__(self, number: slice) -> list[Value]: ...
    def __getitem__(self, number: int | slice) -> Value | list[Value]:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        # Its own bytes, in a file that no other process can name.
        return pickle.loads(self._store.read(self._offsets[number], self._sizes[number]))

    def __iter__(self) -> Iterator[Value]:
        return (self[i] for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or len(self) != len(other):
            return NotImplemented if not isinstance(other, Sequence) else False
        return all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self[:]!r})"
