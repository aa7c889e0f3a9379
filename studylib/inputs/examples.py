"""Read training examples: a file, a folder, a hub's data set or the almanac; faults name places.

Sets of tens of thousands of rows hold some without an answer, and nobody can mend a hub's rows:
such rows are left out and counted. Where most rows are so, the source is of another form, and it is
refused with the keys that its rows have.

Not covered: the forms (studylib.inputs.forms), which examples are held out (studylib.inputs.parts),
what becomes of examples (studylib.inputs.data).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from studylib.core.errors import StudyError
from studylib.inputs.almanac import build_almanac, training_examples
from studylib.inputs.forms import (
    KNOWN,
    Example,
    Form,
    NoExample,
    form_of_columns,
    form_of_row,
    is_learned,
    messages_of,
)
from studylib.inputs.rows import KINDS, OTHERS, TAKEN, file_kind, read_rows
from studylib.inputs.spool import Spool
from studylib.schema.profile import DataSettings, nearest
from studylib.schema.settings import parse_columns

ALMANACS = {"new": ("new", "native"), "old": ("old", "native"), "shifted": ("old", "shifted")}
MOST_SKIPPED = 0.5  # of the rows: beyond it the source is no set of examples with some gaps
PART_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
MOST_SHOWN = 60  # characters of each message of a sample


class Examples(Spool[Example]):
    """The examples of a source in their order, and what was not taken as it stood.

    skipped: rows left out, by reason. converted: examples with a number that was taken as text.
    form: what the rows were recognised as; None for the almanac. notes: what else is to be said.
    as_answers: of plain texts with other columns beside them, the option that takes one as answers.
    """

    as_answers = ""

    def __init__(
        self,
        examples: Iterable[Example] = (),
        skipped: Mapping[str, int] | None = None,
        converted: int = 0,
        form: Form | None = None,
        notes: Iterable[str] = (),
    ):
        super().__init__(examples)
        self.skipped, self.converted = dict(skipped or {}), converted
        self.form, self.notes = form, tuple(notes)

    @property
    def rows_skipped(self) -> int:
        return sum(self.skipped.values())

    def part(
        self,
        numbers: Iterable[int],
        skipped: Mapping[str, int] | None = None,
        note: str | None = None,
    ) -> Examples:
        """The examples of these numbers; skipped: of the rest, those left out, by reason."""
        left_out = Counter(self.skipped) + Counter(skipped or {})
        notes = (*self.notes, *([note] if note else []))
        made = Examples((), left_out, self.converted, self.form, notes)
        made.share(self, numbers)
        made.as_answers = self.as_answers
        return made

    @property
    def noun(self) -> str:
        return self.form.noun if self.form else "examples"

    def tell(self) -> str:
        """`chat messages, 7,473 conversations, 2.1 turns each, 3 rows left out (2 with …)`."""
        words = f"{len(self):,} {self.noun}"
        if self.form:
            words = f"{self.form.name}, {words}"
        if self.noun == "conversations" and self:
            turns = sum(is_learned(m) for example in self for m in messages_of(example))
            words += f", {turns / len(self):.1f} turns each"
        if self.skipped:
            reasons = ", ".join(f"{count:,} with {why}" for why, count in self.skipped.items())
            rows = "row" if self.rows_skipped == 1 else "rows"
            words += f", {self.rows_skipped:,} {rows} left out ({reasons})"
        if self.converted:
            words += f", {self.converted:,} with a number as text"
        return "; ".join([words, *self.notes])

    def sample(self) -> str:
        """The first example on one line: `user: Add 0 and 1. | assistant: 1`."""
        if not self:
            return ""
        if "text" in self[0]:
            return shorten(self[0]["text"])
        messages = messages_of(self[0])
        return " | ".join(f"{m['role']}: {shorten(m['content'])}" for m in messages[:4])


def shorten(text: str, longest: int = MOST_SHOWN) -> str:
    """One line of a text, cut to `longest`; what a terminal would obey is shown as a mark."""
    line = " ".join(text.split())
    line = "".join(char if char.isprintable() else "�" for char in line)
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def read_examples(data: DataSettings) -> Examples:
    """All examples of the training source; every fault names its place."""
    return read_source(data.source, data)


def read_source(source: str, data: DataSettings, part: str = "train") -> Examples:
    """The examples of one source. part: which file of a folder."""
    if source.startswith("almanac:"):
        half, language = parse_almanac(source)
        known = training_examples(build_almanac(), half, n_facts=data.facts, language=language)
        return Examples(known)
    if source.startswith("hub:"):
        return fetch_examples(source, data.columns)
    path = Path(source).expanduser()
    if path.is_dir():
        found = folder_parts(path)
        if part not in found:
            names = ", ".join(f"{name}.jsonl" for name in PART_NAMES[part])
            rule = f"the folder has no file of the {part} part ({names}, or another kind)"
            have = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
            raise StudyError(path, rule, f"It has {have}. Name the file itself, or rename it.")
        path = found[part]
    return read_example_file(path, data.columns)


def folder_parts(folder: Path) -> dict[str, Path]:
    """Part -> its file, of a folder with train, validation and test files; others are not read."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        stem = path.name.lower().removesuffix(".gz").removesuffix(file_kind(path))
        part = next((part for part, names in PART_NAMES.items() if stem in names), None)
        if part is None or file_kind(path) not in KINDS or not path.is_file():
            continue
        if part in found:
            rule = f"two files are the {part} part: {found[part].name} and {path.name}"
            raise StudyError(folder, rule, "Keep one of them there, or name a file instead.")
        found[part] = path
    return found


def parse_almanac(source: str) -> tuple[Any, Any]:
    """(half, language) of almanac:NAME."""
    name = source.partition(":")[2]
    if name not in ALMANACS:
        raise StudyError(source, "the almanac has no such part", nearest(name, list(ALMANACS)))
    return ALMANACS[name]


def read_example_file(path: Path, columns: str | None = None) -> Examples:
    """Examples of a file, of the form that its keys or COLUMNS say."""
    if path.is_file() and file_kind(path) not in (*KINDS, *OTHERS):
        rule = f"its name does not say what it is; DATA takes {TAKEN}"
        raise StudyError(path, rule, "Rename it.")
    rows, notes = read_rows(path)
    return check_examples(rows, path, columns, notes)


def check_examples(
    rows: Iterable[tuple[str, Any]],
    origin: object,
    columns: str | None = None,
    notes: Iterable[str] = (),
) -> Examples:
    """The examples that rows hold, all of one form.

    Rows without one are left out and counted. StudyError: a row is no object or of another form
    than the first, no form is known, there are no rows, or more than half would be left out.
    """
    keys = dict[str, None]()
    looked = look_at(rows, origin, keys)
    form, first_rows = find_form(looked, origin, keys, columns)
    found, skipped = Examples(form=form), Counter[str]()
    first = ""
    for place, row in chain(first_rows, looked):
        if columns is None and not form.fits(row):
            refuse_mixture(form, row, f"{origin}, {place}")
        try:
            example, as_text = form.read(row)
        except NoExample as fault:
            first = first or place
            skipped[str(fault)] += 1
        else:
            found.append(example)
            found.converted += as_text
    check_taken(found, skipped, first, origin, keys, columns)
    unused = [key for key in keys if key not in (*form.keys, *form.used, "id")]
    found.skipped = dict(skipped)
    if unused:
        if form.noun == "documents":
            found.as_answers = f"COLUMNS='prompt={form.keys[0]} answer={unused[-1]}'"
        way = f" ({found.as_answers} learns the last as the answer)" if found.as_answers else ""
        notes = (*notes, f"not read: {name_keys(unused)}{way}")
    found.notes = tuple(notes)
    return found


def look_at(
    rows: Iterable[tuple[str, Any]], origin: object, keys: dict[str, None]
) -> Iterator[tuple[str, Any]]:
    """The rows as they come, each an object; gathers the keys with something in them."""
    for place, row in rows:
        if not isinstance(row, dict):
            raise StudyError(
                f"{origin}, {place}",
                "an example is an object",
                'Write {"messages": […]}, {"prompt": …, "completion": …} or {"text": …}.',
            )
        # A column that only some rows of a hub's file have is null in the others.
        keys |= {str(key): None for key, value in row.items() if value is not None}
        yield place, row


def find_form(
    rows: Iterator[tuple[str, Any]], origin: object, keys: Mapping[str, None], columns: str | None
) -> tuple[Form, list[tuple[str, Any]]]:
    """(the form of the first row that has one, the rows up to it)."""
    seen: list[tuple[str, Any]] = []
    if columns:
        return form_of_columns(parse_columns(columns)), seen
    for place, row in rows:
        seen.append((place, row))
        if form := form_of_row(row):
            return form, seen
    if not seen:
        raise no_rows(origin)
    rule = f"no form is known with the keys {name_keys([*keys])}"
    raise StudyError(
        f"{origin}, from {seen[0][0]}", rule, f"Known are {KNOWN}. {map_keys([*keys])}"
    )


def check_taken(
    found: Examples, skipped: Counter[str], first: str, origin: object,
    keys: dict[str, None], columns: str | None,
) -> None:  # fmt: skip
    """Raise where rows were none, lack a column that was named, or are mostly no examples."""
    form, total = found.form, len(found) + skipped.total()
    assert form is not None
    if not total:
        raise no_rows(origin)
    if columns and not form.fits(keys):
        missing = ", ".join(key for key in form.keys if key not in keys)
        rule = f"no row has the column {missing}; the rows have the keys {name_keys([*keys])}"
        raise StudyError(f"{origin}: columns {columns}", rule, "Name columns that are there.")
    if skipped.total() > MOST_SKIPPED * total:
        why, often = skipped.most_common(1)[0]
        raise StudyError(
            f"{origin}, from {first}",
            f"{skipped.total():,} of {total:,} rows are no examples ({often:,} with {why}); "
            f"the rows have the keys {name_keys([*keys])}",
            f"Read as {form.name}, each row needs {' and '.join(form.keys)}. {map_keys([*keys])}",
        )


def no_rows(origin: object) -> StudyError:
    return StudyError(origin, "there are no examples in it", "Add at least one.")


def refuse_mixture(form: Form, row: Mapping[str, Any], place: str) -> None:
    other = form_of_row(row)
    if other is not None:
        raise StudyError(
            place,
            f"this row is of another form ({other.name}) than the first ones ({form.name})",
            "Give each form a file of its own, or bring all rows into one form.",
        )


def name_keys(keys: list[str]) -> str:
    return ", ".join(keys[:8]) + (", …" if len(keys) > 8 else "") or "no keys"


def map_keys(keys: list[str]) -> str:
    """The option that maps keys, with the keys that were found."""
    prompt, answer = (["COLUMN", "COLUMN"] + [key for key in keys if key != "id"])[-2:]
    words = f"prompt={prompt} answer={answer}"
    return f"Name yours, for example COLUMNS='{words}' (--columns), or COLUMNS='text={answer}'."


def fetch_examples(source: str, columns: str | None = None) -> Examples:
    """A split of a hub data set, `train` where hub:ID#SPLIT names none."""
    from studylib.inputs.hub import hub_errors

    with hub_errors(source, "give DATA as a file"):
        rows = download_rows(source)
    return check_examples(((f"row {i}", row) for i, row in enumerate(rows, 1)), source, columns)


def download_rows(source: str) -> Any:
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError, DatasetsError

    from studylib.inputs.hub import ask_again, resolve_dataset, root_cause

    named, _, split = source.removeprefix("hub:").partition("#")
    name, _, revision = named.partition("@")
    split = split or "train"
    commit = resolve_dataset(name, revision or None)
    try:
        return ask_again(lambda: load_dataset(name, split=split, revision=commit))
    except (ValueError, RuntimeError, DatasetsError) as error:
        fault = "its rows cannot be read"
        if not isinstance(error, DatasetGenerationError):
            fault = f"it gives no split `{split}`"
        why = " ".join(str(root_cause(error)).split()) or type(error).__name__
        why = why if len(why) <= 240 else f"{why[:150]} … {why[-80:]}"
        raise StudyError(
            source, f"{fault} ({why})", "Save its examples to a .jsonl file."
        ) from error
