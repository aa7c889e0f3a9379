"""The report's figures as csv files, unrounded, one a line, for whoever calculates further.

Not covered: tables for reading (studylib.reporting.tables).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from studylib.reporting.claims import Finding
from studylib.reporting.forecast_errors import compare_runs
from studylib.reporting.resources import MEMORY, STEP_FIGURES, wall_seconds
from studylib.reporting.summary import Summary
from studylib.schema.serve_records import ServeRecord
from studylib.schema.shared_card import runs_on_card


def write_csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    """Bytes of a csv file: None is empty, as csv has it; floats have 7 significant figures."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow([f"{c:.7g}" if isinstance(c, float) else c for c in row])
    return text.getvalue().encode()


def comparison_csv(summary: Summary) -> bytes:
    """Every figure of every row, one a line, unrounded."""
    header = ("track", "model", "method", "metric", "unit", "value", "low", "high", "runs", "got",
              "memory", "scored_on")  # fmt: skip
    rows: list[tuple] = []
    for comparison in summary.comparisons:
        for row in comparison.scored:
            name = (comparison.track, comparison.name, row.method.slug)
            for key, spread in row.figures.items():
                got = "counted" if key.startswith("trainable") else "measured"
                rows.append((*name, key, base_unit(key), spread.value, spread.low, spread.high,
                             spread.runs, got, None, None))  # fmt: skip
            for (kind, stage), spread in row.memory.items():
                rows.append((*name, f"{stage}_peak_bytes", "bytes", spread.value, spread.low,
                             spread.high, spread.runs, "measured", MEMORY[kind], None))  # fmt: skip
            for key in ("accuracy", "gain", "gap", "retention", "forgetting"):
                estimate = getattr(row, key)
                if estimate is not None:
                    rows.append((*name, key, "share", estimate.value, estimate.low, estimate.high,
                                 estimate.seeds, "measured", None, row.weights))  # fmt: skip
    return write_csv(header, rows)


def base_unit(key: str) -> str:
    """The unit in which records hold a figure, as its name says."""
    for end in ("bytes", "seconds", "usd", "watt_hours", "share"):
        if key.endswith(end):
            return end
    return "tokens per second" if key == "tokens_per_second" else "count"


def serving_csv(records: Iterable[ServeRecord]) -> bytes:
    """Every timed variant at every batch size and prompt length."""
    header = ("serve_id", "variant", "against", "decoding", "batch", "prompt_tokens",
              *(f"{what}_{p}_seconds" for what in ("first_token", "between_tokens")
                for p in ("p50", "p95", "p99")), "tokens_per_second",
              *(f"{what}_ratio{end}" for what in ("first_token", "between_tokens", "whole")
                for end in ("", "_low", "_high")))  # fmt: skip
    rows = []
    for record in records:
        for row in record.measures.latency:
            times = (row.first_token_seconds, row.between_tokens_seconds)
            ratios = (row.first_token_ratio, row.between_tokens_ratio, row.whole_ratio)
            rows.append((record.serve_id, row.variant, row.against, row.decoding, row.batch,
                         row.prompt_tokens,
                         *(getattr(t, p) for t in times for p in ("p50", "p95", "p99")),
                         row.tokens_per_second,
                         *(getattr(r, end, None) for r in ratios
                           for end in ("value", "low", "high"))))  # fmt: skip
    return write_csv(header, rows)


def forecasts_csv(summary: Summary) -> bytes:
    """Forecast against measured of every training: its peak, its parts, its step."""
    rows: list[tuple] = []
    for one in compare_runs([summary.study]):
        name = (one.record.run_id, one.record.status)
        if one.peak:
            rows.append((*name, "peak", one.counter, "bytes", one.peak.measured, one.peak.forecast,
                         None, None))  # fmt: skip
        for part, pair in one.parts.items():
            rows.append((*name, part, None, "bytes", pair.measured, pair.forecast, None, None))
        span, train = one.forecast.step_seconds, one.record.train
        if span and train:
            own = train.clean_step_seconds if runs_on_card(one.record) == 1 else None
            rows.append((*name, "step", None, "seconds", own, span.mid, span.low,
                         span.high))  # fmt: skip
    header = ("run_id", "status", "part", "counter", "unit", "measured", "forecast",
              "forecast_low", "forecast_high")  # fmt: skip
    return write_csv(header, rows)


def claims_csv(findings: Iterable[Finding]) -> bytes:
    header = ("claim", "part", "article", "ours", "how", "verdict", "decided_by", "rule")
    rows = [[getattr(found, name) for name in header] for found in findings]
    return write_csv(header, rows)


def subjects_csv(summary: Summary) -> bytes:
    """Right answers by subject of every run."""
    rows = []
    for record in summary.study.records:
        for score in record.evaluate.scores if record.evaluate else ():
            rows += [(record.run_id, score.task, score.weights, subject, n, right)
                     for subject, (n, right) in sorted(score.by_subject.items())]  # fmt: skip
    return write_csv(("run_id", "task", "scored_on", "subject", "questions", "correct"), rows)


def runs_csv(summary: Summary) -> bytes:
    header = ("run_id", "track", "model", "method", "seed", "status", "reason", "learning_rate",
              "questions", "correct", *STEP_FIGURES, "wall_seconds", "runs_on_card",
              "digest")  # fmt: skip
    rows = []
    for r in summary.study.records:
        score = r.evaluate.score("questions") if r.evaluate else None
        rows.append((
            r.run_id, r.run.track, r.run.model, r.run.method.slug, r.run.seed, r.status, r.reason,
            r.run.learning_rate, score.questions if score else None,
            score.correct if score else None,
            *(getattr(r.train, key) if r.train else None for key in STEP_FIGURES),
            wall_seconds(r), runs_on_card(r), r.digest,
        ))  # fmt: skip
    return write_csv(header, rows)


def measures_csv(summary: Summary) -> bytes:
    """Every figure and difference, unrounded, one a line."""
    header = ("track", "model", "method", "scored_on", "of", "measure", "unit", "figure", "value",
              "low", "high", "items", "groups", "seeds")  # fmt: skip
    rows: list[tuple] = []
    for comparison in summary.comparisons:
        for found in comparison.measured:
            measure = found.measure
            unit = "share" if measure.is_share else measure.unit
            kinds = {"figure": found.estimate, "gain": found.gain, "gap": found.gap,
                     "share_of_gain": found.share}  # fmt: skip
            for kind, estimate in kinds.items():
                if estimate is not None:
                    own = "share" if kind == "share_of_gain" else unit
                    rows.append((comparison.track, comparison.name, found.label, found.weights,
                                 found.of, measure.key, own, kind, estimate.value, estimate.low,
                                 estimate.high, estimate.items, estimate.clusters,
                                 estimate.seeds))  # fmt: skip
    return write_csv(header, rows)
