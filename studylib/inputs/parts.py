"""The training, validation and test parts of the reader's own data, none of which asks the same.

A part is what the reader named (data.test, data.validation), else a file of the folder, else split
off the training source by a hash of the prompt: the same examples whatever their order, and those
that ask the same stay together. The training part leaves out what the other parts ask.

Not covered: reading a source (studylib.inputs.examples).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from studylib.core.errors import StudyError
from studylib.inputs.examples import Examples, folder_parts, read_examples, read_source
from studylib.inputs.forms import Example, prompt_key
from studylib.schema.profile import DataSettings

Part = Literal["train", "validation", "test"]
HELD_OUT: tuple[Part, Part] = ("test", "validation")
LARGEST_SHARE = 0.5  # of the training source, that both parts together may take


def read_part(data: DataSettings, part: Part) -> Examples:
    """The examples of one part, in their source's order; the training part is the source as it is
    where nothing is held out.

    What the training part leaves out because another part asks it is in `skipped`. StudyError: a
    part that is asked for is neither named, nor in the folder, nor to be split off.
    """
    source = source_of(data, part) if part != "train" else None
    if source is not None:
        return read_source(source, data, part)
    if part != "train":
        if data.held_out is None:
            raise StudyError(
                f"data.{part} of {data.source}",
                f"there is no {part} part",
                f"Name its source (data.{part}), or split it off: data.held_out=200.",
            )
        examples = read_examples(data)
        return examples.part(pick(examples, split_off(examples, data)[part]))
    return read_train(data)


def read_train(data: DataSettings) -> Examples:
    examples = read_examples(data)
    given = {part: source_of(data, part) for part in HELD_OUT}
    if data.held_out is None and not any(given.values()):
        return examples
    held = split_off(examples, data)
    own = {key for keys in held.values() for key in keys}
    asked = {
        part: {prompt_key(example) for example in read_source(source, data, part)}
        for part, source in given.items()
        if source is not None
    }
    kept, twice = list[Example](), Counter[str]()
    for example in examples:
        key = prompt_key(example)
        other = next((part for part, keys in asked.items() if key in keys), None)
        if other is not None:
            twice[f"a prompt that the {other} part asks too"] += 1
        elif key not in own:
            kept.append(example)
    if not kept:
        raise StudyError(
            data.source,
            "every prompt of it is in the test or validation part, so that nothing is left to "
            "train on",
            "Name other sources for data.test and data.validation.",
        )
    return examples.part(kept, twice)


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


def split_off(examples: Examples, data: DataSettings) -> dict[Part, set[str]]:
    """Part -> the prompts that are split off for it; none for a part with a source of its own.

    Prompts in the order of their hashes, until they are held_out examples: the last prompt may
    bring a few more.
    """
    parts = [part for part in HELD_OUT if source_of(data, part) is None]
    if data.held_out is None:
        return {part: set() for part in parts}
    counts = Counter(prompt_key(example) for example in examples)
    order = sorted(counts, key=lambda key: hashlib.sha256(key.encode()).digest())
    most = int(LARGEST_SHARE * len(examples)) // max(1, len(parts))
    if parts and (data.held_out > most or len(counts) <= len(parts)):
        raise StudyError(
            f"data.held_out = {data.held_out}",
            f"{data.source} has {len(examples):,} examples with {len(counts):,} different prompts, "
            f"and at most half of them are held out ({' and '.join(parts)} part)",
            f"Hold out at most {most}, or name a source: data.test=FILE.",
        )
    held: dict[Part, set[str]] = {part: set() for part in parts}
    waiting = iter(order)
    for part in parts:
        taken = 0
        for key in waiting:
            held[part].add(key)
            taken += counts[key]
            if taken >= data.held_out:
                break
    return held


def pick(examples: Iterable[Example], keys: set[str]) -> list[Example]:
    return [example for example in examples if prompt_key(example) in keys]


def tell_parts(data: DataSettings) -> list[str]:
    """What the training examples are, with the first one, and a line for each part held out."""
    train = read_part(data, "train")
    lines = [f"{Path(data.source).name}: {train.tell()}", f"  first: {train.sample()}"]
    for part in HELD_OUT:
        source = source_of(data, part)
        if source is None and data.held_out is None:
            continue
        name = "split off by a hash of the prompt" if source is None else Path(source).name
        lines.append(f"  {part} part ({name}): {read_part(data, part).tell()}")
    return lines
