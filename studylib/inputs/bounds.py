"""How much a data file may hold once it is unpacked: half of this machine's memory.

A small file can be packed from terabytes of one letter. What it unpacks to is counted while that is
done, or read from its own directory before.

Not covered: files that are large as they lie there, which their reader sees.
"""

from __future__ import annotations

import gzip
import io
import os
from pathlib import Path
from typing import Any

from studylib.core.errors import StudyError

CHUNK_BYTES = 1 << 20


def most_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


class Unpacked(io.RawIOBase):
    """What a gzip file holds, counted as it is read. StudyError where it is too much; EOFError
    where the file is cut short, gzip.BadGzipFile or zlib.error where it is none."""

    def __init__(self, path: Path):
        self.path, self.count = path, 0
        self.packed = gzip.open(path, "rb")  # noqa: SIM115 -- as long as this is

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        size = self.packed.readinto(buffer)
        self.count += size
        refuse_too_much(self.count, self.path)
        return size

    def close(self) -> None:
        self.packed.close()
        super().close()


def open_parquet(content: bytes, path: Path) -> Any:
    """The file, by pyarrow, if its own directory does not say that it unpacks to too much."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(io.BytesIO(content))
    groups = (file.metadata.row_group(i) for i in range(file.metadata.num_row_groups))
    refuse_too_much(sum(group.total_byte_size for group in groups), path)
    return file


def refuse_too_much(count: int, path: Path) -> None:
    if count > most_bytes():
        raise StudyError(
            path,
            f"unpacked it has more than {most_bytes() / 1e9:,.1f} GB, half of the memory here",
            "Give a part of it, or use a larger machine.",
        )
