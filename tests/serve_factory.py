"""Builds schema-valid serving records on disk, for tests of what reads them."""

from __future__ import annotations

from pathlib import Path

from record_factory import Factory, make_spec

from studylib.planning.footprint import WayToKeep, find_break_even, tabulate_variants
from studylib.schema.serve_records import ServeRecord, write_serve_record
from studylib.schema.serving import (
    Equality,
    FootprintRow,
    LatencyRow,
    MixedRow,
    PairedRatio,
    ServeMeasures,
    ServeSettings,
    ServeSpec,
    Skipped,
    SwapMeasures,
    Timings,
)

ADDS = {"base": 1.0, "again": 1.001, "full": 1.002, "dynamic": 1.09, "merged": 1.003}
BATCHES, PROMPTS = (1, 8, 32), (32, 128)
MEGABYTES = {"ladder:0.4m": 1.72, "ladder:1.4m": 5.68}


def timings(seconds: float, count: int = 20) -> Timings:
    return Timings(count=count, mean=seconds, p50=seconds, p95=1.2 * seconds, p99=None,
                   lowest=0.9 * seconds, highest=1.3 * seconds)  # fmt: skip


def ratio(value: float, half: float = 0.02) -> PairedRatio:
    return PairedRatio(value=value, low=value - half, high=value + half, pairs=20)


def add_serving(
    folder: Path,
    method: str = "lora",
    model: str = "ladder:0.4m",
    adds: float | None = None,
    proven: bool = True,
) -> ServeRecord:
    """One serving run of a results folder; `adds` is a dynamic adapter's ratio at batch 1."""
    run = make_spec(method, model)
    spec = ServeSpec(profile="cpu", model=model, method=run.method, dtype="fp32",
                     settings=ServeSettings(), hardware=run.hardware)  # fmt: skip
    whole = int(1e6 * MEGABYTES[model])
    adapter, quantized = run.method.kind.adapter, run.method.kind.quantized
    factory = Factory(folder)
    record = ServeRecord(
        serve_id=spec.serve_id,
        status="complete",
        spec=spec,
        measures=ServeMeasures(
            engine="transformers",
            latency=tuple(latency_rows(method, adapter, quantized, adds)),
            swap=swap(quantized, proven) if adapter else None,
            mixed=(mixed(),) if adapter else (),
            skipped=(Skipped(what="prompt of 1024 tokens", reason="too long for 256 positions"),),
            **footprint(whole, adapter, quantized),
        ),
        stages={"latency": factory.measure(3.0, 900_000_000)},
        environment=factory.environment(),
        fingerprint={"code.sha256": "c" * 64, "device.name": factory.device},
    )
    place = folder / "serve" / spec.serve_id
    place.mkdir(parents=True)
    write_serve_record(place, record)
    return record


def footprint(whole: int, adapter: bool, quantized: bool) -> dict:
    rows = [row("checkpoint", "fp32", whole)]
    ways = [WayToKeep("checkpoints", 0, 0, whole, whole)]
    if adapter:
        base = whole
        if quantized:
            base = whole // 5
            rows.append(row("4-bit base", "nf4", base))
        small = {"fp32": whole // 15, "bf16": whole // 30}
        rows += [row("adapter", dtype, size) for dtype, size in small.items()]
        rows.append(row("merged model", "fp32", whole))
        name = "4-bit base" if quantized else "checkpoint"
        ways += [WayToKeep(f"{dtype} adapters on one {name}", base, base, size, size)
                 for dtype, size in small.items()]  # fmt: skip
    return {
        "footprint": tuple(rows),
        "variants": tabulate_variants(ways, (1, 10, 100, 1000)),
        "break_even": tuple(find_break_even(way, ways[0]) for way in ways[1:]),
    }


def row(what: str, dtype: str, size: int) -> FootprintRow:
    return FootprintRow(what=what, dtype=dtype, disk_bytes=size + 900, memory_bytes=size,
                        disk_how="measured")  # fmt: skip


def latency_rows(method: str, adapter: bool, quantized: bool, adds: float | None) -> list:
    """Each pair at every batch size and prompt length."""
    pairs = [("base", "full" if method == "full" else "again")]
    if adapter:
        pairs = [("base", "dynamic"), ("base", "merged")]
        pairs += [("4-bit base", "dynamic")] if quantized else []
    rows = []
    for batch in BATCHES:
        for prompt in PROMPTS:
            for against, variant in pairs:
                value = ADDS[variant] - 0.001 * (batch - 1)
                if variant == "dynamic":
                    value = (adds or value) + 0.6 * (quantized and against == "base")
                rows.append(latency(variant, against, batch, prompt, value))
            rows += [latency(base, None, batch, prompt, 1.0)
                     for base in dict.fromkeys(base for base, _ in pairs)]  # fmt: skip
    return rows


def latency(variant: str, against: str | None, batch: int, prompt: int, value: float) -> LatencyRow:
    token = 0.003 * value * (1 + 0.02 * batch)
    paired = None if against is None else ratio(value)
    return LatencyRow(
        variant=variant, against=against, decoding="eager", batch=batch, prompt_tokens=prompt,
        new_tokens=16, first_token_seconds=timings(3 * token),
        between_tokens_seconds=timings(token), tokens_per_second=batch / token,
        decode_tokens_per_second=batch / token, first_token_ratio=paired,
        between_tokens_ratio=paired, whole_ratio=paired,
    )  # fmt: skip


def swap(quantized: bool, proven: bool) -> SwapMeasures:
    def equal(what: str, difference: float, required: bool = True) -> Equality:
        return Equality(what=what, dtype="fp32", difference=difference, tolerance=1e-4,
                        required=required)  # fmt: skip

    checks = [equal("swap to a1, fresh load", 2e-7 if proven else 0.3)]
    checks += [equal("unmerged on 4-bit layers, fresh load", 0.08, False)] if quantized else []
    return SwapMeasures(
        adapters=4,
        switch_seconds=timings(1e-4, 40),
        load_adapter_seconds=timings(0.012),
        merge_seconds=timings(0.004),
        unmerge_seconds=None if quantized else timings(0.003),
        merge_way="in a copy" if quantized else "in place",
        load_model_seconds=timings(0.09, 3),
        contrast=0.4,
        checks=tuple(checks),
    )


def mixed() -> MixedRow:
    speeds = {"mixed batch": 900.0, "one adapter": 1400.0, "merged models in turn": 700.0,
              "switched in turn": 600.0}  # fmt: skip
    return MixedRow(
        batch=8, adapters=4, prompt_tokens=32, new_tokens=8, tokens_per_second=speeds,
        ratio_to_one_adapter=ratio(1.55), ratio_to_merged_in_turn=ratio(0.78),
        ratio_to_swapped_in_turn=ratio(0.67),
        checks=(Equality(what="rows of a1", dtype="fp32", difference=1e-7, tolerance=1e-4),),
    )  # fmt: skip
