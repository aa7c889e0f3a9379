"""Memory and speed by the rows and tokens of a pass: a study whose tracks differ in nothing else.

Not covered: studies that compare methods at one setting (studylib.reporting.tables, prose).
"""

from __future__ import annotations

from collections.abc import Iterator

from studylib.core.metrics import METRICS, plain_number
from studylib.reporting.blocks import NAMED, Table, figures, words
from studylib.reporting.cells import (
    cost_cell,
    link_record,
    method_cell,
    peak_cell,
    rows_of,
    trained_cell,
)
from studylib.reporting.notes import join_words, shown_keys
from studylib.reporting.summary import Comparison, Row, Summary

VARIED = {"micro_batch", "seq_len"}
CARD_GB = 24  # the card that the article speaks of
FIGURES = ("clean_step_seconds", "tokens_per_second", "model_flops_utilisation")


def is_grid(summary: Summary) -> bool:
    """Whether the tracks train the same in three or more shapes of a pass."""
    runs = [r.run for r in summary.study.records if r.run.method.kind.trains]
    same = {
        run.model_dump_json(include={"train", "data", "evaluate"}, exclude={"train": VARIED})
        for run in runs
    }
    shapes = {(run.train.micro_batch, run.train.seq_len) for run in runs}
    tracks = {run.track for run in runs}
    return len(same) == 1 and len(shapes) == len(tracks) >= 3


def cells_of(summary: Summary) -> Iterator[tuple[Comparison, Row]]:
    """Every trained row, models as they come, then methods, then by tokens and rows of a pass."""
    found = [
        (comparison, row)
        for comparison in summary.comparisons
        for row in comparison.rows
        if row.method.kind.trains
    ]
    models = list(dict.fromkeys(comparison.model for comparison, _ in found))
    methods = list(dict.fromkeys(row.method for _, row in found))

    def place(cell: tuple[Comparison, Row]) -> tuple[int, int, int, int]:
        comparison, row = cell
        recipe = row.records[0].run.train
        at = (models.index(comparison.model), methods.index(row.method))
        return (*at, recipe.seq_len, recipe.micro_batch)

    yield from sorted(found, key=place)


def grid_table(summary: Summary) -> Table:
    """One row a method and shape of a pass: its peak, its speed, its cost."""
    keys = shown_keys(summary.comparisons, ("train_peak_bytes", *FIGURES, "cost_usd"))
    header = (*NAMED, *figures("Rows × tokens", *(METRICS[key].header for key in keys)),
              *words("Records"))  # fmt: skip
    rows = []
    for comparison, row in cells_of(summary):
        rows.append((
            comparison.name, method_cell(row), rows_of(row.records[0]),
            peak_cell(row, comparison.memory_kind, "train"),
            *(trained_cell(row, key) for key in keys if key in FIGURES),
            *(cost_cell(row, brief=True) for key in keys if key == "cost_usd"),
            " ".join(link_record(comparison.study.link, r, f"s{r.run.seed}") for r in row.records),
        ))  # fmt: skip
    return Table(header, tuple(rows))


def tell_grid(summary: Summary) -> str:
    """Which passes of each model and method stayed below the article's card, by NVML."""
    below: dict[tuple[str, str], list[str]] = {}
    measured = False
    for comparison, row in cells_of(summary):
        fitting = below.setdefault((comparison.name, row.label), [])
        peak = row.memory.get(("nvml_peak_bytes", "train"))
        measured |= peak is not None
        if peak and row.complete and not row.status and peak.value <= CARD_GB * 1e9:
            fitting.append(f"{rows_of(row.records[0])} ({plain_number(peak.value / 1e9, 3)} GB)")
    if not measured:
        return f"No card was read: which passes stay below {CARD_GB} GB is not measured."
    parts = [
        f"{label} of {name} at {join_words(fitting)}" if fitting else f"{label} of {name} at none"
        for (name, label), fitting in below.items()
    ]
    return (
        f"**Below {CARD_GB} GB by NVML**, of the rows × tokens that were tried: {'; '.join(parts)}."
    )
