"""Rows of a data file, as (place, row): JSON, JSON lines, CSV, TSV, Parquet, each also gzipped.

Every fault names the file and its line. A table's columns are its header's; a cell is text. A small
file can be packed from terabytes of one letter: what it unpacks to may take half of this machine's
memory, and is counted while that is done, or read from its own directory before.

Not covered: what a row means (studylib.inputs.forms), files that are large as they lie there.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from studylib.core.errors import StudyError
from studylib.core.files import decode_text

KINDS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
TAKEN = ".jsonl, .json, .csv, .tsv or .parquet, each also .gz"
OTHERS = {
    ".arrow": "an Arrow file",
    ".xlsx": "an Excel file",
    ".xls": "an Excel file",
    ".zst": "a file compressed by zstd",
    ".bz2": "a file compressed by bzip2",
    ".xz": "a file compressed by xz",
    ".zip": "a ZIP archive",
    ".txt": "a text file",
}
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}

Places = list[tuple[str, Any]]
CHUNK_BYTES = 1 << 20


def file_kind(path: Path) -> str:
    """The file's kind by its name, in small letters and without .gz: `.jsonl`; may be unknown."""
    name = path.name.lower().removesuffix(".gz")
    return Path(name).suffix


def read_rows(path: Path) -> tuple[Iterable[tuple[str, Any]], list[str]]:
    """((place, row) of every row, what is to be said of the file); StudyError names the line.

    Lines of a .jsonl file are read as they are asked for, the rest at once.
    A .json file that is no list, and rows that are no objects, are left to the caller to refuse.
    """
    kind = file_kind(path)
    if path.is_file() and kind in OTHERS:
        rule = f"this is {OTHERS[kind]}; DATA takes {TAKEN}"
        raise StudyError(path, rule, "Save it as one of them.")
    if kind == ".jsonl":
        return read_lines(path), []
    content = read_file(path)
    if kind == ".parquet":
        return read_parquet(content, path), []
    text = decode_text(content, path)
    if kind in (".csv", ".tsv"):
        return read_delimited(text, path, kind)
    if not text.strip():
        return [], []
    rows = parse_json(text, path, 1)
    if not isinstance(rows, list):
        raise StudyError(
            path,
            "the file is not a list of examples",
            "Write [{...}, ...], or one object a line in a .jsonl file.",
        )
    return [(f"entry {i}", row) for i, row in enumerate(rows, 1)], []


@contextmanager
def reading_file(path: Path) -> Iterator[None]:
    """A file that cannot be read or unpacked, in one message."""
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        rule = f"this is not a whole gzip file ({error})"
        raise StudyError(path, rule, "Compress it again.") from None
    except OSError as error:
        rule = f"the data file cannot be read ({error.strerror or error})"
        remedy = f"DATA is a file ({TAKEN}), a folder with a train file, or hub:ID."
        raise StudyError(path, rule, remedy) from None


def open_content(path: Path) -> IO[bytes]:
    if path.suffix.lower() != ".gz":
        return path.open("rb")
    return io.BufferedReader(Unpacked(path), CHUNK_BYTES)


def read_file(path: Path) -> bytes:
    with reading_file(path), open_content(path) as file:
        return file.read()


def read_lines(path: Path) -> Iterator[tuple[str, Any]]:
    with reading_file(path), open_content(path) as file:
        yield from ((f"line {i}", row) for i, row in parse_lines(file, path))


def parse_lines(lines: Iterable[bytes], path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, content) of every line that is not blank."""
    for number, content in enumerate(lines, 1):  # not at U+2028, as splitlines does
        line = decode_text(content, path, number).removesuffix("\n")
        if line.strip():
            yield number, parse_json(line, path, number)


def parse_json(text: str, path: Path, first_line: int) -> Any:
    """JSON text that starts at a line of a file; half a surrogate pair is no text either."""
    try:
        content = json.loads(text)
        if "\\ud" in text.lower():
            json.dumps(content, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        remedy = "Correct the line."
        if error.msg == "Extra data" and file_kind(path) != ".jsonl":
            remedy = "Correct the line; if each line is an object, name the file .jsonl."
        raise StudyError(
            f"{path}, line {line}", f"this is not JSON ({error.msg})", remedy
        ) from None
    except UnicodeEncodeError:
        raise StudyError(
            f"{path}, from line {first_line}",
            "a text holds half of a surrogate pair (\\ud800 to \\udfff)",
            "Write the whole pair, or the character itself.",
        ) from None
    except ValueError as error:  # a whole number of thousands of digits
        rule = f"this is not JSON that can be read ({error})"
        raise StudyError(f"{path}, from line {first_line}", rule, "Correct the line.") from None
    except RecursionError:
        raise StudyError(
            f"{path}, line {first_line}", "this is nested too deep", "Write one object an example."
        ) from None
    return content


def read_delimited(text: str, path: Path, kind: str) -> tuple[Places, list[str]]:
    """Rows of a CSV or TSV file by its header; a line of blanks alone is none.

    Texts that hold the separator, a quote or a line's end stand in double quotes.
    """
    csv.field_size_limit(sys.maxsize)  # a cell may be a whole document
    separator = "\t" if kind == ".tsv" else find_separator(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows: Places = []
    header: list[str] = []
    line = 1
    try:
        for cells in reader:
            place, line = f"line {line}", reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = check_column_names([cell.strip() for cell in cells], path, place)
            elif len(cells) != len(header):
                raise StudyError(
                    f"{path}, {place}",
                    f"{len(cells)} cells where the header has {len(header)}, with "
                    f"{SEPARATORS[separator]} between them",
                    "Put texts that hold the separator into double quotes.",
                )
            else:
                rows.append((place, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        raise StudyError(
            f"{path}, from line {line}",
            f"a double quote is not closed, or stands inside a quoted text ({error})",
            'Write "" for a quote inside a quoted text.',
        ) from None
    odd = separator != "," and kind == ".csv"
    return rows, [f"cells are separated by {SEPARATORS[separator]}"] if odd else []


def find_separator(text: str) -> str:
    """What stands between the names of a CSV file's header most often; a comma where none does."""
    first = next((line for line in re.split(r"[\r\n]", text) if line.strip()), "")
    return max(SEPARATORS, key=lambda mark: len(next(csv.reader([first], delimiter=mark), [])))


def check_column_names(header: list[str], path: Path, place: str) -> list[str]:
    twice = [name for name, count in Counter(header).items() if count > 1 or not name]
    if twice:
        what = f"the column {twice[0]!r} stands twice" if twice[0] else "a column has no name"
        raise StudyError(f"{path}, {place}", f"{what} in the header", "Give each one name.")
    return header


def read_parquet(content: bytes, path: Path) -> Places:
    import pyarrow as pa

    try:
        rows = open_parquet(content, path).read().to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        why = " ".join(str(error).split())[:160]
        rule = f"this is not a whole Parquet file ({why})"
        raise StudyError(path, rule, "Write it again.") from None
    return [(f"row {i}", row) for i, row in enumerate(rows, 1)]


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
