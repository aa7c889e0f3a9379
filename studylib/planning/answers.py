"""Whether examples have what a measure needs: prompts to be answered, and answers that are labels.

A plan asks it before any work, and a measure when it is taken.

Not covered: how an answer is measured (studylib.scoring.measures).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from studylib.core.errors import StudyError
from studylib.inputs.examples import Examples, shorten
from studylib.inputs.forms import Example, messages_of
from studylib.inputs.parts import read_part
from studylib.schema.settings import DataSettings

MOST_LABELS = 1000
MOST_NAMED = 3


def answer_of(example: Example) -> str:
    """The last answer as its source has it, without blanks at the ends."""
    return str(messages_of(example)[-1]["content"]).strip()


def check_prompts(examples: Iterable[Example], track: str) -> None:
    """Raise where an example is plain text."""
    if any("text" in example for example in examples):
        remedy = "Measure loss alone."
        if isinstance(examples, Examples) and examples.as_answers:
            remedy = f"Write {examples.as_answers} if that column is the answer, or m" + remedy[1:]
        raise StudyError(
            f"evaluate.measures of track {track}",
            "plain text has no prompt that could be answered",
            remedy,
        )


def read_labels(data: DataSettings) -> list[str]:
    """The labels that occur in training, sorted. StudyError: they are no set of labels."""
    train = read_part(data, "train")
    found = sorted({answer_of(e) for e in train if "text" not in e})
    if not 2 <= len(found) <= min(MOST_LABELS, max(len(train) // 2, 2)):
        raise StudyError(
            f"evaluate.measures: labels, {data.source}",
            f"its {len(train):,} training examples have {len(found):,} different answers: labels "
            f"are 2 to {MOST_LABELS:,}, each of them seen more than once",
            "Measure exact or loss instead.",
        )
    return found


def check_measures(measures: Sequence[str], data: DataSettings, track: str) -> list[str]:
    """Raise where the training part, which the others are like, has not what a measure needs.

    Returns what is to be said of the labels: how many there are, and which occur once, or in a held
    out part alone.
    """
    if set(measures) - {"loss"}:
        check_prompts(read_part(data, "train"), track)
    return tell_labels(data) if "labels" in measures else []


def tell_labels(data: DataSettings) -> list[str]:
    labels = read_labels(data)
    seen = Counter(answer_of(example) for example in read_part(data, "train"))
    words = f"  {len(labels):,} labels"
    once = [label for label in labels if seen[label] == 1]
    if once:
        words += f", {len(once):,} of which occur once in training ({name_labels(once)})"
    asked = Counter(answer_of(example) for example in read_part(data, "test"))
    unknown = sorted(asked.keys() - seen.keys())
    if unknown:
        count = sum(asked[label] for label in unknown)
        words += f"; {count:,} test examples have one that never occurs there, and count as wrong "
        words += f"({name_labels(unknown)})"
    return [words]


def name_labels(labels: Sequence[str]) -> str:
    shown = ", ".join(shorten(label) for label in labels[:MOST_NAMED])
    return shown + (", …" if len(labels) > MOST_NAMED else "")
