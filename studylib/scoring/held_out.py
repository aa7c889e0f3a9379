"""Measure a model on held-out examples of its own task, and on what the base knew before.

Every measure gives a value by item, so that methods are compared on the same items.

Not covered: how an item is measured (studylib.scoring.measures), the split into parts
(studylib.inputs.parts), differences between methods (studylib.core.item_stats).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from studylib.core import item_stats
from studylib.core.errors import StudyError
from studylib.core.item_stats import ItemScores
from studylib.inputs.forms import Example
from studylib.inputs.parts import of_lowest_hash, read_part, source_of
from studylib.schema.measures import MEASURES, MeasureFigure, Of, figures_of, held_out_part
from studylib.schema.settings import DataSettings
from studylib.schema.spec import RunSpec
from studylib.scoring.evaluate import hash_column
from studylib.scoring.measures import MEASURED, Asked, item_id

Figures = dict[str, tuple[MeasureFigure, ...]]
COLUMNS = ("of", "measure", "weights", "item", "group", "value", "nats", "tokens", "bytes",
           "prompt", "answer", "given")  # fmt: skip


@dataclass(frozen=True)
class HeldOut:
    """Values by item (COLUMNS) and the figures that a record holds of them."""

    items: pd.DataFrame
    figures: Figures

    def __add__(self, other: HeldOut) -> HeldOut:
        """Both together, this one's first; of the same examples by other weights."""
        names = dict.fromkeys([*self.figures, *other.figures])
        figures = {n: self.figures.get(n, ()) + other.figures.get(n, ()) for n in names}
        return HeldOut(pd.concat([self.items, other.items], ignore_index=True), figures)

    def first(self, name: str) -> MeasureFigure:
        """The first figure of a measure: the one by which a rate is chosen."""
        return self.figures[figures_of(name)[0].key][0]


def measure_held_out(lm: Any, tokenizer: Any, spec: RunSpec, weights: str) -> HeldOut:
    """All measures of a run's settings by one model. weights: which, in words.

    lm: lm-eval's view of the model (studylib.scoring.evaluate.build_lm). Raises NotANumber where a
    likelihood is not finite, StudyError where there is nothing to measure.
    """
    settings = spec.evaluate
    asked = Asked(lm, tokenizer, spec, read_held_out(spec))
    found = [measure_one(asked, name, "held_out", weights) for name in settings.measures]
    if settings.retention_data is not None:
        data = DataSettings(source=settings.retention_data, template=spec.data.template)
        kept = spec.model_copy(update={"data": data})
        part: Any = "train" if source_of(data, "test") is None else "test"
        known = take(read_part(data, part), settings.held_out_limit)
        also = Asked(lm, tokenizer, kept, known)
        found.append(measure_one(also, "loss", "retention", weights))
    return sum(found[1:], found[0])


def read_held_out(spec: RunSpec) -> list[Example]:
    """The examples of a run's held-out part, at most as many as it asks for."""
    part = held_out_part(spec.evaluate)
    examples = take(read_part(spec.data, part), spec.evaluate.held_out_limit)
    if len(examples) < 2:
        raise StudyError(
            f"{spec.data.source}, {part}",
            f"{len(examples)} examples are held out, too few to measure anything",
            "Hold out more (data.held_out), or give the part as a file of its own.",
        )
    return examples


def take(examples: Sequence[Example], limit: int | None) -> list[Example]:
    """At most `limit` examples, those of the lowest hash, in their order."""
    if limit is None or len(examples) <= limit:
        return list(examples)
    return [examples[i] for i in of_lowest_hash(examples, limit)]


def measure_one(asked: Asked, name: str, of: Of, weights: str) -> HeldOut:
    """One measure: its values by item, and the figures with their intervals."""
    rows, counts = MEASURED[name](asked)
    known = {row["group"] for row in rows}  # of examples that stand twice, one for both
    unknown = sum(item_id(example) not in known for example in asked.examples)
    counts["left_out"] = unknown - counts.get("too_long", 0)
    if len(rows) < 2:
        raise StudyError(
            f"{name} on {len(asked.examples)} examples of {asked.spec.data.source}",
            f"{len(rows)} of them can be measured",
            "Hold out more examples, or choose another measure.",
        )
    frame = pd.DataFrame(rows).assign(of=of, measure=name, weights=weights)
    counts = {key: count for key, count in counts.items() if count}
    figures: Figures = {
        figure.key: (summarise_measure(frame, figure.key, counts),) for figure in figures_of(name)
    }
    return HeldOut(frame[list(COLUMNS)], figures)


def summarise_measure(frame: pd.DataFrame, key: str, counts: dict[str, int]) -> MeasureFigure:
    """A figure of one model with its interval over items."""
    measure = MEASURES[key]
    estimate = item_stats.measure(ItemScores.of_tables([frame], measure, fixed=True))
    return MeasureFigure(
        of=frame["of"].iloc[0], weights=frame["weights"].iloc[0], value=estimate.value,
        low=estimate.low, high=estimate.high, unit="share" if measure.is_share else measure.unit,
        items=estimate.items, groups=estimate.clusters, counts=counts,
    )  # fmt: skip


def hash_held_out(items: pd.DataFrame) -> str:
    """One hash of what was measured on which examples; on other weights it is the same again."""
    once = items[items["weights"] == items["weights"].iloc[0]]
    return hash_column(once, ["of", "measure", "item", "tokens", "bytes"])
