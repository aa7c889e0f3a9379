"""Read training examples: a file, a hub's data set or the almanac; every fault names its place.

An example is an Alpaca-style instruction, input and output. Sets of tens of thousands of rows hold
some without an answer, and nobody can mend a hub's rows: such rows are left out and counted. Where
most rows are so, the source is of another form, and it is refused with the keys that its rows have.

Not covered: what becomes of examples (studylib.inputs.data).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from studylib.core.errors import StudyError
from studylib.core.files import read_text
from studylib.inputs.almanac import build_almanac, training_examples
from studylib.schema.profile import DataSettings, nearest

ALMANACS = {"new": ("new", "native"), "old": ("old", "native"), "shifted": ("old", "shifted")}
OTHER_FORMS = {
    ".csv": "a CSV file",
    ".tsv": "a TSV file",
    ".parquet": "a Parquet file",
    ".arrow": "an Arrow file",
    ".xlsx": "an Excel file",
    ".gz": "a compressed file",
    ".zst": "a compressed file",
    ".zip": "a compressed file",
}
KINDS = {bool: "true or false", list: "a list", dict: "an object"}
MOST_SKIPPED = 0.5  # of the rows: beyond it the source is no set of examples with some gaps

Example = dict[str, str]


class Examples(list[Example]):
    """The examples of a source in their order, and what was not taken as it stood.

    skipped: rows left out, by reason. converted: examples with a number that was taken as text.
    """

    def __init__(
        self,
        examples: Iterable[Example] = (),
        skipped: Mapping[str, int] | None = None,
        converted: int = 0,
    ):
        super().__init__(examples)
        self.skipped, self.converted = dict(skipped or {}), converted

    @property
    def rows_skipped(self) -> int:
        return sum(self.skipped.values())

    def tell(self) -> str:
        """`7,473 examples, 3 rows left out (2 with no text in 'output', 1 with …)`."""
        words = f"{len(self):,} examples"
        if self.skipped:
            reasons = ", ".join(f"{count:,} with {why}" for why, count in self.skipped.items())
            rows = "row" if self.rows_skipped == 1 else "rows"
            words += f", {self.rows_skipped:,} {rows} left out ({reasons})"
        return words + (f", {self.converted:,} with a number as text" if self.converted else "")


def read_examples(data: DataSettings) -> Examples:
    """The examples of a file, a hub data set or the almanac; every fault names its place."""
    if data.source.startswith("almanac:"):
        half, language = parse_almanac(data.source)
        known = training_examples(build_almanac(), half, n_facts=data.facts, language=language)
        return Examples(known)
    if data.source.startswith("hub:"):
        return fetch_examples(data.source)
    return read_example_file(Path(data.source).expanduser())


def parse_almanac(source: str) -> tuple[Any, Any]:
    """(half, language) of almanac:NAME."""
    name = source.partition(":")[2]
    if name not in ALMANACS:
        raise StudyError(source, "the almanac has no such part", nearest(name, list(ALMANACS)))
    return ALMANACS[name]


def read_example_file(path: Path) -> Examples:
    """Examples of an Alpaca-format .json (a list) or .jsonl (one object a line) file."""
    remedy = "DATA is an Alpaca-format .json or .jsonl file, or hub:ID."
    if path.is_file() and path.suffix.lower() in OTHER_FORMS:
        what = OTHER_FORMS[path.suffix.lower()]
        raise StudyError(path, f"this is {what}; DATA takes .json or .jsonl", "Save it as one.")
    text = read_text(path, "the data file", remedy)
    if path.suffix.lower() == ".jsonl" or not text.strip():
        rows = [(f"line {i}", row) for i, row in parse_lines(text, path)]
    else:
        content = parse_json(text, path, 1)
        if not isinstance(content, list):
            raise StudyError(
                path,
                "the file is not a list of examples",
                "Write [{...}, ...], or one object a line in a .jsonl file.",
            )
        rows = [(f"entry {i}", row) for i, row in enumerate(content, 1)]
    return check_examples(rows, path)


def parse_lines(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, content) of every line that is not blank."""
    for i, line in enumerate(text.split("\n"), 1):  # not at U+2028, as splitlines does
        if line.strip():
            yield i, parse_json(line, path, i)


def parse_json(text: str, path: Path, first_line: int) -> Any:
    """JSON text that starts at a line of a file; half a surrogate pair is no text either."""
    try:
        content = json.loads(text)
        if "\\ud" in text.lower():
            json.dumps(content, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        line = first_line + error.lineno - 1
        remedy = "Correct the line."
        if error.msg == "Extra data" and path.suffix.lower() != ".jsonl":
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


def check_examples(rows: Iterable[tuple[str, Any]], origin: object) -> Examples:
    """Examples with text in instruction and output; `input` may be missing or empty.

    Rows without one are left out and counted, by the first reason found. StudyError: a row is no
    object, there are no rows, or more than half of them would be left out.
    """
    examples, skipped, converted = [], Counter[str](), 0
    first, keys = "", dict[str, None]()
    for place, row in rows:
        if not isinstance(row, dict):
            raise StudyError(
                f"{origin}, {place}",
                "an example is an object",
                'Write {"instruction": …, "input": …, "output": …}.',
            )
        # A column that only some rows of a hub's file have is null in the others.
        keys |= {str(key): None for key, value in row.items() if value is not None}
        texts = {key: take_text(row.get(key)) for key in ("instruction", "input", "output")}
        fault = find_fault(row, texts)
        if fault is None:
            examples.append({key: text or "" for key, text in texts.items()})
            converted += any(text and row[key] != text for key, text in texts.items())
        else:
            first = first or place
            skipped[fault] += 1
    count = len(examples) + skipped.total()
    if not count:
        raise StudyError(origin, "there are no examples in it", "Add at least one.")
    if skipped.total() > MOST_SKIPPED * count:
        why, often = skipped.most_common(1)[0]
        shown = ", ".join([*keys][:8]) + (", …" if len(keys) > 8 else "") or "no keys"
        raise StudyError(
            f"{origin}, from {first}",
            f"{skipped.total():,} of {count:,} rows are no examples ({often:,} with {why}); "
            f"the rows have the keys {shown}",
            "An example needs instruction and output, both with text.",
        )
    return Examples(examples, skipped, converted)


def take_text(value: object) -> str | None:
    """A row's value as text, a number as JSON spells it; None where there is no text in it."""
    if isinstance(value, str):
        return value
    if type(value) is int or (type(value) is float and math.isfinite(value)):
        return json.dumps(value)
    return None


def find_fault(row: dict[str, Any], texts: dict[str, str | None]) -> str | None:
    """Why a row is no example, in words that go after `with`; None where it is one."""
    for key, text in texts.items():
        value = row.get(key)
        if text is None and value is not None and not isinstance(value, float):
            return f"{KINDS.get(type(value), f'a {type(value).__name__}')} in {key!r}"
        if key != "input" and not (text or "").strip():
            return f"no text in {key!r}"
    return None


def fetch_examples(source: str) -> Examples:
    """The train split of a hub data set with the columns instruction, input, output."""
    from studylib.inputs.hub import hub_errors

    with hub_errors(source, "give DATA as a file"):
        rows = download_rows(source)
    return check_examples(((f"row {i}", row) for i, row in enumerate(rows, 1)), source)


def download_rows(source: str) -> Any:
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError, DatasetsError

    from studylib.inputs.hub import ask_again, resolve_dataset, root_cause

    name, _, revision = source.removeprefix("hub:").partition("@")
    commit = resolve_dataset(name, revision or None)
    try:
        return ask_again(lambda: load_dataset(name, split="train", revision=commit))
    except (ValueError, RuntimeError, DatasetsError) as error:
        fault = "its rows cannot be read"
        if not isinstance(error, DatasetGenerationError):
            fault = "it gives no split `train`"
        why = " ".join(str(root_cause(error)).split()) or type(error).__name__
        why = why if len(why) <= 240 else f"{why[:150]} … {why[-80:]}"
        raise StudyError(
            source, f"{fault} ({why})", "Save its examples to a .jsonl file."
        ) from error
