"""Pictures of serving: what an adapter adds to a token's time, and what N variants cost a month.

Not covered: tables of the same (studylib.reporting.serve_tables).
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from studylib.planning.catalog import PriceRange, find_gpu, find_shape, load_prices, price_range
from studylib.planning.footprint import monthly_usd, shape_ways
from studylib.reporting.panels import BAND, INK, Names, colour, draw_panels
from studylib.reporting.serve_tables import CARD, DTYPE, RANK, SHAPE, model_name, variant_name
from studylib.schema.methods import ADAPTER, METHODS, QUANTIZED, UNTRAINED, WHOLE
from studylib.schema.serve_records import ServeRecord
from studylib.schema.serving import LatencyRow

CLAIMED = (5.0, 15.0)  # per cent: the article's dynamic adapter
STYLES = {"dynamic": ("-", "o"), "merged": ("--", "s"), "again": (":", "x")}
CAPTIONS = {
    "serve-overhead": "What each variant adds to the time between tokens, by batch size, 95 % "
    "intervals; the band is the article's claim for a dynamic adapter",
    "serve-monthly": "Counted: dollars a month to keep N variants of a 13B model ready; the bands "
    "go from the cheapest to the dearest offer",
}


def draw_overhead(records: Sequence[ServeRecord]) -> Figure | None:
    """Overhead between tokens by batch size, shortest prompt, one panel a model."""
    lines = overhead_lines(records)

    def draw(panel: Axes, model: str) -> Names:
        panel.axhspan(*CLAIMED, color=BAND, linewidth=0)
        panel.axhline(0, color=INK, linewidth=0.8)
        labels = []
        own = [(label, found) for (m, label), found in lines.items() if m == model]
        batches = sorted({row.batch for _, (_, rows) in own for row in rows})
        for i, (label, (record, rows)) in enumerate(own):
            again = rows[0].variant == "again"
            shade = METHODS[UNTRAINED].colour if again else colour(record.spec.method)
            style, marker = STYLES.get(rows[0].variant, ("-.", "D"))
            # side by side, so that no interval hides another
            xs = [batches.index(row.batch) + 0.07 * (i - (len(own) - 1) / 2) for row in rows]
            ratios = [row.between_tokens_ratio for row in rows]
            ys = [100 * (r.value - 1) for r in ratios if r]
            below = [100 * (r.value - r.low) for r in ratios if r]
            above = [100 * (r.high - r.value) for r in ratios if r]
            panel.errorbar(xs, ys, yerr=[below, above], color=shade, linestyle=style,
                           marker=marker, markersize=5, capsize=2, linewidth=1.2)  # fmt: skip
            labels.append((xs[-1], ys[-1], label, shade))
        panel.set_xticks(range(len(batches)), [str(batch) for batch in batches])
        panel.margins(x=0.1, y=0.1)
        panel.set(title=model, xlabel="batch size", ylabel="added between tokens (%) ↓")
        return labels

    return draw_panels(list(dict.fromkeys(model for model, _ in lines)), draw)


def overhead_lines(
    records: Sequence[ServeRecord],
) -> dict[tuple[str, str], tuple[ServeRecord, list[LatencyRow]]]:
    """(model, variant) -> its eager rows at its shortest prompt, batches rising.

    A 4-bit variant is drawn against the 4-bit base, on which only the adapter differs.
    """
    found: dict[tuple[str, str], tuple[ServeRecord, list[LatencyRow]]] = {}
    for record in records:
        rows = [r for r in record.measures.latency if r.against and r.decoding == "eager"]
        own_base = {r.variant for r in rows if r.against == "4-bit base"}
        rows = [r for r in rows if r.between_tokens_ratio is not None]
        rows = [r for r in rows if r.against == "4-bit base" or r.variant not in own_base]
        for row in sorted(rows, key=lambda r: (r.prompt_tokens, r.batch)):
            key = (model_name(record), variant_name(record, row))
            members = found.setdefault(key, (record, []))[1]
            if not members or members[0].prompt_tokens == row.prompt_tokens:
                members.append(row)
    return found


def draw_monthly() -> Figure | None:
    """Dollars a month of 1 to 1,000 variants of the 13B model, full against adapters, counted."""
    card, prices = find_gpu(CARD), price_range(CARD, load_prices())
    counts = [n * 10**power for power in range(3) for n in (1, 2, 3, 5, 7)] + [1000]
    shades = [METHODS[name].colour for name in (WHOLE, ADAPTER, QUANTIZED)]

    def draw(panel: Axes, prices: PriceRange) -> Names:
        labels = []
        for kept, shade in zip(shape_ways(find_shape(SHAPE), RANK, DTYPE), shades, strict=True):
            low, mid, high = (
                [monthly_usd(kept, n, card, hour) for n in counts]
                for hour in (prices.cheapest, prices.median, prices.dearest)
            )
            panel.fill_between(counts, low, high, color=shade, alpha=0.12, linewidth=0)
            panel.plot(counts, mid, color=shade, linewidth=1.6)
            name = f"full {kept.way}" if kept.way == "checkpoints" else kept.way
            labels.append((counts[-1], mid[-1], name, shade))
        panel.set(xscale="log", yscale="log")
        panel.xaxis.set_major_locator(FixedLocator([1, 10, 100, 1000]))
        panel.xaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_minor_locator(NullLocator())
        panel.set_xticklabels(["1", "10", "100", "1,000"])
        panel.yaxis.set_major_formatter(lambda value, _: f"${value:,.0f}")
        panel.set(xlabel="variants kept ready", ylabel=f"dollars a month on {card.label} ↓")
        return labels

    return draw_panels([prices] if prices else [], draw)
