"""What the serving notebook shows of one run in more detail than the report: each percentile and
each comparison of answers.

Every function takes measures and returns a table or a sentence; a missing figure is a word.

Not covered: bytes, variants and mixed batches, of which it shows the report's own tables
(studylib.reporting.serve_tables).
"""

from __future__ import annotations

import pandas as pd

from studylib.core.metrics import MISSING
from studylib.reporting.claim_sources import overhead_text
from studylib.schema.serving import (
    Equality,
    PairedRatio,
    ServeMeasures,
    SwapMeasures,
    Timings,
)


def tabulate_latency(measures: ServeMeasures) -> pd.DataFrame:
    """Milliseconds, tokens a second, and how much a variant adds to its base (95 % interval)."""
    return pd.DataFrame(
        [
            {
                "variant": row.variant,
                "decoding": row.decoding,
                "batch": row.batch,
                "prompt": row.prompt_tokens,
                "first token (ms)": timing_percentiles(row.first_token_seconds),
                "between tokens p50 / p95 / p99 (ms)": timing_percentiles(
                    row.between_tokens_seconds
                ),
                "tokens/s": f"{row.tokens_per_second:,.0f}",
                "against": row.against or "",
                "adds to first token": overhead(row.first_token_ratio),
                "adds between tokens": overhead(row.between_tokens_ratio),
            }
            for row in measures.latency
        ]
    )


def timing_percentiles(timings: Timings | None) -> str:
    """Median and the percentiles that the number of timings can show."""
    if timings is None:
        return MISSING
    parts = [part for part in (timings.p50, timings.p95, timings.p99) if part is not None]
    return " / ".join(f"{1e3 * part:.3g}" for part in parts)


def overhead(ratio: PairedRatio | None) -> str:
    """A paired ratio as what is added, in per cent, with its interval."""
    return "" if ratio is None else overhead_text(ratio)


def tabulate_swap(swap: SwapMeasures | None) -> pd.DataFrame | str:
    """Milliseconds of each change of the variant."""
    if swap is None:
        return "This method has no adapter to swap."
    times = {
        "switch among loaded adapters": swap.switch_seconds,
        "load an adapter from disk": swap.load_adapter_seconds,
        f"merge ({swap.merge_way})": swap.merge_seconds,
        "unmerge": swap.unmerge_seconds,
        "load base and adapter anew": swap.load_model_seconds,
    }
    return pd.DataFrame(
        [
            {
                "change": name,
                "times": t.count if t else 0,
                "p50 / p95 / p99 (ms)": timing_percentiles(t),
            }
            for name, t in times.items()
        ]
    )


def tabulate_checks(measures: ServeMeasures) -> pd.DataFrame | str:
    """Every comparison of answers: the largest difference beside what passes for equal."""
    checks: list[Equality] = list(measures.swap.checks if measures.swap else ())
    for row in measures.mixed:
        checks += row.checks
    if not checks:
        return "Without an adapter there is nothing to compare."
    return pd.DataFrame(
        [
            {
                "compared": check.what,
                "difference": f"{check.difference:.1e}",
                f"tolerance in {check.dtype}": f"{check.tolerance:.0e}",
                "equal": ("yes" if check.holds else "NO")
                + ("" if check.required else " (not relied on)"),
            }
            for check in checks
        ]
    )


def list_skipped(measures: ServeMeasures) -> str:
    """What was not measured, with its reason, and the notes, as Markdown."""
    lines = [f"- {skipped.what}: not measured, {skipped.reason}" for skipped in measures.skipped]
    return "\n".join(lines + [f"- {note}" for note in measures.notes]) or "Nothing was skipped."
