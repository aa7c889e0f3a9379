"""What records say that advice may use: points behind full fine-tuning, and adapters' latency.

Every profile's folder below the given roots is read: the reference that ships with the study and
the reader's own results. A folder whose records cannot be trusted is left out, and that is said.

Not covered: forecasts and prices (gathered where torch may be imported).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path

from studylib.core import stats
from studylib.core.errors import StudyError
from studylib.inputs.almanac import USUAL_FACTS
from studylib.planning.case import AccuracyEvidence, Change, Evidence, LatencyEvidence, LeftOut
from studylib.planning.catalog import find_shape
from studylib.reporting.kept import kept_of_gain
from studylib.reporting.study import RightAnswers, gather_answers, read_study
from studylib.reporting.summary import Comparison, Row, summarise_study
from studylib.reporting.team_advice import is_deep
from studylib.schema.methods import WHOLE
from studylib.schema.ranges import Range
from studylib.schema.records import Record
from studylib.schema.serve_records import ServeRecord, read_serve_records
from studylib.schema.settings import ModelRef

RANK = 16  # of the adapters that are forecast; other ranks are other methods
REFERENCE_NAME = "reference"


def result_folders(roots: Iterable[Path]) -> list[tuple[str, Path]]:
    """(name, folder) of every folder with runs or servings below the roots, each once."""
    found: dict[Path, tuple[str, Path]] = {}
    for root in roots:
        for folder in sorted(root.glob("*")) if root.is_dir() else []:
            if any(folder.glob("runs/*/record.json")) or any(folder.glob("serve/*/serve.json")):
                prefix = f"{REFERENCE_NAME}/" if root.name == REFERENCE_NAME else ""
                found.setdefault(folder.resolve(), (f"{prefix}{folder.name}", folder))
    return list(found.values())


def read_roots(roots: Iterable[Path]) -> Evidence:
    """Accuracy gaps and latency overheads of all folders below the roots, and those left out."""
    accuracy: list[AccuracyEvidence] = []
    latency: list[LatencyEvidence] = []
    left_out = []
    for name, folder in result_folders(roots):
        try:
            found = read_accuracy(name, folder), read_latency(name, folder)
        except StudyError as error:
            what = f"the records of {name}"
            command = f"study report --profile {folder.name} --results {folder.parent}"
            left_out.append(LeftOut(what=what, why=error.rule, command=command))
            continue
        accuracy += found[0]
        latency += found[1]
    return Evidence(accuracy=tuple(accuracy), latency=tuple(latency), left_out=tuple(left_out))


def read_accuracy(name: str, folder: Path) -> list[AccuracyEvidence]:
    """Gaps to full fine-tuning of every comparison that has one, in points lost. What full itself
    did not clearly move (a model that guesses) says nothing of what an adapter loses."""
    if not any(folder.glob("runs/*/record.json")):
        return []
    comparisons = summarise_study(read_study(folder, planned=())).comparisons
    found = [
        piece
        for comparison in comparisons
        for row in (*comparison.rows, *comparison.also)
        if row.method.name != WHOLE
        and moved(comparison)
        and (piece := describe_gap(name, comparison, row, row.gap)) is not None
    ]
    return found + compare_sizes(name, comparisons)


def moved(comparison: Comparison) -> bool:
    """Whether full fine-tuning changed the answers beyond chance; so too where no base tells."""
    full = comparison.row(WHOLE)
    gain = full.gain if full else None
    return gain is None or gain.low > 0 or gain.high < 0


def describe_gap(
    name: str,
    comparison: Comparison,
    row: Row,
    gap: stats.Estimate | None,
    against: str | None = None,
) -> AccuracyEvidence | None:
    """One row as evidence: points behind and share kept, those that are known.

    None where neither is, and for adapters of another rank than is forecast.
    """
    trained = [r for r in row.complete if r.train is not None]
    params = comparison.total_params
    if row.method.rank not in (None, RANK) or not trained or params is None:
        return None
    share = kept_of_gain(comparison, row) if against is None else None
    if gap is None and share is None:
        return None
    forgot = row.forgetting
    full = comparison.row(WHOLE)
    records = [*row.complete, *(full.complete if full and against is None else [])]
    return AccuracyEvidence(
        ids=tuple(record_id(name, r.run_id) for r in records),
        model=comparison.model,
        against=against or comparison.model,
        params=params,
        method=row.method.name,
        merged="merged" in (row.weights or ""),
        change="language" if is_deep(comparison) else kind_of_change(trained[0]),
        tokens=round(statistics.median(r.train.tokens_seen for r in trained if r.train)),
        facts=facts_of(trained[0]),
        loss_pp=points_lost(gap) if gap else None,
        kept=Range(mid=share[0], low=share[1], high=share[2]) if share else None,
        forgot_pp=points_lost(forgot) if forgot else None,
        questions=gap.items if gap else 0,
        seeds=gap.seeds if gap else len(trained),
    )


def points_lost(gap: stats.Estimate) -> Range:
    """A difference of shares, ours less theirs, as points that are lost."""
    return Range(low=-100 * gap.high, mid=-100 * gap.value, high=-100 * gap.low)


def record_id(name: str, run_id: str) -> str:
    return f"record:{name}/runs/{run_id}"


def kind_of_change(record: Record) -> Change:
    """By track and data: new facts of the almanac, or a task of the reader's; a new language where
    the almanac's is one. That a track is deep, studylib.reporting.team_advice says."""
    if record.run.data.source == "almanac:shifted":
        return "language"
    return "knowledge" if record.run.data.source.startswith("almanac:") else "task"


def facts_of(record: Record) -> int | None:
    data = record.run.data
    return data.facts or (USUAL_FACTS if data.source == "almanac:new" else None)


def compare_sizes(name: str, comparisons: Iterable[Comparison]) -> list[AccuracyEvidence]:
    """What a smaller model in full loses against a bigger one in full, on the same questions."""
    found = []
    sized = [c for c in comparisons if c.total_params and c.row(WHOLE) and not c.mark]
    for small in sized:
        for big in sized:
            if small.track != big.track or not small.total_params < big.total_params:  # type: ignore
                continue
            gap = gap_of_sizes(small, big)
            row = small.row(WHOLE)
            if gap is None or row is None:
                continue
            piece = describe_gap(name, small, row, gap, against=big.model)
            if piece is not None:
                others = big.row(WHOLE).complete  # type: ignore[union-attr]
                ids = (*piece.ids, *(record_id(name, r.run_id) for r in others))
                found.append(piece.model_copy(update={"ids": ids}))
    return found


def gap_of_sizes(small: Comparison, big: Comparison) -> stats.Estimate | None:
    ours, theirs = (full_answers(c) for c in (small, big))
    if ours is None or theirs is None or list(ours.subjects) != list(theirs.subjects):
        return None
    if asked(small) != asked(big):
        return None
    return stats.compare_methods(ours.correct, theirs.correct, ours.clusters)


def full_answers(comparison: Comparison) -> RightAnswers | None:
    row = comparison.row(WHOLE)
    if row is None or row.weights is None:
        return None
    return gather_answers(comparison.study.items(row.complete), "questions", row.weights)


def asked(comparison: Comparison) -> set[object]:
    row = comparison.row(WHOLE)
    records = row.complete if row else []
    return {r.fingerprint.get("evaluate.items_sha256") for r in records}


def read_latency(name: str, folder: Path) -> list[LatencyEvidence]:
    """Whole answers' time with an adapter kept apart over the base's, less 1, in per cent."""
    pieces = [describe_latency(name, record) for record in read_serve_records(folder / "serve")]
    return [piece for piece in pieces if piece is not None]


def describe_latency(name: str, record: ServeRecord) -> LatencyEvidence | None:
    """Over all batch sizes and prompt lengths: lowest end, median value, highest end."""
    spec = record.spec
    rows = [
        row.whole_ratio
        for row in record.measures.latency
        if row.decoding == "eager"
        and row.whole_ratio is not None
        and (row.variant, row.against) == ("dynamic", "base")
    ]
    if not spec.method.kind.adapter or spec.method.rank not in (None, RANK) or not rows:
        return None
    return LatencyEvidence(
        id=f"record:{name}/serve/{record.serve_id}",
        model=spec.model,
        params=params_of(spec.model, record),
        method=spec.method.name,
        device=record.environment.device,
        overhead_percent=Range(
            low=100 * (min(r.low for r in rows) - 1),
            mid=100 * (statistics.median(r.value for r in rows) - 1),
            high=100 * (max(r.high for r in rows) - 1),
        ),
    )


def params_of(model: str, record: ServeRecord) -> int | None:
    """Parameters of a served model: a shape's, or its checkpoint's bytes over their width."""
    ref = ModelRef.parse(model)
    if ref.kind == "shape":
        return find_shape(ref.name).total_params
    width = {"fp32": 4, "bf16": 2, "fp16": 2}
    for row in record.measures.footprint:
        if row.what in ("checkpoint", "merged model") and row.dtype in width:
            return row.memory_bytes // width[row.dtype]
    return None
