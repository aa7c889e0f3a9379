"""How much a data file may hold once it is unpacked: half of this machine's memory.

A small file can be packed from terabytes of one letter. What it unpacks to is counted while that is
done, or read from its own directory before.

Not covered: files that are large as they lie there, which their reader sees.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from studylib.core.errors import StudyError

GZIPPED = 16 + zlib.MAX_WBITS  # zlib's word for a gzip file's head and end
CHUNK_BYTES = 1 << 20


def most_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def unzip(content: bytes, path: Path) -> bytes:
    """What a gzip file holds, of one part or several. StudyError where that is too much; EOFError
    where it is cut short, zlib.error where it is none."""
    parts, count = [], 0
    for part in unzip_parts(content):
        parts.append(part)
        count += len(part)
        refuse_too_much(count, path)
    return b"".join(parts)


def unzip_parts(content: bytes) -> Iterator[bytes]:
    while content:
        unpacked = zlib.decompressobj(GZIPPED)
        while content and not unpacked.eof:
            yield unpacked.decompress(content, CHUNK_BYTES)
            content = unpacked.unconsumed_tail
        if not unpacked.eof:
            raise EOFError("it ends too early")
        content = unpacked.unused_data.lstrip(b"\0")  # what tapes and disks fill up with


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
