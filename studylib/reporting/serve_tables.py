"""What one more variant costs to serve, as tables and sentences of the report.

Measured tables come from serving records; those of the article's 13B model are counted from its
shape. Neither shares a cell with the other.

Not covered: pictures (studylib.reporting.serve_figures), one serving run by itself
(studylib.notebook_views.serve_views).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from studylib.core.metrics import MISSING, byte_size, plain_number
from studylib.planning.catalog import find_gpu, find_shape, load_prices, price_range
from studylib.planning.footprint import (
    HOURS_A_MONTH,
    RESERVE_SHARE,
    count_cards,
    count_footprint,
    find_break_even,
    monthly_usd,
    shape_ways,
)
from studylib.reporting.blocks import NAMED, Column, Number, Table, cell_of, figures, named, words
from studylib.reporting.cells import short_number
from studylib.reporting.claim_sources import milliseconds, overhead_text
from studylib.reporting.glossary import say
from studylib.reporting.notes import count_of, join_words
from studylib.schema.serve_records import ServeRecord
from studylib.schema.serving import LatencyRow, PairedRatio

SHAPE, RANK, DTYPE = "llama-2-13b", 16, "bf16"
CARD = "a100-80gb"
COUNTS = (1, 10, 100, 1000)
ARTICLE = {"checkpoint": "about 26 GB", "adapter": "50 to 200 MB"}


def model_name(record: ServeRecord) -> str:
    return str(record.spec.model_ref)


def variant_name(record: ServeRecord, row: LatencyRow) -> str:
    """A variant in words: LoRA r=16 dynamic, full, base again."""
    decoding = "" if row.decoding == "eager" else f", {row.decoding} decoding"
    if row.variant == "again":
        return f"base against itself{decoding}"
    if row.variant not in ("dynamic", "merged"):
        return f"{row.variant}{decoding}"
    return f"{record.spec.method.label} {row.variant}{decoding}"


def footprint_table(records: Sequence[ServeRecord]) -> Table:
    """Bytes on disk and in memory of each thing to keep; what several runs share stands once."""
    header = (*words("Model"), named("What is kept"), *words("dtype"),
              *figures("On disk ↓", "In memory ↓"), *words("Disk figure"))  # fmt: skip
    rows: dict[tuple[str, ...], tuple[str, ...]] = {}
    for record in records:
        for row in record.measures.footprint:
            own = row.what in ("adapter", "merged model")
            what = f"{row.what}, {record.spec.method.label}" if own else row.what
            sizes = (cell_of(row.disk_bytes, byte_size), cell_of(row.memory_bytes, byte_size))
            rows.setdefault((model_name(record), what, row.dtype), (*sizes, row.disk_how))
    return Table(header, tuple((*key, *cells) for key, cells in sorted_by_model(rows)))


def sorted_by_model(rows: dict) -> list:
    """Rows of one model together, and of one variant, in the order in which they first come."""
    models = list(dict.fromkeys(key[0] for key in rows))
    variants = list(dict.fromkeys(key[1] for key in rows))
    return sorted(rows.items(), key=lambda i: (models.index(i[0][0]), variants.index(i[0][1])))


def table_across(
    names: tuple[Column, ...], columns: dict[int, str], rows: dict[tuple[str, ...], dict[int, str]]
) -> Table:
    """A table with a column for each batch size, say. rows: their names -> column -> cell."""
    cells = [
        (*key, *(found.get(column, MISSING) for column in columns))
        for key, found in sorted_by_model(rows)
    ]
    return Table((*names, *figures(*columns.values())), tuple(cells))


def counted_table() -> Table:
    """The article's row by arithmetic on the shape of Llama-2-13B."""
    header = (named("What is kept"), *words("dtype"), *figures("Parameters", "Bytes (counted) ↓"),
              *words("Article"))  # fmt: skip
    rows = [
        (row.what, row.dtype, cell_of(row.parameters),
         cell_of(row.size_bytes, byte_size),
         next((v for k, v in ARTICLE.items() if row.what.startswith(k)), "—"))
        for row in count_footprint(find_shape(SHAPE), RANK, DTYPE)
    ]  # fmt: skip
    return Table(header, tuple(rows))


def overhead_table(records: Sequence[ServeRecord]) -> Table:
    """What each variant adds to its base's time between tokens, by batch size."""
    rows: dict[tuple[str, ...], dict[int, str]] = {}
    for record in records:
        for row in record.measures.latency:
            if row.against is not None:
                key = (model_name(record), variant_name(record, row), row.against,
                       cell_of(row.prompt_tokens))  # fmt: skip
                rows.setdefault(key, {})[row.batch] = ratio_cell(row.between_tokens_ratio)
    names = (*words("Model"), named("Variant"), *words("Against"), *figures("Prompt (tokens)"))
    batches = {n: f"Batch {n}: adds between tokens ↓" for n in batch_sizes(records)}
    return table_across(names, batches, rows)


def batch_sizes(records: Sequence[ServeRecord]) -> list[int]:
    return sorted({row.batch for record in records for row in record.measures.latency})


def ratio_cell(ratio: PairedRatio | None) -> str:
    """An overhead with its interval, bold where the interval is clear of none."""
    if ratio is None:
        return MISSING
    text = overhead_text(ratio)
    clear = ratio.low > 1 or ratio.high < 1
    return Number(f"**{text}**" if clear else text, ratio.value - 1)


def serve_speed_table(records: Sequence[ServeRecord]) -> Table:
    """Each variant's own speed by batch size; percentiles beyond the median are in the csv."""
    rows: dict[tuple[str, ...], dict[int, str]] = {}
    for record in records:
        for row in record.measures.latency:
            if row.variant != "again":
                key = (model_name(record), variant_name(record, row), cell_of(row.prompt_tokens))
                first, between = row.first_token_seconds.p50, row.between_tokens_seconds.p50
                cell = f"{milliseconds(first)}; {milliseconds(between)}"
                cell += f"; {plain_number(row.tokens_per_second, 3)}"
                rows.setdefault(key, {}).setdefault(row.batch, Number(cell, first))
    names = (*words("Model"), named("Variant"), *figures("Prompt (tokens)"))
    shown = "first token ↓; between tokens (p50, ms) ↓; tokens/s ↑"
    batches = {n: f"Batch {n}: {shown}" for n in batch_sizes(records)}
    return table_across(names, batches, rows)


def swap_table(records: Sequence[ServeRecord]) -> Table:
    """Changing variants on a running base, and the proof that the answers are right."""
    header = (*NAMED, *figures("Adapters", "Switch p50 (ms) ↓", "Load adapter (ms) ↓",
              "Merge (ms) ↓", "Unmerge (ms) ↓", "Load the model (ms)"),
              *words("Answers equal to a fresh load's"))  # fmt: skip
    rows = []
    for record in records:
        swap = record.measures.swap
        if swap is None:
            continue
        required = [check for check in swap.checks if check.required]
        proof = "not checked"
        if required:
            worst = max(required, key=lambda c: c.difference / c.tolerance)
            proof = (
                f"{'**yes**' if swap.proven else '**NO**'}: {count_of(len(required), 'check')}, "
                f"largest difference {worst.difference:.1e} of {worst.tolerance:.0e} "
                f"allowed; two adapters are {swap.contrast:.2g} apart"
            )
        switch, load_adapter, merge, unmerge, load = (
            cell_of(taken.p50 if taken else None, milliseconds)
            for taken in (swap.switch_seconds, swap.load_adapter_seconds, swap.merge_seconds,
                          swap.unmerge_seconds, swap.load_model_seconds)
        )  # fmt: skip
        rows.append((model_name(record), record.spec.method.label, str(swap.adapters), switch,
                     load_adapter, merge, unmerge if swap.unmerge_seconds else "not needed", load,
                     proof))  # fmt: skip
    return Table(header, tuple(rows))


def swap_notes(records: Sequence[ServeRecord]) -> str:
    """How each method merges, and what goes wrong in the way that is not relied on."""
    ways: dict[str, list[str]] = {}
    wrong: dict[str, float] = {}
    for record in records:
        swap = record.measures.swap
        if swap is not None:
            ways.setdefault(swap.merge_way, []).append(record.spec.method.label)
            for check in swap.checks:
                if not check.required and not check.holds:
                    wrong[check.what] = max(wrong.get(check.what, 0), check.difference)
    parts = [f"{join_words(list(dict.fromkeys(names)))}: {way}" for way, names in ways.items()]
    text = f"How merging is done: {'; '.join(parts)}." if parts else ""
    if wrong:
        shown = join_words([f"{what}: off by {value:.1e}" for what, value in wrong.items()])
        text += f" Shown and not relied on: {shown} (in standard deviations of the logits)."
    return text


def mixed_table(records: Sequence[ServeRecord]) -> Table:
    """One batch whose rows use different adapters, against other ways to serve the same rows."""
    header = (*NAMED, *figures("Rows / adapters", "Mixed batch (tokens/s) ↑",
              "Time against one adapter ↓", "against merged models in turn ↓",
              "against switching in turn ↓"), *words("Answers equal"))  # fmt: skip
    rows = []
    for record in records:
        for row in record.measures.mixed:
            speed = next((v for k, v in row.tokens_per_second.items() if "mixed" in k), None)
            equal = all(check.holds for check in row.checks if check.required)
            rows.append((
                model_name(record), record.spec.method.label, f"{row.batch} / {row.adapters}",
                cell_of(speed, short_number),
                *(times_cell(r) for r in (row.ratio_to_one_adapter, row.ratio_to_merged_in_turn,
                                          row.ratio_to_swapped_in_turn)),
                "yes" if equal else "**NO**",
            ))  # fmt: skip
    return Table(header, tuple(rows))


def times_cell(ratio: PairedRatio | None) -> str:
    if ratio is None:
        return MISSING
    value, low, high = (plain_number(x, 3) for x in (ratio.value, ratio.low, ratio.high))
    return Number(f"{value} × [{low}, {high}]", ratio.value)


def measured_variants_table(records: Sequence[ServeRecord]) -> Table:
    """Disk and memory of N variants in each way, from measured bytes, and from which N it pays."""
    counts = sorted({row.variants for r in records for row in r.measures.variants})
    header = (*words("Model"), named("Way"), *figures(*(f"{n:,}: disk; memory" for n in counts),
              "Pays from (disk; memory)"))  # fmt: skip
    rows: dict[tuple[str, str], dict[int, str]] = {}
    pays: dict[tuple[str, str], str] = {}
    for record in records:
        for row in record.measures.variants:
            key = (model_name(record), row.way)
            cell = f"{byte_size(row.disk_bytes)}; {byte_size(row.memory_bytes)}"
            rows.setdefault(key, {})[row.variants] = Number(cell, row.disk_bytes)
        for even in record.measures.break_even:
            ends = (even.disk_variants, even.memory_variants)
            shown = "; ".join("never" if n is None else f"{n:,}" for n in ends)
            pays.setdefault((model_name(record), even.way), shown)
    cells = [
        (*key, *(by_count.get(n, "—") for n in counts), pays.get(key, "reference"))
        for key, by_count in sorted_by_model(rows)
    ]
    return Table(header, tuple(cells))


def counted_variants_table() -> Table:
    """Disk, memory, cards and dollars a month of N variants of the 13B model, counted."""
    card, prices = find_gpu(CARD), price_range(CARD, load_prices())
    header = (named("Way (counted)"), *figures("Variants", "On disk ↓", "In memory ↓",
              f"{card.label}s ↓", "Dollars a month, median (cheapest to dearest) ↓"))  # fmt: skip
    rows = []
    for kept in shape_ways(find_shape(SHAPE), RANK, DTYPE):
        for n in COUNTS:
            dollars = "no offer"
            if prices is not None:
                mid, low, high = (
                    monthly_usd(kept, n, card, hour)
                    for hour in (prices.median, prices.cheapest, prices.dearest)
                )
                dollars = Number(f"${mid:,.0f} (${low:,.0f} to ${high:,.0f})", mid)
            rows.append((
                kept.way, cell_of(n),
                cell_of(kept.base_disk_bytes + n * kept.disk_bytes, byte_size),
                cell_of(kept.base_memory_bytes + n * kept.memory_bytes, byte_size),
                cell_of(count_cards(kept, n, card)), dollars,
            ))  # fmt: skip
    return Table(header, tuple(rows))


# Sentences ----------------------------------------------------------------------------------------


def assumption_sentence() -> str:
    card, prices = find_gpu(CARD), price_range(CARD, load_prices())
    price = "no offer of it is listed" if prices is None else (
        f"{len(prices.offers)} offers, ${prices.cheapest:.2f} to ${prices.dearest:.2f} an hour"
    )  # fmt: skip
    return say("serving_assumed", card=card.label, usable=byte_size(card.usable_bytes),
               reserve=f"{100 * RESERVE_SHARE:.0f}", hours=f"{HOURS_A_MONTH:.0f}", price=price,
               dtype=DTYPE, rank=RANK)  # fmt: skip


def break_even_sentence() -> str:
    """From how many variants on adapters take less than checkpoints, by bytes and by cards."""
    whole, *ways = shape_ways(find_shape(SHAPE), RANK, DTYPE)
    card = find_gpu(CARD)
    parts = []
    for kept in ways:
        even = find_break_even(kept, whole)
        cheaper = next(
            (n for n in range(1, COUNTS[-1] + 1)
             if count_cards(kept, n, card) < count_cards(whole, n, card)), "no number")  # fmt: skip
        fewest = even.memory_variants
        held = "no number of variants" if fewest is None else count_of(fewest, "variant")
        parts.append(f"{kept.way} from {held} on by bytes and from {cheaper} on by cards")
    return f"Adapters take less than checkpoints: {join_words(parts)}."


def setting_sentence(records: Sequence[ServeRecord]) -> str:
    devices = join_words(sorted({r.environment.device for r in records}))
    dtypes = join_words(sorted({r.spec.dtype for r in records}))
    first = records[0].spec.settings
    shared = max(r.environment.concurrent_runs for r in records)
    text = say("serving_setting", devices=devices, dtypes=dtypes, tokens=first.new_tokens)
    return text + (f" Up to {shared} runs shared the machine." if shared > 1 else "")


def tell_skipped(records: Iterable[ServeRecord]) -> list[str]:
    """What was not measured, once each, with the runs that it concerns; and runs that broke off."""
    found: dict[str, list[str]] = {}
    for record in records:
        told = [f"{s.what}: not measured, {s.reason}" for s in record.measures.skipped]
        told += [f"{record.status}: {record.reason}"] if record.status != "complete" else []
        for fault in told:
            found.setdefault(fault, []).append(record.serve_id)
    return [f"{what} ({join_words(ids)})" for what, ids in found.items()]
