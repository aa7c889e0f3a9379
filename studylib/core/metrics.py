"""One table of every figure that a report shows: its unit, direction, format and meaning.

Tables, figures and captions take their headers and formats from here, so that one figure is
called and rounded the same everywhere. A figure that is missing becomes a word, never a number.

Not covered: how a figure is measured (studylib.core.measure, train, evaluate) or compared (stats).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MISSING = "not measured"
ARROWS = {"up": " ↑", "down": " ↓", "none": ""}


@dataclass(frozen=True)
class Metric:
    """One figure. `better` says which way is good; `scale` turns the stored unit into the shown."""

    key: str
    label: str
    unit: str
    better: Literal["up", "down", "none"]
    digits: int
    meaning: str
    scale: float = 1.0

    @property
    def header(self) -> str:
        """Label, unit and arrow, as a column's header."""
        unit = f" ({self.unit})" if self.unit else ""
        return f"{self.label}{unit}{ARROWS[self.better]}"

    def number(self, value: float | None) -> str:
        """The value in the shown unit without it, or the word for a missing one."""
        if value is None:
            return MISSING
        if self.key.endswith("_bytes"):
            return byte_size(value, self.digits)
        return plain_number(value * self.scale, self.digits)

    def text(self, value: float | None) -> str:
        """The value with its unit, for sentences."""
        return self.number(value) + (f" {self.unit}" if self.unit and value is not None else "")


def plain_number(value: float, digits: int) -> str:
    """`digits` significant figures, never an exponent, with thousands apart and no minus zero."""
    if value == 0:
        return "0"
    # of the rounded value: 9.996 to three figures is 10.0
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])
    text = f"{value:,.{max(0, digits - 1 - exponent)}f}"
    return text.replace("-", "−")


def byte_size(count: float, digits: int = 3) -> str:
    """Bytes with the decimal unit that fits: 26.0 GB, 379 kB."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(count) >= 0.9995 * size:
            return f"{plain_number(count / size, digits)} {unit}"
    return f"{plain_number(count, digits)} bytes"


def points(value: float) -> str:
    """A difference of shares as percentage points with its sign: 0.0123 -> +1.2."""
    return decimals(100 * value, 1, signed=True)


def percent(value: float) -> str:
    """A share in per cent with one decimal and no unit."""
    return decimals(100 * value, 1)


def decimals(value: float, digits: int, signed: bool = False) -> str:
    """So many decimals, thousands apart, a true minus; what is rounded to nothing has no sign."""
    text = f"{value:{'+' if signed else ''}z,.{digits}f}"
    return text.replace("-", "−") if text.strip("+0.") else text.removeprefix("+")


_TABLE = (
    Metric("trainable_params", "Trainable parameters", "", "down", 4, "weights that are trained"),
    Metric("trainable_share", "Trainable", "%", "down", 3,
           "trainable parameters over the parameters of the untouched model", 100),
    Metric("total_params", "Size", "parameters", "none", 4, "parameters of the untouched model"),
    Metric("load_peak_bytes", "Load peak", "", "down", 3, "largest memory while loading"),
    Metric("train_peak_bytes", "Train peak", "", "down", 3, "largest memory in training"),
    Metric("evaluate_peak_bytes", "Evaluate peak", "", "down", 3,
           "largest memory while the questions are asked"),
    Metric("serve_peak_bytes", "Serve peak", "", "down", 3,
           "largest memory in the serving stage"),
    Metric("clean_step_seconds", "Clean step", "s", "down", 3,
           "median time of one update; warm-up, loading, tokenising and checkpoints left out"),
    Metric("train_seconds", "Training", "s", "down", 3,
           "wall clock of loading and training: what is paid for"),
    Metric("end_to_end_seconds", "End to end", "s", "down", 3,
           "wall clock of all stages: load, train, evaluate, serve"),
    Metric("tokens_per_second", "Tokens/s", "", "up", 3,
           "real tokens, padding not counted, over clean step time"),
    Metric("model_flops_per_token", "Arithmetic", "MFLOP/token", "down", 3,
           "operations that model and data need by token: 4 a frozen weight, 6 a trained one, and "
           "attention", 1e-6),
    Metric("recomputed_flops_per_token", "Recomputed", "MFLOP/token", "down", 3,
           "operations by token that checkpointing does again", 1e-6),
    Metric("model_flops_utilisation", "Utilisation", "%", "up", 3,
           "the model's arithmetic over what the cards' datasheet promises", 100),
    Metric("optimizer_share", "Optimizer", "% of step", "down", 2,
           "share of the clean steps spent in the optimizer's update", 100),
    Metric("data_share", "Data loader", "% of step", "down", 2,
           "share of the clean steps spent fetching rows", 100),
    Metric("energy_watt_hours", "Energy", "Wh", "down", 3, "energy of loading and training, NVML"),
    Metric("cost_usd", "Cost", "$", "down", 2,
           "seconds of loading and training × machines × price"),
    Metric("accuracy", "Accuracy", "%", "up", 3, "right answers over all questions", 100),
    Metric("gain", "Gain over base", "pp", "up", 2, "accuracy less the untouched model's", 100),
    Metric("gap", "Gap to full", "pp", "up", 2,
           "accuracy less full fine-tuning's, on the same items", 100),
    Metric("forgetting", "Kept knowledge", "pp", "up", 2,
           "change against the base on what it knew before; below zero is forgetting", 100),
    Metric("variant_bytes", "One more variant", "", "down", 3,
           "bytes on disk that one more fine-tuned variant needs"),
)  # fmt: skip

METRICS: dict[str, Metric] = {metric.key: metric for metric in _TABLE}
