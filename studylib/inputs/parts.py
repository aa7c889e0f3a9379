"""The training, validation and test parts of the reader's own data, none of which asks the same.

A part is what the reader named (data.test, data.validation), else a file of the folder, else split
off the training source by a hash of the prompt: the same examples whatever their order, and those
that ask the same stay together. The training part leaves out what the other parts ask.

Not covered: reading a source (studylib.inputs.examples).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from studylib.core.errors import StudyError
from studylib.core.sealed import canonical
from studylib.inputs.examples import Examples, folder_parts, read_examples, read_source
from studylib.inputs.forms import Example, prompt_key
from studylib.schema.profile import DataSettings

Part = Literal["train", "validation", "test"]
HELD_OUT: tuple[Part, Part] = ("test", "validation")
known_parts: dict[Any, Any] | None = None  # while parts are read once
LARGEST_SHARE = 0.5  # of the training source, that both parts together may take


def read_part(data: DataSettings, part: Part) -> Examples:
    """The examples of one part, in their source's order; of the training part at most as many as
    data.examples says.

    StudyError: the training part has fewer.
    """
    examples = read_whole_part(data, part)
    if part != "train" or data.examples is None:
        return examples
    if data.examples > len(examples):
        raise StudyError(
            f"data.examples = {data.examples}",
            f"the training part of {data.source} has {len(examples):,} examples",
            "Write at most as many, or leave it out for all.",
        )
    note = f"chosen by their hash among {len(examples):,}"
    return examples.part(of_lowest_hash(examples, data.examples), note=note)


def of_lowest_hash(examples: Sequence[Example], count: int) -> list[int]:
    """The numbers of so many examples, in their order: files are often sorted, and the first of
    them would be of one kind."""
    hashes = [hash_of(example) for example in examples]
    return sorted(sorted(range(len(hashes)), key=hashes.__getitem__)[:count])


def hash_of(example: Example) -> bytes:
    return hashlib.sha256(canonical(example)).digest()


@contextmanager
def read_once() -> Iterator[None]:
    """While it lasts the same part is read from its source once; for work during which no source
    changes."""
    global known_parts
    known_parts = {}
    try:
        yield
    finally:
        known_parts = None


def remembered(key: Any, read: Callable[[], Any]) -> Any:
    """What `read` gives, or gave while parts are read once."""
    if known_parts is None:
        return read()
    if key not in known_parts:
        known_parts[key] = read()
    return known_parts[key]


def read_whole_part(data: DataSettings, part: Part) -> Examples:
    """The examples of one part; the training part is the source as it is where nothing is held out.

    What the training part leaves out because another part asks it is in `skipped`. StudyError: a
    part that is asked for is neither named, nor in the folder, nor to be split off.
    """
    source = source_of(data, part) if part != "train" else data.source
    if part != "train" and source is not None:
        return remembered((source, data, part), lambda: read_source(source, data, part))
    if source is None and data.held_out is None:
        raise StudyError(
            f"data.{part} of {data.source}",
            f"there is no {part} part",
            f"Name its source (data.{part}), or split it off: data.held_out=200.",
        )
    whole = data.model_copy(update={"examples": None})
    return remembered(whole, lambda: read_parts(data))[part]


def read_parts(data: DataSettings) -> dict[str, Examples]:
    """The training source as what is trained on and what is split off it."""
    examples = read_examples(data)
    if data.held_out is None and not any(source_of(data, other) for other in HELD_OUT):
        return {"train": examples}
    return split_off_parts(examples, data)


def split_off_parts(examples: Examples, data: DataSettings) -> dict[str, Examples]:
    """The training source as the training part and the parts that are split off it."""
    asked = {
        part: {prompt_hash(example) for example in read_source(source, data, part)}
        for part in HELD_OUT
        if (source := source_of(data, part)) is not None
    }
    keys = [prompt_hash(example) for example in examples]
    twice, free = Counter[str](), Counter[bytes]()
    for key in keys:
        other = next((part for part, found in asked.items() if key in found), None)
        if other is None:
            free[key] += 1
        else:
            twice[f"a prompt that the {other} part asks too"] += 1
    held = split_off(free, data)
    part_of = {key: part for part, found in held.items() for key in found}
    found: dict[str, list[int]] = {"train": [], **{part: [] for part in held}}
    for number, key in enumerate(keys):
        if key in free:
            found[part_of.get(key, "train")].append(number)
    if not found["train"]:
        raise StudyError(
            data.source,
            "every prompt of it is in the test or validation part, so that nothing is left to "
            "train on",
            "Name other sources for data.test and data.validation.",
        )
    return {
        part: examples.part(some, twice if part == "train" else None)
        for part, some in found.items()
    }


def source_of(data: DataSettings, part: Part) -> str | None:
    """The source that a held-out part has of its own: named, or the folder that has its file."""
    named = {"test": data.test, "validation": data.validation}.get(part)
    if named is not None:
        return named
    folder = Path(data.source).expanduser()
    is_source = data.source.startswith(("hub:", "almanac:"))
    if not is_source and folder.is_dir() and part in folder_parts(folder):
        return data.source
    return None


def prompt_hash(example: Example) -> bytes:
    """The hash of what an example asks."""
    return hashlib.sha256(prompt_key(example).encode()).digest()


def split_off(counts: Mapping[bytes, int], data: DataSettings) -> dict[Part, set[bytes]]:
    """Part -> the prompts that are split off for it; none for a part with a source of its own.

    counts: a prompt's hash -> examples that ask it. Prompts in the order of their hashes, until
    they are held_out examples: the last prompt may bring a few more.
    """
    parts = [part for part in HELD_OUT if source_of(data, part) is None]
    held: dict[Part, set[bytes]] = {part: set() for part in parts}
    if data.held_out is None or not parts:
        return {}
    total = sum(counts.values())
    most = most_held_out(total, len(parts))
    if data.held_out > most or len(counts) <= len(parts):
        raise StudyError(
            f"data.held_out = {data.held_out}",
            f"{data.source} has {total:,} examples with {len(counts):,} different prompts that no "
            f"other part asks, and at most half of them are held out ({' and '.join(parts)} part)",
            f"Hold out at most {most}, or name a source: data.test=FILE.",
        )
    waiting = iter(sorted(counts))
    for part in parts:
        taken = 0
        for key in waiting:
            held[part].add(key)
            taken += counts[key]
            if taken >= data.held_out:
                break
    return held


def most_held_out(examples: int, parts: int = len(HELD_OUT)) -> int:
    """How many of so many examples each of the parts may hold out."""
    return int(LARGEST_SHARE * examples) // parts


def name_part(source: str, part: Part) -> str:
    folder = Path(source).expanduser()
    return folder_parts(folder)[part].name if folder.is_dir() else folder.name


def count_twice(examples: Examples) -> int:
    """Examples that are the same as an earlier one."""
    return len(examples) - len({hash_of(example) for example in examples})


def tell_parts(data: DataSettings) -> list[str]:
    """What the training examples are, with the first one, and a line for each part held out."""
    train = read_part(data, "train")
    lines = [f"{Path(data.source).name}: {train.tell()}", f"  first: {train.sample()}"]
    if twice := count_twice(train):
        lines.append(
            f"  {twice:,} of them stand there before, word for word: they are learned again"
        )
    keys: list[set[bytes]] = []
    for part in HELD_OUT:
        source = source_of(data, part)
        if source is None and data.held_out is None:
            continue
        examples = read_part(data, part)
        if source is None:  # what is left out of the source stands in the first line
            count = f"{len(examples):,} {examples.noun}"
            lines.append(f"  {part} part (split off by a hash of the prompt): {count}")
        else:
            lines.append(f"  {part} part ({name_part(source, part)}): {examples.tell()}")
        keys.append({prompt_hash(example) for example in examples})
    if len(keys) == len(HELD_OUT) and (both := keys[0] & keys[1]):
        lines.append(f"  {len(both):,} prompts are in both of them")
    return lines
