"""One model's method measured at several rows and tokens of a pass: by which a claim is judged.

The article names no batch. Its own profile (article.yaml) has rows of 2,048 tokens, one a pass, and
that is the pass to judge by where it was measured; the nearest one otherwise. The others stand
beside it as a range, so that nobody picks the flattering one.

Not covered: the figures themselves (studylib.reporting.claim_sources) and the verdict.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from studylib.planning.catalog import match_gpu
from studylib.reporting.cells import rows_of
from studylib.reporting.summary import Comparison, Row
from studylib.schema.profile import read_profile
from studylib.schema.records import Record
from studylib.schema.serve_records import ServeRecord

# What may differ between passes of one job: the pass itself, and how long it went on.
VARIED = {"micro_batch", "seq_len", "accumulation", "steps", "checkpoint_every", "learning_rates"}
Cell = tuple[Comparison, Row]


class PassSettings(NamedTuple):
    """What a peak or a speed depends on most, of a run or of a forecast, to tell whether they are
    of the same job. gpu: the catalog's name; None where it does not matter (a peak)."""

    method: str
    micro_batch: int
    seq_len: int
    weights: str | None
    optimizer: str | None
    checkpointing: bool | None
    cards: int
    gpu: str | None = None


def job_of(record: Record) -> PassSettings:
    run, card = record.run, match_gpu(record.environment.device)
    return PassSettings(
        run.method.name, run.train.micro_batch, run.train.seq_len, run.weights_dtype,
        run.optimizer, run.train.checkpointing, max(run.gpus, 1), card.name if card else None,
    )  # fmt: skip


@lru_cache(maxsize=1)
def article_pass() -> tuple[int, int]:
    """Rows and tokens of a pass in the article's own profile."""
    recipe = read_profile("article").tracks[0].train
    return recipe.micro_batch, recipe.seq_len


def gather_passes(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Rows that differ in nothing but their pass, together: first the one to judge by, then the
    others by the tokens of a pass. Rows of another commit or code are never mixed in. The group
    that has the article's pass comes first."""
    groups: dict[tuple[object, ...], list[Cell]] = {}
    for comparison, row in cells:
        groups.setdefault(same_job(comparison, row), []).append((comparison, row))
    ordered = []
    for group in groups.values():
        judged = min(group, key=lambda cell: pass_distance(cell[1]))
        rest = [cell for cell in group if cell is not judged]
        ordered.append([judged, *sorted(rest, key=lambda cell: pass_size(cell[1]))])
    return sorted(ordered, key=lambda group: pass_distance(group[0][1]))


def same_job(comparison: Comparison, row: Row) -> tuple[object, ...]:
    first = row.records[0]
    recipe = first.run.train.model_dump_json(exclude=VARIED)
    return (comparison.study.folder, comparison.model, row.method, recipe, first.run.data,
            first.run.gpus, made_by(first))  # fmt: skip


def made_by(record: Record | ServeRecord) -> tuple[str, str, str]:
    """Device, commit and measuring code of a record: what figures of one table must share."""
    marks, environment = record.fingerprint, record.environment
    commit = environment.git_commit or "unknown"
    return environment.device, commit, str(marks.get("code.sha256", ""))


def commit_words(comparison: Comparison) -> str:
    """The commit of a card's record where its study has records of several; else empty."""
    study = comparison.study
    if study.card is None or len({made_by(record)[1:] for record in study.records}) == 1:
        return ""
    return f", commit {made_by(comparison.rows[0].records[0])[1][:12]}"


def pass_size(row: Row) -> tuple[int, int]:
    """Tokens of a pass, then rows."""
    recipe = row.records[0].run.train
    return recipe.micro_batch * recipe.seq_len, recipe.micro_batch


def pass_distance(row: Row) -> tuple[bool, float, int]:
    """How far a row's pass is from the article's: the same first, then by tokens of a pass."""
    recipe, (rows, length) = row.records[0].run.train, article_pass()
    tokens, own_rows = pass_size(row)
    other = (recipe.micro_batch, recipe.seq_len) != (rows, length)
    return other, abs(math.log(tokens / (rows * length))), own_rows


def why_judged(row: Row) -> str:
    """In words, by which pass a claim is judged."""
    rows, length = article_pass()
    own = rows_of(row.records[0])
    if own == f"{rows} × {length:,}":
        return f"judged at {own}, as the profile article has it"
    return f"judged at {own}, the nearest to the profile article's {rows} × {length:,}"
