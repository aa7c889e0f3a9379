"""The forecasts of a study's own runs, to be set beside what was measured: schema, file, freshness.

results/PROFILE/run_forecasts.json is made from records (studylib.forecasting.run_forecasts) and is
read without torch. It can be made again by a better forecaster long after the runs.

Not covered: tracing, and the article's jobs (studylib.schema.forecast_book).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from pydantic import Field

from studylib.core.sealed import read_sealed, write_sealed
from studylib.schema.ranges import Range
from studylib.schema.records import Record
from studylib.schema.settings import Frozen

RUN_FORECASTS = "run_forecasts.json"
VERSION = 1
HELD = ("weights", "quantization_constants", "adapter")


class PlannedStage(Frozen):
    """What a plan says of a stage: its seconds, and the bytes that torch would count on a card.

    None: it says nothing of that.
    """

    seconds: Range | None = None
    allocated_bytes: int | None = None


class RunForecast(Frozen):
    """One training step as it was forecast, in bytes of one card (or of a host's tensors).

    peak_bytes: what the driver shows of the process. allocated_bytes: what torch counts.
    paged_bytes: optimizer states in managed memory, on the card while it has room and in neither of
    these. step_seconds, and roofline_seconds at the datasheet's rates: None on a CPU and on a card
    that the catalog lacks. record_digest: of the record that it belongs to. stages: those of the
    run that a plan speaks of: load (with the start of a process), train, evaluate.
    """

    run_id: str
    record_digest: str
    peak_bytes: int
    allocated_bytes: int
    peak_stage: str
    parts: dict[str, int]
    paged_bytes: int = 0
    step_seconds: Range | None
    roofline_seconds: float | None = None
    stages: dict[str, PlannedStage] = Field(default_factory=dict)

    @property
    def card_bytes(self) -> int:
        """What the driver shows of a card that has room for paged states too."""
        return self.peak_bytes + self.paged_bytes

    @property
    def weights_bytes(self) -> int:
        """What is held of a model between two steps: weights, 4-bit constants, adapter."""
        return sum(self.parts.get(name, 0) for name in HELD)


class RunForecasts(Frozen):
    """All of a study's. left_out: run id -> why it has none. code_sha256: of what traced them.

    serving: serving run -> what a plan says of it. speeds: what the plan of a run without a card
    rests on, operations by second of the processor; taken once and kept.
    """

    schema_version: int = VERSION
    runs: tuple[RunForecast, ...]
    left_out: dict[str, str]
    serving: dict[str, PlannedStage] = Field(default_factory=dict)
    speeds: dict[str, float] = Field(default_factory=dict)
    packages: dict[str, str]
    code_sha256: str
    digest: str = ""

    def made_for(
        self, records: Iterable[Record], code_sha256: str, serving: Collection[str] = ()
    ) -> bool:
        """Whether these are the forecasts of these records by this code, and of serving runs."""
        wanted = digests(records)
        made = {run.run_id: run.record_digest for run in self.runs}
        made |= {run_id: wanted.get(run_id, "") for run_id in self.left_out}
        served = set(serving) == set(self.serving)
        return self.code_sha256 == code_sha256 and made == wanted and served


def digests(records: Iterable[Record]) -> dict[str, str]:
    """Run id -> digest of the records that a forecast can be set beside: those of trainings."""
    started = (r for r in records if r.run.method.kind.trains and r.load is not None)
    return {record.run_id: record.digest for record in started}


def write_run_forecasts(folder: Path, made: RunForecasts) -> Path:
    return write_sealed(folder / RUN_FORECASTS, made, over=True)


def read_run_forecasts(folder: Path) -> RunForecasts | None:
    """Those of results/PROFILE; None where there are none. StudyError: they cannot be trusted."""
    path = folder / RUN_FORECASTS
    if not path.is_file():
        return None
    remedy = "Delete it and run `make report`, or `make forecasts` for the reference's."
    return read_sealed(path, RunForecasts, VERSION, "the file of forecasts", remedy)
