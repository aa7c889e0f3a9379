"""Whether a GGUF file's header is one that a file of its size can have, before a library reads it.

Its counts and lengths come from whoever wrote the file: a reader that believes them asks for all
memory, or goes on for ever. Here every length is held to what is left of the file. The layout is
GGUF's own: magic, version, two counts, then keys with typed values, then the tensors.

Not covered: what keys and tensors mean (studylib.modelling.convert_gguf).
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MOST_KEYS, MOST_TENSORS, MOST_DIMENSIONS = 10_000, 1_000_000, 8
MOST_KEY_BYTES = 65_535  # the format's own
STRING, ARRAY = 8, 9
# Bytes of each type of number: 8 to 64 bits, with and without sign, floats, truth.
NUMBERS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


class BadHeader(Exception):
    """Why a header cannot be right, in words."""


def check_gguf_header(path: Path) -> None:
    """Raise BadHeader where the header is no GGUF's; it is read once, and nothing of it kept."""
    with path.open("rb") as file:
        Header(file, path.stat().st_size).walk()


class Header:
    """A walk through a header; nothing is read that the file has no room for."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size, self.at = file, size, 0

    def walk(self) -> None:
        if self.take(4) != MAGIC:
            raise BadHeader("it does not begin with GGUF")
        version = self.number("<I")
        if version not in VERSIONS:
            raise BadHeader(f"its version is {version}, those known are 2 and 3")
        tensors, keys = self.number("<Q"), self.number("<Q")
        if keys > MOST_KEYS or tensors > MOST_TENSORS:
            raise BadHeader(f"it counts {tensors:,} tensors and {keys:,} keys")
        for _ in range(keys):
            self.key()
            self.value(self.number("<I"))
        for _ in range(tensors):
            self.key()
            dimensions = self.number("<I")
            if dimensions > MOST_DIMENSIONS:
                raise BadHeader(f"a tensor has {dimensions:,} dimensions")
            self.skip(8 * dimensions + 4)
            if self.number("<Q") > self.size:
                raise BadHeader("a tensor lies beyond the file's end")

    def key(self) -> None:
        length = self.number("<Q")
        if length > MOST_KEY_BYTES:
            raise BadHeader(f"a name has {length:,} bytes")
        self.skip(length)

    def value(self, kind: int) -> None:
        if kind == STRING:
            self.skip(self.number("<Q"))
        elif kind in NUMBERS:
            self.skip(NUMBERS[kind])
        elif kind == ARRAY:
            of, count = self.number("<I"), self.number("<Q")
            if of in NUMBERS:
                self.skip(NUMBERS[of] * count)
            elif of == STRING:
                self.need(8 * count)  # each has its length at least
                for _ in range(count):
                    self.skip(self.number("<Q"))
            else:
                raise BadHeader(f"a list holds values of type {of}")
        else:
            raise BadHeader(f"a value is of type {kind}")

    def number(self, form: str) -> int:
        return int(struct.unpack(form, self.take(struct.calcsize(form)))[0])

    def take(self, count: int) -> bytes:
        self.need(count)
        self.at += count
        return self.file.read(count)

    def skip(self, count: int) -> None:
        self.need(count)
        self.at += count
        self.file.seek(self.at)

    def need(self, count: int) -> None:
        if count > self.size - self.at:
            raise BadHeader(f"{count:,} bytes are announced where {self.size - self.at:,} are left")
