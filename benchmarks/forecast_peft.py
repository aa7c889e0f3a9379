"""Forecast the runs of peft's own benchmark and print both: parameters, and what torch reserved.

Run: python benchmarks/forecast_peft.py FILE.csv   (5 to 60 s a line, no device)
FILE.csv has a run a line, with columns as in ../shared/data/published_memory_peft.csv: method is
peft's name of it and of its experiment, peak_mem torch's largest reserve in GiB over training and
evaluation, trainable_params what was trained. The models are Llama-3.2-3B in bf16, 4 examples of up
to 768 tokens a step.

Nothing is fitted to these runs. A method that no row of the table of methods has is a row here, of
the file's numbers and, where it leaves some out (blocks, strides), of those that its experiment has
and its count of parameters confirms.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from forecast_published import mean_and_worst, read_runs

from studylib.core.errors import StudyError
from studylib.forecasting.forecast import Forecast, ForecastSettings, forecast
from studylib.planning.cuda_terms import CudaTerms
from studylib.planning.roofline import ASSUMED
from studylib.schema.methods import METHODS, WHOLE, Method

GIB = 1024**3
NEEDED = {"method", "rank", "alpha", "targets", "peak_mem", "trainable_params", "library_versions"}
MODELS = {"Llama-3.2-3B": "shape:llama-3.2-3b"}
OWN = "published"
# First word of the file's method -> peft's keys beside targets. Holes stand for the file's numbers.
KEYS: dict[str, dict[str, Any]] = {
    "lora": {"peft_type": "LORA", "r": "$rank", "lora_alpha": "$alpha"},
    "boft": {"peft_type": "BOFT"},
    "ia3": {"peft_type": "IA3", "feedforward_modules": ["gate_proj", "up_proj", "down_proj"]},
    "loha": {"peft_type": "LOHA", "r": "$rank"},
    "miss": {"peft_type": "MISS", "r": "$rank"},
    "ln_tuning": {"peft_type": "LN_TUNING"},
    "c3a": {"peft_type": "C3A", "block_size": 64},
    "shira": {"peft_type": "SHIRA", "r": "$rank", "random_seed": 42},
    "beft": {"peft_type": "BEFT"},
    "lily": {"peft_type": "LILY", "r": "$rank", "stride_A": 14, "num_B": 2, "scaling": 8.0},
    "prefixtuning": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 200},
}
# Last word of an experiment's name -> what else it says.
MORE: dict[str, dict[str, Any]] = {
    "dora": {"use_dora": True},
    "bdlora": {"use_bdlora": {"target_modules_bd_a": ["down_proj"], "nblocks": 2,
                              "target_modules_bd_b": ["up_proj", "gate_proj"]}},
}  # fmt: skip
FROZEN = {"lorafa": ("lora_A",)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", type=Path, metavar="FILE.csv")
    try:
        compare_file(parser.parse_args().file)
    except StudyError as error:
        raise SystemExit(f"{error}") from None


def compare_file(file: Path) -> None:
    """A line a run, then mean and worst error."""
    errors, equal, within, missed = [], 0, 0, 0
    for row in read_runs(file, NEEDED):
        name = f"{row['method']} ({row['library_versions'].partition(',')[0]})"
        try:
            made = forecast_row(row)
        except StudyError as error:
            missed += 1
            print(f"no forecast: {name}: {error}", flush=True)
            continue
        reserved = made.peak_bytes - made.parts["cuda_context"]
        error = reserved / (float(row["peak_mem"]) * GIB) - 1
        published = int(float(row["trainable_params"]))
        same = made.trainable_params == published
        errors.append(error)
        equal, within = equal + same, within + (abs(error) <= 0.05)
        params = "equal" if same else f"NOT EQUAL, published {published:,}"
        print(
            f"{reserved / GIB:6.2f} GiB forecast, {float(row['peak_mem']):6.2f} reserved "
            f"{error:+6.1%}; {made.trainable_params:,} parameters ({params})  {name}",
            flush=True,
        )
    if errors:
        print(
            f"{len(errors)} runs: {mean_and_worst(errors)}; within 5 %: {within}; parameters equal:"
            f" {equal}; without a forecast: {missed}"
        )


def forecast_row(row: dict[str, str]) -> Forecast:
    """The forecast of one run, by assumptions alone; its method is a row for as long."""
    model = MODELS.get(row["model"])
    if model is None:
        raise StudyError(row["model"], "this model is not known here", "Name it in MODELS.")
    settings: dict[str, Any] = {
        "model": model, "micro_batch": 4, "seq_len": 768, "masked": True, "autocast": False,
        "checkpointing": False, "optimizer": "adamw-foreach",
    }  # fmt: skip
    kind, _, experiment = row["method"].partition(" ")
    if kind == "full-finetuning":
        settings["method"] = WHOLE
    else:
        METHODS[OWN] = as_method(row, kind, experiment.rpartition("-")[2])
        settings["method"] = OWN
    try:
        return forecast(
            ForecastSettings.model_validate(settings), efficiency=ASSUMED, cuda=CudaTerms()
        )
    finally:
        METHODS.pop(OWN, None)


def as_method(row: dict[str, str], kind: str, variant: str) -> Method:
    """The row of a published run: peft's keys with the file's numbers."""
    if kind not in KEYS:
        raise StudyError(kind, "this method is not known here", "Name its keys in KEYS.")
    numbers = {"$rank": row["rank"], "$alpha": row["alpha"]}
    keys = {
        key: int(float(numbers[value])) if isinstance(value, str) and value in numbers else value
        for key, value in (KEYS[kind] | MORE.get(variant, {})).items()
    }
    if targets := [name for name in row["targets"].split(",") if name]:
        keys["target_modules"] = targets
    return Method(
        label=row["method"], default_learning_rate=1e-4, peft=keys, frozen=FROZEN.get(variant, ())
    )


if __name__ == "__main__":
    main()
