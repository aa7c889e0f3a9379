"""Make a study's files of the public files that they come from, byte for byte the same each time.

A recipe takes the contents of its sources, by name and in their order, and what of them to keep.

Not covered: where sources come from and what the made files must be (studylib.inputs.origins).
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable
from typing import Any
from xml.parsers.expat import ExpatError, ParserCreate

from studylib.core.errors import StudyError
from studylib.core.files import decode_text

Sources = dict[str, bytes]
Recipe = Callable[[Sources, tuple[str, ...]], bytes]
ANOTHER_FORM = "The origin is not what this study was written for: take the data from a folder."
QUESTION_COLUMNS = ["question", "choice0", "choice1", "choice2", "choice3", "answer"]
CHAPTERS = re.compile(r"(?P<book>\w+)(?:\.(?P<first>\d+)-(?P<last>\d+))?")


def copy(sources: Sources, keep: tuple[str, ...]) -> bytes:
    """The source as it is."""
    [content] = sources.values()
    return content


def join_rows(sources: Sources, keep: tuple[str, ...]) -> bytes:
    """The entries of JSON lists, one after the other, an entry a line."""
    rows: list[Any] = []
    for name, content in sources.items():
        try:
            found = json.loads(decode_text(content, name))
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, list):
            raise StudyError(name, "this is no list in JSON", ANOTHER_FORM)
        rows += found
    return write_lines(rows)


def mmlu_questions(sources: Sources, keep: tuple[str, ...]) -> bytes:
    """Questions of MMLU from a table a subject, with their number in it; SUBJECT_PART.csv is its
    name. The answer is a number from 0 to 3."""
    rows = []
    for name, content in sources.items():
        subject = name.rsplit("/", 1)[-1].rpartition("_")[0]
        table = csv.reader(io.StringIO(decode_text(content, name), newline=""), strict=True)
        try:
            head, *lines = table
        except (ValueError, csv.Error):
            head, lines = [], []
        right = all(len(line) == 6 and line[5] in ("0", "1", "2", "3") for line in lines)
        if head != QUESTION_COLUMNS or not right:
            raise StudyError(name, f"this is no table of {', '.join(QUESTION_COLUMNS)}",
                             ANOTHER_FORM)  # fmt: skip
        rows += [
            {"subject": subject, "i": i, "question": line[0], "choices": line[1:5],
             "answer": int(line[5])}
            for i, line in enumerate(lines)
        ]  # fmt: skip
    return write_lines(rows)


def read_chapters(sources: Sources, keep: tuple[str, ...]) -> bytes:
    """Chapters of a book of the Corpus Encoding Standard, in its order: verses joined by one
    space, each run of white space made one.

    keep: BOOK, or BOOK.FIRST-LAST for some of its chapters.
    """
    [(name, content)] = sources.items()
    wanted = [CHAPTERS.fullmatch(text) for text in keep]
    assert all(wanted), keep
    rows = []
    for chapter, verses in parse_chapters(content, name):
        book, _, number = chapter.rpartition(".")
        if any(is_within(match, book, int(number)) for match in wanted if match):
            rows.append({"id": chapter, "text": " ".join(" ".join(verses).split())})
    return write_lines(rows)


def is_within(match: re.Match[str], book: str, number: int) -> bool:
    if match["book"] != book:
        return False
    return match["first"] is None or int(match["first"]) <= number <= int(match["last"])


def parse_chapters(content: bytes, name: str) -> list[tuple[str, list[str]]]:
    """(BOOK.NUMBER, texts of its verses) of each chapter. A document type, and so every entity that
    a file could define, is refused."""
    chapters: list[tuple[str, list[str]]] = []
    open_verse = False

    def refuse(*_: Any) -> None:
        raise StudyError(name, "it declares a document type or entities", ANOTHER_FORM)

    def begin(tag: str, marks: dict[str, str]) -> None:
        nonlocal open_verse
        if marks.get("type") == "chapter":
            chapters.append((marks.get("id", "").removeprefix("b."), []))
        open_verse = marks.get("type") == "verse" and bool(chapters)
        if open_verse:
            chapters[-1][1].append("")

    def end(tag: str) -> None:
        nonlocal open_verse
        open_verse = False

    def read(text: str) -> None:
        if open_verse:
            chapters[-1][1][-1] += text

    parser = ParserCreate()
    parser.buffer_text = True
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    parser.StartElementHandler, parser.EndElementHandler = begin, end
    parser.CharacterDataHandler = read
    try:
        parser.Parse(content, True)
    except ExpatError as error:
        raise StudyError(f"{name}, line {error.lineno}", "this is not XML", ANOTHER_FORM) from None
    if not all(re.fullmatch(r"\w+\.\d+", chapter) for chapter, _ in chapters):
        raise StudyError(name, "a chapter has no id such as b.MAT.1", ANOTHER_FORM)
    return chapters


def write_lines(rows: Iterable[Any]) -> bytes:
    """JSON lines in UTF-8, json's own separators."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


RECIPES: dict[str, Recipe] = {
    "copy": copy,
    "rows": join_rows,
    "questions": mmlu_questions,
    "chapters": read_chapters,
}
