"""A few held-out prompts with the answers of the base and of every method side by side.

The prompts are the same for all and were chosen before anything was answered
(studylib.scoring.samples); of several seeds the first one's answers are shown.

Not covered: whether an answer is right: that is measured on all held-out examples.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from studylib.reporting.blocks import Block, Heading, Table, Text, named, words
from studylib.reporting.glossary import say
from studylib.reporting.literal import show_literally
from studylib.reporting.notes import join_words
from studylib.reporting.summary import Comparison

MOST_PROMPT, MOST_ANSWER = 400, 300  # characters
NOTHING, UNFINISHED = "(nothing)", " (cut off)"


def answers_section(comparisons: Sequence[Comparison]) -> list[Block]:
    """The part of a report, a table a model; a sentence where no run kept answers."""
    shown = [(c, table) for c in comparisons if (table := answer_table(c)) is not None]
    if not shown:
        return [Heading(2, "Held-out prompts"), Text(say("no_answers"))]
    blocks: list[Block] = [Heading(2, "Held-out prompts, answered"), Text(answers_note(shown))]
    for comparison, table in shown:
        blocks += [Heading(3, comparison.name)] if len(shown) > 1 else []
        blocks += [table]
    return blocks


def answer_table(comparison: Comparison) -> Table | None:
    """A row a prompt: what is asked, the reference, and each method's answer."""
    found = read_written_answers(comparison)
    if not found:
        return None
    first = next(iter(found.values()))
    given = {label: frame.set_index("item") for label, frame in found.items()}
    header = (named("Prompt"), *words("Reference", *found))
    rows = []
    for item, prompt, answer in first[["item", "prompt", "answer"]].itertuples(index=False):
        cells = [answer_cell(frame, item) for frame in given.values()]
        rows.append((show_literally(prompt, MOST_PROMPT, keep_end=True),
                     show_literally(answer, MOST_ANSWER), *cells))  # fmt: skip
    return Table(header, tuple(rows))


def read_written_answers(comparison: Comparison) -> dict[str, pd.DataFrame]:
    """Method -> the answers of its first complete run that kept some, each prompt once."""
    found = {}
    for row in comparison.rows:
        frames = (comparison.study.answers(record) for record in row.complete)
        frame = next((f for f in frames if f is not None and len(f)), None)
        if frame is not None:
            found[row.method.label] = frame.drop_duplicates("item")
    return found


def answer_cell(frame: pd.DataFrame, item: str) -> str:
    if item not in frame.index:
        return "—"
    said = frame.loc[item]
    text = show_literally(str(said["given"]), MOST_ANSWER) or NOTHING
    return text + ("" if said["finished"] else UNFINISHED)


def answers_note(shown: Sequence[tuple[Comparison, Table]]) -> str:
    count = max(len(table.rows) for _, table in shown)
    text = say("answers", count=count)
    several = dict.fromkeys(
        row.method.label for c, _ in shown for row in c.rows if len(row.complete) > 1
    )
    if several:
        text += f" Of {join_words([*several])} the first seed's answers are shown."
    return text
