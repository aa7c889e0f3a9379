"""What a results folder holds, read once: records and, by run, the tables that they name.

Not covered: aggregating (studylib.reporting.summary) and showing (tables, figures, report).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from studylib.core.errors import StudyError
from studylib.schema.card_study import CardFiles, read_card_files
from studylib.schema.profile import RunSpec, read_profile, shipped_profiles
from studylib.schema.records import Record, read_records
from studylib.schema.run_forecasts import PlannedStage, RunForecast, read_run_forecasts
from studylib.schema.serve_records import ServeRecord, read_serve_records
from studylib.schema.tuning import TuneRecord, read_sweeps

ITEM_COLUMNS = ["task", "weights", "subject", "item", "correct"]
PER_SEED_FIELDS = ("data.tokens_seen", "data.order_sha256")


@dataclass(frozen=True)
class Study:
    """Records of one profile by run id, where they lie, and what was planned but has no record.

    `folder` is the results folder itself; `link` is the same folder as seen from the report.
    `failed` is run id -> what is known of the failure; `sweeps` searched for learning rates;
    `serves` measured what it costs to serve; `forecasts` belong to trainings, `serving_plans` to
    serving runs; `card` is what a study under a clock left beside its records, None for any other.
    """

    name: str
    folder: Path
    link: str
    records: tuple[Record, ...]
    planned: tuple[RunSpec, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)
    sweeps: tuple[TuneRecord, ...] = ()
    serves: tuple[ServeRecord, ...] = ()
    forecasts: tuple[RunForecast, ...] = ()
    serving_plans: Mapping[str, PlannedStage] = field(default_factory=dict)
    card: CardFiles | None = None

    def items(self, records: Iterable[Record]) -> list[pa.Table]:
        """Answered items of each run that was asked any. Columns: ITEM_COLUMNS.

        A quantized run has each item twice, told apart by the weights that were scored.
        """
        return self.tables(records, "items.parquet", ITEM_COLUMNS)

    def frame(
        self, record: Record, name: str, columns: list[str] | None = None
    ) -> pd.DataFrame | None:
        """A run's table of a name; None where it has none."""
        if name not in record.files:
            return None
        return pd.read_parquet(self.folder / "runs" / record.run_id / name, columns=columns)

    def tables(self, records: Iterable[Record], name: str, columns: list[str]) -> list[pa.Table]:
        """The runs' tables of a name, where they have one: pandas takes eight times as long."""
        return [
            pq.ParquetFile(self.folder / "runs" / r.run_id / name).read(columns, use_threads=False)
            for r in records
            if name in r.files
        ]

    @property
    def missing(self) -> list[RunSpec]:
        """Planned runs that have no record."""
        have = {record.run_id for record in self.records}
        return [spec for spec in self.planned if spec.run_id not in have]


def read_study(
    folder: Path,
    link: str = "",
    planned: Iterable[RunSpec] | None = None,
    failed: Mapping[str, str] | None = None,
) -> Study:
    """The study in a results folder. StudyError: no runs there, or a record that cannot be trusted.

    planned: None takes the shipped profile of the folder's name, if there is one with models.
    """
    records = read_records(folder / "runs")
    if not records:
        raise StudyError(folder, "no record lies below its runs folder",
                         "Run the study first: make reproduce.")  # fmt: skip
    if planned is None:
        shipped = folder.name in set(shipped_profiles()) - {"custom"}
        planned = read_profile(folder.name).runs() if shipped else ()
    forecasts = read_run_forecasts(folder)
    return Study(
        name=folder.name,
        folder=folder,
        link=link,
        records=tuple(sorted(records, key=lambda record: record.run_id)),
        planned=tuple(planned),
        failed=dict(failed or {}),
        sweeps=tuple(read_sweeps(folder / "tune")),
        serves=tuple(read_serve_records(folder / "serve")),
        forecasts=forecasts.runs if forecasts else (),
        serving_plans=forecasts.serving if forecasts else {},
        card=read_card_files(folder),
    )


@dataclass(frozen=True)
class RightAnswers:
    """Right and wrong answers of one method: `correct` [seeds, items], `subjects` and `items`
    [items]."""

    correct: NDArray[np.bool_]
    subjects: NDArray[np.str_]
    items: NDArray[np.str_]

    @property
    def clusters(self) -> NDArray[np.str_] | None:
        """Subjects as clusters; None (each item its own) where there is one subject only."""
        return self.subjects if len(set(self.subjects)) > 1 else None


def gather_answers(tables: Sequence[pa.Table], task: str, weights: str) -> RightAnswers | None:
    """One row a run for a task's items on one set of weights; None where a run has fewer than two.

    StudyError: the runs answered other items, or the same in another order.
    """
    if not tables:
        return None
    whole = pa.concat_tables(tables, promote_options="permissive").to_pandas()
    asked = ((whole["task"] == task) & (whole["weights"] == weights)).to_numpy(dtype=bool)
    runs = np.repeat(np.arange(len(tables)), [table.num_rows for table in tables])[asked]
    counts = np.bincount(runs, minlength=len(tables))
    if counts.min() < 2:
        return None
    shape = (len(tables), counts[0])
    keys = [pd.factorize(whole.loc[asked, name]) for name in ("subject", "item")]
    uneven = (counts != counts[0]).any()
    if uneven or any((rows != rows[0]).any() for rows in (n.reshape(shape) for n, _ in keys)):
        raise StudyError(task, "runs of one comparison answered other items",
                         "Run them again on the same questions.")  # fmt: skip
    subjects, items = (names.to_numpy(dtype=np.str_)[n[: counts[0]]] for n, names in keys)
    correct = whole.loc[asked, "correct"].to_numpy(dtype=bool)
    return RightAnswers(correct.reshape(shape), subjects, items)
