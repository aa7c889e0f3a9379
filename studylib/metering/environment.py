"""Provenance of a run: the machine, packages and code that made it.

Not covered: what else identifies a run (studylib.training.fingerprint).
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version

from studylib.core.places import PACKAGE
from studylib.core.sealed import canonical
from studylib.metering.devices import describe_devices
from studylib.metering.host import host_description
from studylib.schema.records import Environment, file_sha256

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "lm-eval",
    "datasets",
    "tokenizers",
    "safetensors",
    "papermill",
    "nvidia-ml-py",
    "numpy",
    "pandas",
    "pyarrow",
)
COMMIT_VARIABLE, DIRTY_VARIABLE = "STUDY_GIT_COMMIT", "STUDY_GIT_DIRTY"

# The code whose change can change a measured figure. Report, figures and command line cannot.
MEASURING = (
    "inputs/almanac.py",
    "inputs/data.py",
    "inputs/examples.py",
    "metering/allocator.py",
    "metering/host.py",
    "metering/live.py",
    "metering/meter.py",
    "metering/nvml.py",
    "metering/step_clock.py",
    "metering/tally.py",
    "modelling/chunked_loss.py",
    "modelling/flops.py",
    "modelling/methods.py",
    "modelling/models.py",
    "modelling/serve.py",
    "modelling/weights.py",
    "scoring/evaluate.py",
    "scoring/prefix_lm.py",
    "scoring/tasks.py",
    "scoring/token_tree.py",
    "training/distributed.py",
    "training/run.py",
    "training/step_memory.py",
    "training/train.py",
    "training/train_worker.py",
)
# The same for a serving run, which trains nothing and asks nothing.
SERVING = (
    "metering/allocator.py",
    "metering/host.py",
    "metering/meter.py",
    "metering/nvml.py",
    "metering/tally.py",
    "modelling/methods.py",
    "modelling/models.py",
    "modelling/variants.py",
    "planning/footprint.py",
    "serving/engines.py",
    "serving/hot_swap.py",
    "serving/latency.py",
    "serving/mixed_batch.py",
    "serving/pair_timings.py",
    "serving/serve_run.py",
)

# What a forecast is made by: traces, arithmetic, and the tables that they read.
FORECASTING = (
    "forecasting/article_forecasts.py",
    "forecasting/article_memory.py",
    "forecasting/calibration.py",
    "forecasting/depth.py",
    "forecasting/fitting.py",
    "forecasting/forecast.py",
    "forecasting/job_forecast.py",
    "forecasting/kernels.py",
    "forecasting/optimizers.py",
    "forecasting/published.py",
    "forecasting/run_forecasts.py",
    "forecasting/sharding.py",
    "forecasting/step.py",
    "forecasting/trace.py",
    "metering/allocator.py",
    "modelling/chunked_loss.py",
    "modelling/skeleton.py",
    "planning/catalog.py",
    "planning/cuda_terms.py",
    "planning/roofline.py",
    "gpus.csv",
    "prices.csv",
    "shapes.json",
    "published_memory.json",
)
TRACING_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def describe_environment(
    started_at: str, finished_at: str, concurrent_runs: int, sessions: int
) -> Environment:
    import torch

    devices, reason = describe_devices()
    host = host_description()
    commit, dirty = git_state()
    return Environment(
        started_at=started_at,
        finished_at=finished_at,
        device=device_name(),
        devices=tuple(devices),
        devices_reason=reason,
        host=host,
        threads=torch.get_num_threads(),
        concurrent_runs=concurrent_runs,
        sessions=sessions,
        packages=package_versions(),
        git_commit=commit,
        git_dirty=dirty,
    )


def device_name() -> str:
    """The name of the first card that torch sees, or the processor's.

    From NVML where it answers: asking CUDA could leave a context on the card, and the process that
    starts a study's runs must hold none while they are measured.
    """
    import torch

    if not torch.cuda.is_available():
        return f"CPU {host_description()['cpu_model']}"
    names = [card["name"] for card in describe_devices()[0] if card["cuda_ordinal"] == 0]
    return names[0] if names else torch.cuda.get_device_name(0)


def package_versions(names: Iterable[str] = PACKAGES) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def git_state() -> tuple[str | None, bool | None]:
    """(commit, whether the code that measures differs from it), or nulls outside git.

    Code that was sent to another machine without its history is told by whoever sent it.
    """
    environ = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *words],
                cwd=PACKAGE,
                env=environ,
                capture_output=True,
                text=True,
                timeout=20,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if commit is None:
        told = os.environ.get(COMMIT_VARIABLE)
        return (told, os.environ.get(DIRTY_VARIABLE) == "1") if told else (None, None)
    measuring = sorted({*MEASURING, *SERVING})
    status = git("status", "--porcelain", "--", *measuring)
    return commit, bool(status) if status is not None else None


@lru_cache(maxsize=4)
def code_sha256(files: tuple[str, ...] = MEASURING) -> str:
    """One hash of files of the package, as they are at the first call: call it at the start."""
    marks = [[name, file_sha256(PACKAGE / name)] for name in files]
    return hashlib.sha256(canonical(marks)).hexdigest()
