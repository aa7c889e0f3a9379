"""Records of learning-rate sweeps, and the rate that each gives a study's runs.

Every method of a study gets the same number of rates, judged on validation questions that the
study's results never ask. The whole curve is kept; a best rate at the grid's edge is flagged.

Not covered: running a sweep (studylib.training.tune).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from studylib.core.errors import StudyError
from studylib.core.places import REFERENCE
from studylib.core.sealed import read_sealed, write_sealed
from studylib.schema.measures import MEASURES
from studylib.schema.pins import apply_pins, read_pins
from studylib.schema.profile import Profile, read_profile
from studylib.schema.records import SCHEMA_VERSION, Environment, Scalar
from studylib.schema.settings import Frozen
from studylib.schema.tune_settings import TunedRate


class TunePoint(Frozen):
    """One rate of a sweep, judged by right answers or by a measure on held-out examples.

    measure, value: the figure (studylib.schema.measures) and what it came to; questions are then
    the examples. correct and value are None where the loss was not finite, the trained model's
    answers were not numbers, or its training was stopped early (stopped: when and why, in words):
    that rate is out. halfway_loss: the mean of the second quarter of the steps.
    """

    learning_rate: float
    questions: int
    correct: int | None
    measure: str | None = None
    value: float | None = None
    last_loss: float | None
    seconds: float
    halfway_loss: float | None = None
    stopped: str | None = None

    @property
    def accuracy(self) -> float | None:
        return None if self.correct is None else self.correct / self.questions

    @property
    def is_out(self) -> bool:
        return self.correct is None and self.value is None

    @property
    def merit(self) -> float:
        """By what rates are ordered, more being better: right answers, or the measure's figure."""
        if self.measure is not None and self.value is not None:
            return MEASURES[self.measure].sign * self.value
        return float(self.correct or 0)

    def text(self) -> str:
        """What the rate came to, for people: `61.2 %`, `1.234 nats/token`, or that it diverged."""
        if self.measure is not None and self.value is not None:
            return MEASURES[self.measure].text(self.value)
        if self.accuracy is None:
            return self.stopped or "diverged"
        return f"{self.accuracy:.1%}"


class TuneRecord(Frozen):
    """One sweep: a model, a method and a track at one seed. overlap_dropped: validation questions
    that the test asks as well and that were therefore left out."""

    schema_version: int = SCHEMA_VERSION
    sweep_id: str
    profile: str
    track: str
    model: str
    method: str
    seed: int
    validation: str
    overlap_dropped: int
    points: tuple[TunePoint, ...]
    extended: bool
    environment: Environment
    fingerprint: dict[str, Scalar]
    digest: str = ""

    @property
    def best(self) -> TunePoint:
        """The most right answers or the best figure; of equals the lower loss, then the lower
        rate."""
        finite = [point for point in self.points if not point.is_out]
        if not finite:
            raise StudyError(
                self.sweep_id,
                "every learning rate of the sweep diverged",
                "Give it lower rates: tune.learning_rates in the profile.",
            )
        return min(finite, key=lambda p: (-p.merit, p.last_loss or 0.0, p.learning_rate))

    @property
    def at_edge(self) -> bool:
        """Whether the best rate is the grid's lowest or highest: a better one may lie beyond."""
        rates = [point.learning_rate for point in self.points]
        return self.best.learning_rate in (min(rates), max(rates))


def sweep_name(model_slug: str, method_slug: str, track: str) -> str:
    parts = [model_slug, method_slug] + ([track] if track != "main" else [])
    return "--".join(parts)


def write_sweep(folder: Path, record: TuneRecord) -> Path:
    """Seal and write FOLDER/SWEEP_ID.json; an extended sweep takes its shorter one's place."""
    return write_sealed(folder / f"{record.sweep_id}.json", record, over=True)


def read_sweep(path: Path) -> TuneRecord:
    """The sweep in a file, or one message on what is wrong with it."""
    remedy = "Restore it, or move it away and tune again."
    return read_sealed(path, TuneRecord, SCHEMA_VERSION, "the sweep", remedy)


def read_sweeps(folder: Path) -> list[TuneRecord]:
    return [read_sweep(path) for path in sorted(folder.glob("*.json"))]


def tuned_rates(sweeps: Iterable[TuneRecord], origin: str) -> dict[str, TunedRate]:
    """TRACK MODEL METHOD -> the chosen rate with where it was found, in words."""
    rates = {}
    for sweep in sweeps:
        edge = ", at the grid's edge" if sweep.at_edge else ""
        rates[f"{sweep.track} {sweep.model} {sweep.method}"] = TunedRate(
            learning_rate=sweep.best.learning_rate,
            source=f"tuned: best of {len(sweep.points)} on {sweep.validation}, seed {sweep.seed}"
            f"{edge} ({origin}/{sweep.sweep_id}.json)",
        )
    return rates


def open_profile(
    name: str, results: Path, changes: dict[str, Any] | None = None, on_card: bool = False
) -> Profile:
    """A profile with the rates of the nearest sweeps: the reader's own before the shipped ones,
    a changed profile's before those of the one it comes from. A rate that the profile states
    itself, or a resolved profile's, is not replaced. Hub sources have the commits that an earlier
    start of the study found."""
    profile = read_profile(name, changes, on_card)
    pins = read_pins(results / profile.name)
    if profile.tuned:
        return apply_pins(profile, pins)
    tuned: dict[str, TunedRate] = {}
    for origin in dict.fromkeys((profile.origin or profile.name, profile.name)):
        for place, words in ((REFERENCE, "results/reference"), (results, "results")):
            folder = place / origin / "tune"
            tuned |= tuned_rates(read_sweeps(folder), f"{words}/{origin}/tune")
    return apply_pins(profile.model_copy(update={"tuned": tuned}), pins)


def next_rate(rates: Iterable[float], best: float) -> float:
    """The rate beyond the edge at which the best one lies, by the grid's own ratio there."""
    ordered = sorted(rates)
    if best == ordered[0]:
        return ordered[0] * ordered[0] / ordered[1]
    return ordered[-1] * ordered[-1] / ordered[-2]
