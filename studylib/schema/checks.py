"""What a self-check found: figures, the rule that they are held to, and whether they pass.

A check that raises is a failed check with its reason, never the end of the others.

Not covered: what is checked (studylib.checking.check_card, check_kernels, check_packing,
check_study) and in which order (studylib.checking.gpu_check).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from studylib.core.sealed import read_sealed
from studylib.schema.records import Environment
from studylib.schema.settings import Frozen

CHECKS_VERSION = 1
Unit = Literal["", "bytes", "seconds", "share", "ratio"]


class CheckedFigure(Frozen):
    """One measured value, or a word in its place. share: a part of a whole, signed if an error."""

    what: str
    value: float | str
    unit: Unit = ""

    @field_validator("value", mode="before")
    @classmethod
    def finite(cls, value: Any) -> Any:
        return "not a number" if isinstance(value, float) and not math.isfinite(value) else value

    @property
    def text(self) -> str:
        if isinstance(self.value, str):
            return self.value
        match self.unit:
            case "bytes":
                return f"{self.value / 1e6:,.1f} MB"
            case "seconds":
                return f"{self.value:.4g} s"
            case "share":
                return f"{100 * self.value:+.1f} %"
            case "ratio":
                return f"{self.value:.1f} ×"
            case _:
                whole = float(self.value).is_integer() or abs(self.value) >= 100
                return f"{self.value:,.0f}" if whole else f"{self.value:.3g}"


class Found(Frozen):
    """What a check measured. fault: the first thing that breaks the rule; None if all is well."""

    figures: tuple[CheckedFigure, ...]
    fault: str | None = None


class CheckResult(Frozen):
    """One check: name, whether it passed, its figures, the rule, the fault if any, seconds."""

    name: str
    passed: bool
    figures: tuple[CheckedFigure, ...] = ()
    rule: str
    fault: str | None = None
    seconds: float = Field(ge=0)


class GpuChecks(Frozen):
    """All checks of one card at one time, sealed like a record."""

    schema_version: int = CHECKS_VERSION
    device: str
    seconds: float
    environment: Environment
    results: tuple[CheckResult, ...]
    digest: str = ""

    @property
    def passed(self) -> bool:
        return bool(self.results) and all(result.passed for result in self.results)


def read_checks(path: Path) -> GpuChecks:
    """The checks in a file, or one message on what is wrong with it."""
    remedy = "Restore it, or run `make gpu-check` again."
    return read_sealed(path, GpuChecks, CHECKS_VERSION, "the self-check", remedy)


def apply_rules(figures: list[CheckedFigure], *rules: tuple[bool, str]) -> Found:
    """The figures with the faults of the rules that do not hold. rules: (holds, fault if not)."""
    faults = [fault for holds, fault in rules if not holds]
    return Found(figures=tuple(figures), fault="; ".join(faults) or None)


def format_result(result: CheckResult) -> str:
    """One check on a few lines of a terminal."""
    word = "pass" if result.passed else "FAIL"
    lines = [f"{word}  {result.name} ({result.seconds:.1f} s)"]
    if result.fault:
        lines.append(f"      {result.fault}")
    lines += [f"      {figure.what}: {figure.text}" for figure in result.figures]
    return "\n".join(lines)


def format_verdict(checks: GpuChecks) -> str:
    passed = sum(result.passed for result in checks.results)
    return f"{passed} of {len(checks.results)} checks pass on {checks.device}"


def format_checks(checks: GpuChecks) -> str:
    """The whole as a Markdown page: one row a check, made from the record alone."""
    made, packages = checks.environment, checks.environment.packages
    shown = ", ".join(f"{name} {packages[name]}" for name in ("torch", "transformers", "peft",
                      "bitsandbytes", "lm-eval") if name in packages)  # fmt: skip
    lines = [
        f"# {format_verdict(checks)}",
        "",
        f"{made.finished_at}, {checks.seconds:.0f} s, {shown}, commit {made.git_commit}. "
        "Made by `make gpu-check`.",
        "",
        "| check | result | figures | rule | seconds |",
        "|---|---|---|---|---|",
    ]
    for result in checks.results:
        word = "pass" if result.passed else f"**FAIL**: {result.fault}"
        figures = "; ".join(f"{figure.what} {figure.text}" for figure in result.figures)
        cells = (result.name, word, figures, result.rule, f"{result.seconds:.1f}")
        told = (" ".join(cell.replace("|", "\\|").split()) for cell in cells)
        lines.append(f"| {' | '.join(told)} |")
    return "\n".join(lines) + "\n"
