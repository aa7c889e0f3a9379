"""Is the card what the meter and the recipes take it for: NVML, memory, arithmetic, compiler.

Not covered: kernels of other libraries (studylib.checking.check_kernels), packing
(studylib.checking.check_packing), the study's own stages (studylib.checking.check_study).
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from studylib.core.errors import StudyError
from studylib.metering.devices import describe_devices
from studylib.metering.meter import Meter
from studylib.metering.nvml import (
    HIDDEN_MEMORY,
    NOT_LISTED,
    CardReader,
    Family,
    list_cards,
    open_nvml,
)
from studylib.schema.checks import CheckedFigure, Found, apply_rules

BLOCK_BYTES = 512 * 2**20
# cudaMalloc's pages, and what a kernel's first launch adds to the context.
SLACK_BYTES = 32 * 2**20
HOLD_SECONDS = 0.5
COMPILE_SECONDS = 90
UNITS: dict[str, tuple[str, str]] = {
    "used_bytes": ("memory used on the card", "bytes"),
    "process_bytes": ("memory used by this process", "bytes"),
    "utilisation_percent": ("utilisation in %", ""),
    "power_watts": ("power in W", ""),
    "temperature_celsius": ("temperature in °C", ""),
    "throttle_bits": ("throttle reasons, as bits", ""),
}
NVML_RULE = (
    "NVML gives memory, power, energy, utilisation, temperature and throttle reasons; the memory "
    "of this process may be hidden by a container"
)
MEMORY_RULE = (
    "NVML, sampled by the meter ≥ torch reserved ≥ torch allocated ≥ the block; NVML grows by "
    f"what torch reserves, within {SLACK_BYTES / 2**20:.0f} MiB"
)
SOFTWARE_RULE = (
    "bf16 is the card's own and a bf16 product is right to 2^-7; TF32 is off and an fp32 product "
    "is right to 1e-5"
)
COMPILE_RULE = f"torch.compile gives eager's values within {COMPILE_SECONDS} s, in a new process"

COMPILE_SCRIPT = """
import sys, time, torch
def small(x):
    return (torch.nn.functional.gelu(x @ x.T) + 1).sum(-1)
torch.manual_seed(0)
x = torch.randn(64, 64, device=sys.argv[1])
start = time.perf_counter()
compiled = torch.compile(small)(x)
print(time.perf_counter() - start, float((compiled - small(x)).abs().max() / small(x).abs().max()))
"""


def ordinal(device: torch.device) -> int:
    return device.index or 0


def check_nvml(device: torch.device, nvml: Any = None) -> Found:
    """Every field that the meter reads, once; what is missing with NVML's own reason."""
    library, reason = open_nvml(nvml)
    if library is None:
        return Found(figures=(), fault=reason)
    try:
        cards, reason = list_cards(library, [ordinal(device)])
        if not cards:
            return Found(figures=(), fault=reason)
        if device.type == "cuda":
            torch.zeros(1, device=device)  # a process without a context is not in NVML's list
        reader = CardReader(library, cards[0], Family())
        reading = reader.read()
        joules, no_energy = reader.energy_joules()
    finally:
        library.nvmlShutdown()
    missing = dict(reading.failures)
    mig = " (a MIG instance)" if cards[0].parent is not None else ""
    figures = [CheckedFigure(what="card", value=cards[0].name + mig)]
    for field, (what, unit) in UNITS.items():
        value = getattr(reading, field)
        shown = missing.get(field, "no reason given") if value is None else float(value)
        figures.append(CheckedFigure(what=what, value=shown, unit=unit))  # type: ignore[arg-type]
    energy: float | str = str(no_energy) if joules is None else joules
    figures.append(CheckedFigure(what="energy counter in J", value=energy))
    if joules is None:
        missing["energy"] = str(no_energy)
    if missing.get("process_bytes") in (NOT_LISTED, HIDDEN_MEMORY):
        del missing["process_bytes"]  # the card's own figure stands in, on a card that is free
    faults = [f"no {name}: {why}" for name, why in missing.items()]
    return apply_rules(figures, *((False, fault) for fault in faults))


def take_block(device: torch.device) -> torch.Tensor:
    return torch.ones(BLOCK_BYTES, dtype=torch.uint8, device=device)


def check_memory(
    device: torch.device,
    nvml: Any = None,
    take: Callable[[torch.device], Any] = take_block,
) -> Found:
    """A block of known size through the eyes of torch, of NVML and of the meter.

    take: makes the block and returns what holds it.
    """
    first = take(device)  # the context and the kernel that fills it
    del first
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
    with Meter(nvml=nvml, devices=[ordinal(device)]) as meter:
        with meter.stage("before"):
            time.sleep(HOLD_SECONDS)
        with meter.stage("held"):
            block = take(device)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            time.sleep(HOLD_SECONDS)
    del block
    before, held = meter.stages["before"], meter.stages["held"]
    by_process = held.nvml_process_peak_bytes is not None
    field = "nvml_process_peak_bytes" if by_process else "nvml_peak_bytes"
    seen, start = getattr(held, field), getattr(before, field)
    allocated, reserved = held.torch_peak_allocated_bytes, held.torch_peak_reserved_bytes
    earlier = before.torch_peak_reserved_bytes
    if None in (seen, start, allocated, reserved, earlier):
        lacking = {**before.unavailable, **held.unavailable}
        names = ("nvml_peak_bytes", "torch_peak_allocated_bytes", "torch_peak_reserved_bytes")
        why = dict.fromkeys(lacking[name] for name in names if name in lacking)
        return Found(figures=(), fault="; ".join(why) or "a peak is missing")
    assert allocated is not None and reserved is not None and earlier is not None
    grown, growth = seen - start, reserved - earlier
    figures = [
        CheckedFigure(what="block", value=BLOCK_BYTES, unit="bytes"),
        CheckedFigure(what="torch allocated", value=allocated, unit="bytes"),
        CheckedFigure(what="torch reserved", value=reserved, unit="bytes"),
        CheckedFigure(
            what=f"NVML by the meter, {'process' if by_process else 'card'}",
            value=seen,
            unit="bytes",
        ),
        CheckedFigure(what="reserved − allocated", value=reserved - allocated, unit="bytes"),
        CheckedFigure(what="NVML − reserved (context)", value=seen - reserved, unit="bytes"),
        CheckedFigure(what="NVML grew by", value=grown, unit="bytes"),
    ]
    return apply_rules(
        figures,
        (allocated >= BLOCK_BYTES, "torch allocated is less than the block"),
        (reserved >= allocated, "torch reserved is less than allocated"),
        (seen >= reserved, "NVML shows less than torch reserves"),
        (
            abs(grown - growth) <= SLACK_BYTES,
            f"NVML saw {grown / 1e6:,.0f} MB more, torch reserved {growth / 1e6:,.0f} MB",
        ),
    )


def check_software(device: torch.device) -> Found:
    """Driver, CUDA and torch; bf16 and fp32 products against float64; the TF32 switch."""
    described, _ = describe_devices()
    card = described[0] if described else {}
    versions = {
        "driver": card.get("driver_version") or "none",
        "CUDA of the driver": card.get("cuda_version") or "none",
        "torch": torch.__version__,
        "CUDA of torch": torch.version.cuda or "none",
    }
    versions["bitsandbytes"] = importlib.metadata.version("bitsandbytes")
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(512, 512, generator=generator).to(device) for _ in range(2))
    fp32 = error_of(left @ right, left.double() @ right.double())
    halves = left.bfloat16(), right.bfloat16()
    bf16 = error_of(halves[0] @ halves[1], halves[0].double() @ halves[1].double())
    own = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32"
    figures = [CheckedFigure(what=what, value=value) for what, value in versions.items()]
    figures += [
        CheckedFigure(what="bf16", value="native" if own else "emulated"),
        CheckedFigure(what="bf16 error", value=bf16),
        CheckedFigure(what="TF32", value="on" if tf32 else "off"),
        CheckedFigure(what="fp32 error", value=fp32),
    ]
    return apply_rules(
        figures,
        (own, "this card has no bf16 of its own: use dtype: fp32"),
        (bf16 <= 2**-7, f"a bf16 product is off by {bf16:.2g}"),
        (not tf32, "TF32 is on before any recipe asked for it"),
        (fp32 <= 1e-5, f"an fp32 product is off by {fp32:.2g}"),
    )


def check_compile(device: torch.device, limit_seconds: float = COMPILE_SECONDS) -> Found:
    """A small function compiled in a new process, which can be stopped if the compiler hangs."""
    command = [sys.executable, "-P", "-c", COMPILE_SCRIPT, str(device)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=limit_seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return Found(figures=(), fault=f"it did not end within {limit_seconds:.0f} s")
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raised = [line for line in lines if "Error" in line]
        return Found(figures=(), fault=(raised or lines)[-1])
    seconds, error = map(float, done.stdout.split()[-2:])
    figures = [
        CheckedFigure(what="compiling", value=seconds, unit="seconds"),
        CheckedFigure(what="difference from eager", value=error),
    ]
    return apply_rules(
        figures, (error <= 1e-3, f"compiled values differ from eager's by {error:.2g}")
    )


def error_of(ours: torch.Tensor, exact: torch.Tensor) -> float:
    """Norm of the difference over the norm of what is right; infinite where something is NaN."""
    wrong = (ours.double() - exact.double()).norm() / exact.double().norm()
    return float(wrong) if bool(wrong.isfinite()) else float("inf")


def require_card() -> torch.device:
    """The first CUDA card, or one message that there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    devices, reason = describe_devices()
    if reason is None:
        reason = f"NVML lists {devices[0]['name']}, but torch {torch.__version__} cannot use it"
    raise StudyError(
        "gpu-check",
        f"there is no CUDA card here ({reason})",
        "Run it on the machine that has the card; `make test` needs none.",
    )
