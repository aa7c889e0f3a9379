"""Forecast runs that others measured and print both: what torch allocated, what the driver showed.

Run: python benchmarks/forecast_published.py [FILE.csv ...]   (2 to 5 s a line, no device)
Without a file, the cases that the package has. A file has a run a line, with columns as in
../shared/data/published_memory_a100.csv: peak_mem is torch's peak allocated in bytes or OOM,
nvml_mib nvidia-smi's peak. Runs with kernels that no trace has are set apart, with the reason.

Nothing is fitted to these runs: a line's settings and versions are all that goes in.
"""

from __future__ import annotations

import argparse
import csv
import re
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING

from studylib.core.errors import StudyError
from studylib.forecasting.article_forecasts import compare_published, load_published
from studylib.forecasting.forecast import Forecast, ForecastSettings, forecast
from studylib.modelling.skeleton import read_config, shape_config
from studylib.planning.catalog import find_gpu, load_shapes
from studylib.planning.cuda_terms import CudaTerms
from studylib.planning.roofline import ASSUMED
from studylib.schema.settings import ModelRef

MIB = 1024**2
PUBLISHED_SHAPES = {"meta-llama-3-8b": "llama-3.1-8b"}  # the same numbers
NUMBERS: dict[str, dict[str, Any]] = {  # of the models' own config.json
    "powerlm-3b": {
        "model_type": "granite", "hidden_size": 2304, "num_hidden_layers": 40,
        "intermediate_size": 9216, "num_attention_heads": 36, "num_key_value_heads": 36,
        "vocab_size": 49152, "tie_word_embeddings": True, "max_position_embeddings": 4096,
    },
    "mistral-7b-v0.1": {
        "model_type": "mistral", "hidden_size": 4096, "num_hidden_layers": 32,
        "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8,
        "vocab_size": 32000, "max_position_embeddings": 32768,
    },
}  # fmt: skip
CARDS = {"A100-80GB": "a100-80gb"}
TARGETS = {letter: f"{letter}_proj" for letter in "qkvo"}
NEEDED = {"model", "method", "micro_batch", "seq_len", "peak_mem", "nvml_mib", "n_gpu", "loss"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE.csv")
    files = parser.parse_args().files
    if not files:
        compare_own_cases()
    for file in files:
        try:
            compare_file(file)
        except StudyError as error:
            raise SystemExit(f"{error}") from None


def compare_own_cases() -> None:
    errors = []
    for published in load_published():
        made = compare_published(published)
        left_out = f"  [left out: {published.not_comparable}]" if published.not_comparable else ""
        print(
            f"{made.forecast_bytes / 1e9:8.2f} GB forecast,"
            f" {published.published_bytes / 1e9:8.2f} GB"
            f" {published.counter} {made.error:+7.1%}  {published.case}{left_out}",
            flush=True,
        )
        if published.not_comparable is None:
            errors.append(abs(made.error))
    print(f"{len(errors)} comparable cases: {mean_and_worst(errors)}")


def read_runs(file: Path, needed: set[str]) -> list[dict[str, str]]:
    """The lines of a file; StudyError where it lacks a column that is needed, or has no line."""
    try:
        rows = list(csv.DictReader(file.open(encoding="utf-8", newline="")))
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(file, f"this file cannot be read ({error})", "Give a CSV file.") from error
    if not rows or not needed <= set(rows[0]):
        raise StudyError(
            file, "this file has no runs in known columns", f"It needs {', '.join(sorted(needed))}."
        )
    return rows


def compare_file(file: Path) -> None:
    """A line a run, then mean and worst error of each group of runs."""
    rows = read_runs(file, NEEDED)
    errors: dict[str, list[tuple[float, float]]] = defaultdict(list)
    right: dict[str, list[bool]] = defaultdict(list)
    for row in rows:
        try:
            made = forecast_row(row)
        except StudyError as error:
            print(f"no forecast: {describe(row)}: {error}", flush=True)
            continue
        group = group_of(row)
        fits = made.fit.may_run
        right[group].append(fits == (row["peak_mem"] != "OOM"))
        words = f"{'fits' if fits else 'does not fit'}, {'RIGHT' if right[group][-1] else 'WRONG'}"
        figures = (
            f"allocated {made.peak_allocated_bytes / 1e9:6.2f}, driver {made.peak_bytes / 1e9:6.2f}"
        )
        if row["peak_mem"] == "OOM":
            print(f"{figures} GB (out of memory; {words})  {describe(row)}", flush=True)
            continue
        allocated, shown = float(row["peak_mem"]), float(row["nvml_mib"]) * MIB
        pair = made.peak_allocated_bytes / allocated - 1, made.peak_bytes / shown - 1
        errors[group].append(pair)
        print(
            f"{figures} GB, {pair[0]:+6.1%} of {allocated / 1e9:6.2f}, {pair[1]:+6.1%} of "
            f"{shown / 1e9:6.2f} ({words})  {describe(row)}",
            flush=True,
        )
    for group, answers in sorted(right.items()):
        pairs = errors[group]
        print(f"\n{group}: fits or not is right {sum(answers)} times of {len(answers)}")
        for name, found in zip(("allocated", "driver"), zip(*pairs, strict=True), strict=False):
            print(f"  {name:10} {len(found)} runs, {mean_and_worst(found)}")


def forecast_row(row: dict[str, str]) -> Forecast:
    """The forecast of a run from its settings, by assumptions alone."""
    cards = int(row["n_gpu"])
    fp32 = "fp32" in row["precision"]  # everything but 4-bit weights, as peft's preparation does
    letters = [t.strip() for t in row["targets"].split(",") if t.strip()]
    adapter = (
        {}
        if row["method"] == "full"
        else {
            "rank": int(float(row["rank"])),
            "alpha": float(row["alpha"]),
            "targets": tuple(TARGETS.get(letter, letter) for letter in letters),
            "adapter": row["adapter_dtype"] or "fp32",
        }
    )
    settings = ForecastSettings(
        model=f"path:{row['model']}",
        method=row["method"],
        micro_batch=int(row["micro_batch"]),
        accumulation=int(float(row["grad_accum"] or 1)),
        seq_len=int(row["seq_len"]),
        weights="fp32" if fp32 else "bf16",
        master_weights=fp32,
        autocast=row["autocast"] == "True",
        optimizer="adamw-foreach" if "foreach" in row["optimizer"] else "adamw",
        checkpointing=row["grad_ckpt"] == "True",
        loss=loss_of(row),  # type: ignore[arg-type]
        gpus=cards,
        sharding="fsdp" if cards > 1 else "none",
        gpu=CARDS.get(row["gpu"], row["gpu"].lower()),
        **adapter,  # type: ignore[arg-type]
    )
    find_gpu(settings.gpu)
    config = find_numbers(row["model"])
    return forecast(settings, efficiency=ASSUMED, cuda=CudaTerms(), config=config)


def loss_of(row: dict[str, str]) -> str:
    """Which loss of ours is the run's, by its name and the version of transformers."""
    if "fused linear" in row["loss"]:
        return "chunked"
    version = re.search(r"transformers (\d+)\.(\d+)", row["library_versions"])
    old = version is not None and tuple(map(int, version.groups())) < (4, 46)
    return "shifted" if old else "full"


def find_numbers(model: str) -> Any:
    """The configuration of a published model; StudyError for one that is not known here."""
    name = model.rpartition("/")[2].lower()
    name = PUBLISHED_SHAPES.get(name, name).removesuffix("-hf")
    if name in load_shapes():
        return shape_config(name)
    if name in NUMBERS:
        numbers = dict(NUMBERS[name])
        return CONFIG_MAPPING[numbers.pop("model_type")](**numbers)
    return read_config(ModelRef.parse(f"hub:{model}"))


def group_of(row: dict[str, str]) -> str:
    """Runs that are judged together: number of cards, and whether a trace has their kernels."""
    cards = "one card" if row["n_gpu"] == "1" else "several cards"
    if row["loss"] == "full logits":
        return f"{cards}, stock"
    return f"{cards}, other kernels ({row['loss']}: not what is traced)"


def describe(row: dict[str, str]) -> str:
    cards = f", {row['n_gpu']} cards" if row["n_gpu"] != "1" else ""
    return (
        f"{row['model']} {row['method']} {row['micro_batch']} × {row['seq_len']}{cards}, "
        f"{row['loss']}, {row['precision'].partition(';')[0]}"
        + (", the rest in fp32" if ";" in row["precision"] else "")
    )


def mean_and_worst(errors: Any) -> str:
    sizes = [abs(error) for error in errors]
    return f"mean error {statistics.fmean(sizes):.1%}, worst {max(sizes):.1%}"


if __name__ == "__main__":
    main()
