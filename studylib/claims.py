"""The article's claims against our figures: one finding a part, judged by the rule in claims.yaml.

Every finding says how its figure was got: counted (exact arithmetic on the model's shape),
measured (records), forecast (traced without the device) or not measured yet, and what it needs.
Where a study has several sizes, each is judged by itself.

Not covered: the rule itself (studylib.verdicts) and getting forecasts, which are handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from studylib import stats
from studylib.catalog import find_shape
from studylib.counts import checkpoint_bytes, count_adapter, count_parameters
from studylib.metrics import plain_number, points
from studylib.summary import Comparison, Row, Summary
from studylib.verdicts import Measured, Rule, judge_claim, parse_rule

CLAIMS = Path(__file__).parent / "claims.yaml"
NOT_YET = "not measured yet"


@dataclass(frozen=True)
class Forecast:
    """A figure traced without the device, in the unit of the claim's rule.

    low, high: what its error leaves possible. source: how it was got, in words.
    """

    value: float
    low: float
    high: float
    source: str


@dataclass(frozen=True)
class Finding:
    """One part of a claim beside what we found.

    how: "counted ...", "measured on ...", "forecast ...", or what it still needs. decided_by: the
    figure that the verdict rests on.
    """

    claim: str
    part: str
    topic: str
    article: str
    ours: str
    how: str
    verdict: str
    decided_by: str
    rule: str


@dataclass(frozen=True)
class Figure:
    """Our figure for a part: in words, how it was got, for the rule, and what hinders comparing."""

    ours: str
    how: str
    measured: Measured | None
    obstacle: str | None = None


Part = Mapping[str, Any]


@lru_cache(maxsize=1)
def read_claims() -> dict[str, dict[str, Any]]:
    return yaml.safe_load(CLAIMS.read_text(encoding="utf-8"))


def article_rule(method: str) -> Rule | None:
    """The rule by which the article's gap of a method is judged (C4), in points behind full."""
    parts = read_claims()["C4"]["parts"]
    return next((parse_rule(part["rule"]) for part in parts if part["key"] == method), None)


def evaluate_claims(
    summaries: Iterable[Summary], forecasts: Mapping[str, Forecast] | None = None
) -> list[Finding]:
    """All findings in the order of the claims. forecasts: by CLAIM.PART, such as C2.qlora."""
    studies = list(summaries)
    found = []
    for claim, content in read_claims().items():
        for part in content["parts"]:
            forecast = (forecasts or {}).get(f"{claim}.{part['key']}")
            figures = find_figures(part, studies, forecast)
            found += [judge(claim, content["topic"], part, figure) for figure in figures]
            if not figures:
                needs = f"needs {part['needs']}"
                found.append(
                    Finding(claim, part["key"], content["topic"], part["article"], NOT_YET, needs,
                            NOT_YET, "", describe_rule(part))
                )  # fmt: skip
    return found


def find_figures(part: Part, studies: list[Summary], forecast: Forecast | None) -> list[Figure]:
    """Our figures for a part: one count, or one a comparison, or the forecast, or none."""
    source = part.get("source", {})
    if "count" in source:
        return [COUNTS[source["count"]](source)]
    figures = []
    if "measure" in source:
        for comparison in (c for study in studies for c in study.comparisons):
            row = comparison.row(source["method"])
            if row and comparison.track in source.get("tracks", [comparison.track]):
                figures.append(MEASURES[source["measure"]](comparison, row))
    found = [figure for figure in figures if figure is not None]
    if forecast is not None:
        unit = part["rule"]["unit"]
        measured = Measured(forecast.value, unit, forecast.low, forecast.high)
        ours = f"{with_unit(forecast.value, unit)} ({number_range(measured)})"
        found.append(Figure(ours, f"forecast: {forecast.source}", measured))
    return found


def judge(claim: str, topic: str, part: Part, figure: Figure) -> Finding:
    judgement = judge_claim(parse_rule(part["rule"]), figure.measured, figure.obstacle)
    got = figure.how.split()[0].rstrip(":")
    reason = judgement.reason.replace(" -", " −")
    if got != "measured":  # a count or a forecast has a range, not a sampling interval
        reason = reason.replace("measured", got).replace("95 % interval", "range")
    return Finding(claim, part["key"], topic, part["article"], figure.ours, figure.how,
                   str(judgement.verdict), reason, describe_rule(part))  # fmt: skip


def describe_rule(part: Part) -> str:
    """The rule of a part in words, as it stands in claims.yaml."""
    if "rule" not in part:
        return part["words"]
    rule = parse_rule(part["rule"])
    low, high = (with_unit(end, rule.unit) for end in rule.band)
    seeds = f", {rule.min_seeds} seeds or more" if rule.min_seeds > 1 else ""
    return f"reproduced from {low} to {high}{seeds} ({part['why']})"


def with_unit(value: float, unit: str) -> str:
    text = f"{float(f'{value:.3g}'):,g}".replace("-", "−")
    return f"${text}" if unit == "$" else f"{text} {unit}"


def number_range(measured: Measured) -> str:
    low, high = measured.interval
    return f"{plain_number(low, 3)} to {plain_number(high, 3)}"


# Counted ------------------------------------------------------------------------------------------


def count_adapter_parameters(source: Part) -> Figure:
    shape = find_shape(source["shape"])
    count = count_adapter(shape, source["rank"], targets_of(source))
    ours = f"{count:,} on {where(source)}"
    return Figure(ours, counted(shape.name), Measured(count / 1e6, "M"))


def count_adapter_share(source: Part) -> Figure:
    shape = find_shape(source["shape"])
    total = count_parameters(shape)
    share = 100 * count_adapter(shape, source["rank"], targets_of(source)) / total
    every = 100 * count_adapter(shape, source["rank"]) / total
    ours = f"{share:.4f} % of {total:,}; {every:.4f} % on all linear layers"
    return Figure(ours, counted(shape.name), Measured(share, "%"))


def count_checkpoint_size(source: Part) -> Figure:
    shape = find_shape(source["shape"])
    size = checkpoint_bytes(count_parameters(shape), source["dtype"])
    ours = f"{size:,} bytes = {size / 1e9:.2f} GB in {source['dtype']}"
    return Figure(ours, counted(shape.name), Measured(size / 1e9, "GB"))


def count_adapter_size(source: Part) -> Figure:
    """Bytes of an adapter in bf16 and in fp32, as one range."""
    shape = find_shape(source["shape"])
    count = count_adapter(shape, source["rank"], targets_of(source))
    low, high = (checkpoint_bytes(count, dtype) / 1e6 for dtype in ("bf16", "fp32"))
    ours = f"{low:.1f} MB in bf16, {high:.1f} MB in fp32, r={source['rank']} on {where(source)}"
    return Figure(ours, counted(shape.name), Measured(high, "MB", low, high))


def targets_of(source: Part) -> tuple[str, ...] | None:
    return tuple(source["targets"]) if "targets" in source else None


def where(source: Part) -> str:
    targets = targets_of(source)
    return "all linear layers" if targets is None else ",".join(t[0] for t in targets)


def counted(shape: str) -> str:
    return f"counted from the shape of {shape}"


# Measured -----------------------------------------------------------------------------------------


def measure_behind_full(comparison: Comparison, row: Row) -> Figure | None:
    """How far a method's accuracy lies behind full fine-tuning's, in points."""
    if row.gap is None:
        return None
    gap = row.gap
    measured = Measured(-100 * gap.value, "pp", -100 * gap.high, -100 * gap.low, seeds(row))
    ours = f"{row.method.label}: {interval(gap)} against full"
    return Figure(ours, measured_on(comparison), measured, find_obstacle(comparison, row))


def measure_share_of_gain(comparison: Comparison, row: Row) -> Figure | None:
    """A method's share of full fine-tuning's gain over the base, in per cent.

    The interval is the paired gap's, over full's gain taken as known: a gain that is clear of zero
    by far makes its own error small beside it.
    """
    full = comparison.row("full")
    if row.gap is None or full is None or full.gain is None:
        return None
    gain = full.gain.value
    ours = f"{row.method.label} {points(gain + row.gap.value)} pp, full {interval(full.gain)}"
    if full.gain.low <= 0:
        obstacle = "full fine-tuning's own gain is not clear of zero"
        return Figure(ours, measured_on(comparison), None, obstacle)
    value, low, high = (
        100 * (1 + end / gain) for end in (row.gap.value, row.gap.low, row.gap.high)
    )
    measured = Measured(value, "% of full's gain", low, high, seeds(row))
    return Figure(ours, measured_on(comparison), measured, find_obstacle(comparison, row))


def find_obstacle(comparison: Comparison, row: Row) -> str | None:
    full = comparison.row("full")
    if not row.above_chance and not (full and full.above_chance):
        return "neither accuracy can be told from chance"
    return None


def seeds(row: Row) -> int | None:
    return None if row.gap is None else row.gap.seeds


def measured_on(comparison: Comparison) -> str:
    device = comparison.rows[0].records[0].environment.device
    return f"measured on {device}: {comparison.name}, track {comparison.track}"


def interval(estimate: stats.Estimate) -> str:
    """A difference in points with its 95 % interval."""
    return f"{points(estimate.value)} pp [{points(estimate.low)}, {points(estimate.high)}]"


COUNTS: dict[str, Callable[[Part], Figure]] = {
    "adapter_parameters": count_adapter_parameters,
    "adapter_share": count_adapter_share,
    "checkpoint_size": count_checkpoint_size,
    "adapter_size": count_adapter_size,
}
MEASURES: dict[str, Callable[[Comparison, Row], Figure | None]] = {
    "behind_full": measure_behind_full,
    "share_of_gain": measure_share_of_gain,
}
