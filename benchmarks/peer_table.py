"""The table of peers: ratios to the first of them, peaks, and whether they did the same work.

Not covered: running them (peers.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from statistics import harmonic_mean

from peer_training import PeerResult

from studylib.core.stats import Ratio, compare_timings
from studylib.schema.spec import RunSpec

MEMORY = {
    "torch_peak_allocated_bytes": "allocated",
    "torch_peak_reserved_bytes": "reserved",
    "nvml_peak_bytes": "card (NVML)",
    "live_tensor_peak_bytes": "live tensors",
    "host_peak_bytes": "host, whole process",
}
Rounds = dict[str, list[PeerResult]]


def compare(base: list[PeerResult], other: list[PeerResult]) -> Ratio | None:
    """Ratio other/base of tokens by second over the rounds that both finished, or None."""
    pairs = [(a.tokens_per_second, b.tokens_per_second) for a, b in zip(base, other, strict=False)]
    whole = [(1 / a, 1 / b) for a, b in pairs if a and b]
    if len(whole) < 3:
        return None
    slower = compare_timings(*zip(*whole, strict=True))  # seconds a token, other by base
    return Ratio(1 / slower.value, 1 / slower.high, 1 / slower.low)


def peak_bytes(results: Iterable[PeerResult], name: str) -> int | None:
    """The largest of the rounds' peaks, or None where none could be read."""
    peaks = [getattr(r.measure, name) for r in results if r.measure is not None]
    return max((peak for peak in peaks if peak is not None), default=None)


def mean_speed(results: list[PeerResult]) -> float | None:
    """Tokens by second over all rounds: tokens of all by seconds of all."""
    speeds = [r.tokens_per_second for r in results]
    known = [speed for speed in speeds if speed]
    return len(known) / sum(1 / speed for speed in known) if known else None


def differences(base: PeerResult, other: PeerResult, tolerance: float) -> list[str]:
    """In words, where two peers did not do the same work."""
    found = []
    if base.trainable_params != other.trainable_params:
        found.append(f"{other.trainable_params:,} trainable parameters, not "
                     f"{base.trainable_params:,}")  # fmt: skip
    if not other.same_batches or not base.same_batches:
        return found
    if sum(base.tokens) != sum(other.tokens):
        found.append(f"{sum(other.tokens):,} tokens, not {sum(base.tokens):,}")
    if base.first_loss is None or other.first_loss is None:
        found.append("no loss of the first update")
    elif not abs(other.first_loss - base.first_loss) <= tolerance * abs(base.first_loss):
        found.append(f"first loss {other.first_loss:.4f}, not {base.first_loss:.4f}")
    return found


def tolerance(spec: RunSpec) -> float:
    exact = spec.train.dtype == "fp32" and not spec.method.kind.quantized
    return 1e-3 if exact else 1e-2


def build_table(found: Rounds, spec: RunSpec) -> list[list[str]]:
    """The table's rows, its head first: one row a peer, ratios to the first of them."""
    first = next(iter(found))
    base = found[first]
    titles = {
        name: title
        for name, title in MEMORY.items()
        if any(peak_bytes(results, name) for results in found.values())
    }
    work = next((r for rs in found.values() for r in rs if r.flops_per_token), None)
    head = [
        "peer",
        "tokens/s",
        f"by {first} [95 %]",
        "tokens/CPU-s",
        *titles.values(),
        "MFU",
        "first loss",
        "last losses",
    ]
    rows = [[*head, "padding", "did the same work"]]
    for peer, results in found.items():
        last = results[-1]
        speed = mean_speed(results)
        row = [peer, f"{speed:,.0f}" if speed else last.status, spell_ratio(base, results)]
        row.append(spell_cpu_speed(base, results))
        row += [spell_bytes(peak_bytes(results, n), peak_bytes(base, n)) for n in titles]
        flops, peak = (work.flops_per_token, work.peak_flops_per_second) if work else (None, None)
        row.append(f"{100 * speed * flops / peak:.1f} %" if speed and flops and peak else "-")
        row += ["-" if x is None else f"{x:.4f}" for x in (last.first_loss, last.last_loss)]
        padded = sum(last.positions)
        row.append(f"{100 * (1 - sum(last.tokens) / padded):.0f} %" if padded else "-")
        if last.status != "complete":
            row.append(f"{last.status}: {last.reason}" if last.reason else last.status)
        elif results is base:
            row.append("compared with")
        elif base[-1].status != "complete":
            row.append(f"not known: {first} {base[-1].status}")
        else:
            words = differences(base[-1], last, tolerance(spec))
            own = "yes" if last.same_batches else "yes, in an order of its own"
            row.append("NO: " + "; ".join(words) if words else own)
        rows.append(row)
    return rows


def spell_ratio(base: list[PeerResult], results: list[PeerResult]) -> str:
    if results is base:
        return "1"
    ratio = compare(base, results)
    if ratio is not None:
        return f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"
    ours, theirs = mean_speed(base), mean_speed(results)
    return f"{theirs / ours:.2f} (no interval)" if ours and theirs else "-"


def spell_cpu_speed(base: list[PeerResult], results: list[PeerResult]) -> str:
    """The mean over rounds, and in brackets by the first peer's."""
    own, first = (
        [speed for r in rs if (speed := r.tokens_per_cpu_second)] for rs in (results, base)
    )
    if not own:
        return "-"
    mean = harmonic_mean(own)
    return f"{mean:,.0f}" + (f" ({mean / harmonic_mean(first):.2f})" if first else "")


def spell_bytes(peak: int | None, base: int | None) -> str:
    if peak is None:
        return "-"
    unit, size = ("GB", 1e9) if peak >= 1e9 else ("MB", 1e6)
    return f"{peak / size:.1f} {unit}" + (f" ({peak / base:.2f})" if base else "")


def format_table(rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)
