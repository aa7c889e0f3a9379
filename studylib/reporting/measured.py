"""What runs gave on held-out examples: each method's figures over seeds, paired with full's.

Not covered: words and tables (studylib.reporting.measure_tables), how items are measured
(studylib.scoring).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import pandas as pd

from studylib.core import item_stats
from studylib.core.errors import StudyError
from studylib.core.item_stats import ItemScores
from studylib.core.metrics import METRICS
from studylib.core.stats import Estimate
from studylib.reporting.study import Study
from studylib.schema.measures import MEASURES, Measure, MeasureFigure, figures_of
from studylib.schema.methods import UNTRAINED, WHOLE
from studylib.schema.records import Record

HELD_OUT, RETENTION = "held_out", "retention"
COLUMNS = ["of", "measure", "weights", "item", "group", "value", "nats", "tokens", "bytes"]
RIGHT_ANSWERS = Measure(**asdict(METRICS["accuracy"]))  # what judges where no measure does


@dataclass(frozen=True)
class MeasuredFigure:
    """One figure of one method on one set of weights. Differences are None where there is nothing
    to compare with.

    gap: less full's, on the same examples. gain: less the base's. share: of full's gain, 1 being
    all of it; None where full has none, or none that is told from zero. counts: of the first run,
    in words.
    other_weights: a second row of the same runs (a QLoRA adapter merged into 16 bits).
    """

    measure: Measure
    of: str
    label: str
    method: str
    weights: str
    trains: bool
    estimate: Estimate
    counts: dict[str, int]
    gap: Estimate | None = None
    gain: Estimate | None = None
    share: Estimate | None = None
    other_weights: bool = False

    @property
    def detectable(self) -> float | None:
        """The smallest true gap to full that runs like these show 8 times in 10."""
        return None if self.gap is None else item_stats.detectable(self.gap)


@dataclass(frozen=True)
class Arm:
    """A method's complete runs on one set of weights: their tables, seeds in order."""

    label: str
    method: str
    weights: str
    trains: bool
    records: tuple[Record, ...]
    frames: tuple[pd.DataFrame, ...]
    other_weights: bool

    def items(self, of: str, measure: Measure) -> ItemScores | None:
        """StudyError: its runs measured other examples, or the same in another order."""
        parts = [f[(f["of"] == of) & (f["measure"] == measure.asked)] for f in self.frames]
        if any(len(part) < 2 for part in parts):
            return None
        names = parts[0]["item"].tolist()
        if any(part["item"].tolist() != names for part in parts):
            raise StudyError(f"{self.label}: {measure.key}",
                             "runs of one comparison measured other examples",
                             "Run them again on the same held-out part.")  # fmt: skip
        return ItemScores.of_tables(parts, measure, fixed=not self.trains)

    def figure(self, of: str, key: str) -> MeasureFigure:
        block = self.records[0].evaluate
        assert block is not None
        return next(f for f in block.measures[key] if (f.of, f.weights) == (of, self.weights))


def measure_all(
    study: Study, groups: Sequence[tuple[str, Iterable[Record]]]
) -> list[MeasuredFigure]:
    """Every figure of every method: by measure, as the runs were asked, then by method.

    groups: (label, records) of each method. Empty where no run was measured so.
    """
    arms = [arm for label, records in groups for arm in read_arms(study, label, list(records))]
    found = []
    for of in (HELD_OUT, RETENTION):
        for measure in asked_measures(arms):
            have = [(arm, items) for arm in arms if (items := arm.items(of, measure)) is not None]
            found += [measure_arm(arm, items, of, measure, have) for arm, items in have]
    return found


def asked_measures(arms: Iterable[Arm]) -> list[Measure]:
    """The figures of what runs were asked, in that order: the first one gives the answer."""
    runs = [record.run for arm in arms for record in arm.records]
    asked: dict[str, None] = dict.fromkeys(name for run in runs for name in run.evaluate.measures)
    asked |= dict.fromkeys(measure.asked for measure in MEASURES.values())  # retention's loss
    return [measure for name in asked for measure in figures_of(name)]


def read_arms(study: Study, label: str, records: list[Record]) -> list[Arm]:
    """A method's complete runs as they were scored first, then on other weights."""
    complete = sorted((r for r in records if r.complete), key=lambda r: r.run.seed)
    pairs = [(r, frame) for r in complete
             if (frame := study.frame(r, "held_out.parquet", COLUMNS)) is not None]  # fmt: skip
    weights = list(dict.fromkeys(w for _, frame in pairs for w in frame["weights"].unique()))
    arms = []
    for number, name in enumerate(weights):
        own = [(r, frame[frame["weights"] == name]) for r, frame in pairs]
        own = [(r, frame) for r, frame in own if len(frame)]
        method = own[0][0].run.method
        words = label if number == 0 else f"{label}, {'merged' if 'merged' in name else name}"
        arms.append(Arm(words, method.name, name, method.kind.trains, tuple(r for r, _ in own),
                        tuple(f for _, f in own), number > 0))  # fmt: skip
    return arms


def measure_arm(
    arm: Arm, items: ItemScores, of: str, measure: Measure, others: list[tuple[Arm, ItemScores]]
) -> MeasuredFigure:
    """A method's figure with its differences to the first arms of full and of the base."""
    first = {other.method: found for other, found in reversed(others)}
    full, base = first.get(WHOLE), first.get(UNTRAINED)
    judged = arm.trains and arm.method != WHOLE
    gap = item_stats.paired_difference(items, full) if judged and full else None
    gain = item_stats.paired_difference(items, base) if arm.trains and base else None
    share = None
    if gap and full and base and (full.value - base.value) * measure.sign > 0:
        share = item_stats.share_of_gain(items, full, base)
    counts = arm.figure(of, figures_of(measure.asked)[0].key).counts
    return MeasuredFigure(measure, of, arm.label, arm.method, arm.weights, arm.trains,
                    item_stats.measure(items), counts, gap, gain, share,
                    arm.other_weights)  # fmt: skip
