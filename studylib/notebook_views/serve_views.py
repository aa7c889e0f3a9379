"""What the serving notebook shows: bytes, seconds, ratios with their intervals, proofs.

Every function takes measures and returns a table or a sentence; a missing figure is a word.

Not covered: the report's tables and figures.
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


def tabulate_footprint(measures: ServeMeasures) -> pd.DataFrame:
    """Bytes on disk and in memory of each thing to keep, in MB."""
    return pd.DataFrame(
        [
            {
                "what": row.what,
                "dtype": row.dtype,
                "disk (MB)": f"{row.disk_bytes / 1e6:,.2f} ({row.disk_how})",
                "memory (MB)": f"{row.memory_bytes / 1e6:,.2f}",
            }
            for row in measures.footprint
        ]
    )


def show_variants(measures: ServeMeasures) -> pd.DataFrame:
    """Memory of N variants in each way, in MB, and from which N on the way takes less memory."""
    rows: dict[str, dict[str, str]] = {}
    for row in measures.variants:
        cell = f"{row.memory_bytes / 1e6:,.1f}"
        rows.setdefault(row.way, {})[f"{row.variants:,} (MB)"] = cell
    for even in measures.break_even:
        fewest = even.memory_variants
        rows[even.way]["pays from"] = "never" if fewest is None else f"{fewest} variants"
    return pd.DataFrame.from_dict(rows, orient="index").fillna("—")


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


def tabulate_mixed(measures: ServeMeasures) -> pd.DataFrame | str:
    """Tokens a second of each way to serve the same rows, and the mixed batch's time beside it."""
    if not measures.mixed:
        return "No mixed batch was served."
    rows = []
    for row in measures.mixed:
        ratios = {
            "one adapter": row.ratio_to_one_adapter,
            "merged models in turn": row.ratio_to_merged_in_turn,
            "switched in turn": row.ratio_to_swapped_in_turn,
        }
        rows += [
            {
                "way": way,
                "batch": row.batch,
                "adapters": row.adapters,
                "tokens/s": f"{speed:,.0f}",
                "mixed batch takes": overhead(ratios.get(way)),
            }
            for way, speed in row.tokens_per_second.items()
        ]
    return pd.DataFrame(rows)


def list_skipped(measures: ServeMeasures) -> str:
    """What was not measured, with its reason, and the notes, as Markdown."""
    lines = [f"- {skipped.what}: not measured, {skipped.reason}" for skipped in measures.skipped]
    return "\n".join(lines + [f"- {note}" for note in measures.notes]) or "Nothing was skipped."
