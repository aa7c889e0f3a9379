"""The self-check of a CUDA card: every check in turn, a table of pass or fail, kept on record.

It answers whether figures measured on this card can be trusted, in two minutes and before hours
are paid for.

Not covered: what each check does (studylib.checking.check_card, check_kernels, check_packing,
check_study); several cards at once; accuracy.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from subprocess import SubprocessError
from typing import NamedTuple

import torch

from studylib.checking.check_card import (
    COMPILE_RULE,
    MEMORY_RULE,
    NVML_RULE,
    SOFTWARE_RULE,
    check_compile,
    check_memory,
    check_nvml,
    check_software,
)
from studylib.checking.check_kernels import (
    FOUR_BIT_RULE,
    OPTIMIZER_RULE,
    check_four_bit_kernels,
    check_optimizers,
)
from studylib.checking.check_packing import (
    CHUNKED_RULE,
    PACKING_RULE,
    check_chunked_loss,
    check_packing,
    implementations,
)
from studylib.checking.check_study import (
    ANSWERS_RULE,
    FORECAST_RULE,
    METHODS,
    check_answers,
    check_forecast,
)
from studylib.core.errors import StudyError, first_line, name_error
from studylib.core.files import write_atomically
from studylib.core.sealed import write_sealed
from studylib.metering.allocator import release_leftovers
from studylib.metering.environment import describe_environment, device_name, now
from studylib.schema.checks import CheckResult, Found, GpuChecks, format_checks, format_result
from studylib.scoring.evaluate import NotANumber
from studylib.training.train import Diverged

FOLDER = "gpu-check"
# What a kernel, a library or a driver raises when it does not work here; all else is a bug.
# SubprocessError: Triton's, where the C compiler lacks Python's headers.
FAILURES = (
    AssertionError,
    Diverged,
    ImportError,
    NotANumber,
    OSError,
    RuntimeError,
    StudyError,
    SubprocessError,
    ValueError,
)


class Check(NamedTuple):
    name: str
    rule: str
    run: Callable[[torch.device], Found]


def list_checks(device: torch.device) -> list[Check]:
    """All checks in their order: what the others rest on comes first."""
    packing = [
        Check(
            f"packed attention, {attention}, {str(dtype).removeprefix('torch.')}",
            PACKING_RULE,
            partial(check_packing, attention=attention, dtype=dtype),
        )
        for attention, dtype in implementations(device)
    ]
    forecasts = [
        Check(f"forecast, {method}", FORECAST_RULE, partial(check_forecast, method=method))
        for method in METHODS
    ]
    return [
        Check("NVML fields", NVML_RULE, check_nvml),
        Check("versions and arithmetic", SOFTWARE_RULE, check_software),
        Check("memory agreement", MEMORY_RULE, check_memory),
        *forecasts,
        Check("4-bit kernels", FOUR_BIT_RULE, check_four_bit_kernels),
        Check("optimizers", OPTIMIZER_RULE, check_optimizers),
        *packing,
        Check("chunked loss", CHUNKED_RULE, check_chunked_loss),
        Check("MMLU as lm-eval scores it", ANSWERS_RULE, check_answers),
        Check("torch.compile", COMPILE_RULE, check_compile),
    ]


def run_check(check: Check, device: torch.device) -> CheckResult:
    """One check; an error that means "it does not work here" is a failed check with its reason."""
    start = time.perf_counter()
    try:
        found = check.run(device)
    except expected_errors() as error:
        found = Found(figures=(), fault=name_error(error))
    try:
        release_leftovers()
    except RuntimeError as error:  # after an illegal access the card no longer answers
        print(f"the card no longer answers: {first_line(error)}")
    return CheckResult(
        name=check.name,
        passed=found.fault is None,
        figures=found.figures,
        rule=check.rule,
        fault=found.fault,
        seconds=time.perf_counter() - start,
    )


def expected_errors() -> tuple[type[Exception], ...]:
    try:
        from triton.errors import TritonError
    except ImportError:
        return FAILURES
    return (*FAILURES, TritonError)


def run_checks(
    device: torch.device,
    checks: Iterable[Check] | None = None,
    say: Callable[[str], object] = print,
) -> GpuChecks:
    """Run the checks (all by default), say each as it ends, and put them on one record."""
    started_at, start = now(), time.perf_counter()
    results = []
    for check in list_checks(device) if checks is None else checks:
        results.append(run_check(check, device))
        say(format_result(results[-1]))
    return GpuChecks(
        device=device_name(),
        seconds=time.perf_counter() - start,
        environment=describe_environment(started_at, now(), 1, 1),
        results=tuple(results),
    )


def write_checks(folder: Path, checks: GpuChecks) -> Path:
    """Write the sealed record and its table, named by device and instant; returns the table."""
    device = re.sub(r"[^a-z0-9]+", "-", checks.device.lower()).strip("-")
    date, _, instant = checks.environment.started_at.partition("T")
    stem = f"{device}-{date}-{instant[:8].replace(':', '')}"
    write_sealed(folder / f"{stem}.json", checks)
    table = folder / f"{stem}.md"
    write_atomically(table, format_checks(checks).encode())
    return table
