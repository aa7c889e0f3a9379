"""Files read so that a fault names its line, and written whole or not at all.

Not covered: what is in the files.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from studylib.core.errors import StudyError

# By safetensors (with the system's number), and by torch's own writer, which gives no reason.
FULL = re.compile(
    r"No space left on device|Disk quota exceeded|os error (28|122)\b"
    r"|PytorchStreamWriter failed writing file"
)


def read_text(path: Path, what: str, remedy: str) -> str:
    """The file's UTF-8 text without a byte-order mark. `what` names it in the message."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StudyError(
            path, f"{what} cannot be read ({error.strerror or error})", remedy
        ) from None
    return decode_text(content, path)


def decode_text(content: bytes, path: Path | str, first_line: int = 1) -> str:
    """A file's bytes, from a line on, as UTF-8 text without a byte-order mark; a fault names its
    line."""
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + first_line
        raise StudyError(
            f"{path}, line {line}", "this is not UTF-8 text", "Save the file as UTF-8."
        ) from None


MOST_YAML_CHARACTERS, MOST_YAML_NODES = 1_000_000, 100_000


class StrictLoader(yaml.SafeLoader):
    """Safe YAML in which a key that stands twice is an error and not a silent change.

    Names for what stands elsewhere (*name) count as what they stand for: a few lines of them could
    mean more than any memory holds.
    """

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if node is not None and count_nodes(node, {}) > MOST_YAML_NODES:
            raise yaml.MarkedYAMLError(
                problem=f"it means more than {MOST_YAML_NODES:,} values",
                problem_mark=node.start_mark,
            )
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value} stands twice", problem_mark=key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def read_mapping(path: Path, what: str) -> dict[str, Any]:
    """The YAML mapping in a file; a fault names its line. `what` names the file in messages."""
    text = read_text(path, what, "Check the path.")
    try:
        content = parse_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}, line {mark.line + 1}" if mark else path
        problem = getattr(error, "problem", None) or "this is not YAML"
        raise StudyError(place, problem, "Correct the line.") from None
    except ValueError as error:
        raise StudyError(path, f"{what} cannot be read ({error})", "Correct it.") from None
    if not isinstance(content, dict):
        raise StudyError(path, f"{what} is a mapping of keys to values", "Write key: value lines.")
    return content


def count_nodes(node: Any, known: dict[int, int | None]) -> int:
    """The values that a node stands for. known: what was counted, None while that is under way."""
    if id(node) in known:
        count = known[id(node)]
        if count is None:
            raise yaml.MarkedYAMLError(problem="it holds itself", problem_mark=node.start_mark)
        return count
    known[id(node)] = None
    inner = node.value if isinstance(node, yaml.CollectionNode) else ()
    parts = [part for each in inner for part in (each if isinstance(each, tuple) else (each,))]
    known[id(node)] = count = 1 + sum(count_nodes(part, known) for part in parts)
    return count


def parse_yaml(text: str) -> Any:
    """What a YAML text says. yaml.YAMLError, or ValueError with the reason: too long, too deep, a
    date or number that is none."""
    if len(text) > MOST_YAML_CHARACTERS:
        raise ValueError(f"it has more than {MOST_YAML_CHARACTERS:,} characters")
    try:
        return yaml.load(text, StrictLoader)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside, flush to disk, rename: a reader sees the old file or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise explain_write_error(path, error) from error


def is_full(error: OSError) -> bool:
    """Whether a write failed for want of room."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def explain_write_error(path: Path, error: OSError) -> StudyError:
    """A failed write as value, rule and remedy."""
    if is_full(error):
        return disk_full(path)
    return StudyError(
        path,
        f"cannot be written ({error.strerror or error})",
        "Choose a folder that you may write to: --results FOLDER, or RESULTS=FOLDER with make.",
    )


@contextmanager
def full_disk_said(folder: Path) -> Iterator[None]:
    """One message where the disk is full while libraries save below a folder: each says it in
    errors of its own."""
    try:
        yield
    except Exception as error:
        if (isinstance(error, OSError) and is_full(error)) or FULL.search(str(error)):
            raise disk_full(folder) from error
        raise


def disk_full(path: Path) -> StudyError:
    return StudyError(
        path, "the disk is full", "Free some space and start again; what is finished is kept."
    )


def lock_folder(work: Path, what: str = "run") -> Any:
    """Hold a run or study until this process ends; refuse it while another one holds it."""
    work.mkdir(parents=True, exist_ok=True)
    lock = (work / "lock").open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise StudyError(
            work.parent, f"another process is working on this {what}", "Wait for it, or stop it."
        ) from None
    return lock
