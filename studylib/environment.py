"""Provenance and fingerprint of a run: where it was made, and what it must share with others.

Not covered: comparing fingerprints (studylib.records).
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from studylib.devices import describe_devices
from studylib.host import host_description
from studylib.records import Environment, Scalar, file_sha256
from studylib.sealed import canonical

if TYPE_CHECKING:
    from studylib.run import Run
    from studylib.settings import TrainSettings

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
HERE = Path(__file__).parent
COMMIT_VARIABLE, DIRTY_VARIABLE = "STUDY_GIT_COMMIT", "STUDY_GIT_DIRTY"

# The code whose change can change a measured figure. Report, figures and command line cannot.
MEASURING = (
    "allocator",
    "almanac",
    "chunked_loss",
    "data",
    "distributed",
    "evaluate",
    "flops",
    "host",
    "live",
    "meter",
    "methods",
    "models",
    "nvml",
    "prefix_lm",
    "run",
    "serve",
    "step_clock",
    "tally",
    "tasks",
    "token_tree",
    "train",
    "train_worker",
    "weights",
)
# The same for a serving run, which trains nothing and asks nothing.
SERVING = (
    "allocator",
    "engines",
    "footprint",
    "host",
    "hot_swap",
    "latency",
    "meter",
    "methods",
    "mixed_batch",
    "models",
    "nvml",
    "serve_run",
    "tally",
    "variants",
)


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


def package_versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
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
                cwd=HERE,
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
    status = git("status", "--porcelain", "--", *(f"{name}.py" for name in measuring))
    return commit, bool(status) if status is not None else None


@lru_cache(maxsize=2)
def code_sha256(modules: tuple[str, ...] = MEASURING) -> str:
    """One hash of the modules that measure, as they are at the first call: call it at the start."""
    files = [HERE / f"{name}.py" for name in modules]
    return hashlib.sha256(canonical([[path.name, file_sha256(path)] for path in files])).hexdigest()


def spell_switches(recipe: TrainSettings) -> str:
    """What a recipe chose for speed and memory, in one line."""
    words = [recipe.attention, f"{recipe.loss} loss", recipe.optimizer]
    flags = ("master_weights", "compile", "tf32", "checkpointing")
    return ", ".join([*words, *(name for name in flags if getattr(recipe, name))])


def fingerprint(run: Run) -> dict[str, Scalar]:
    """What identifies a run's data, questions, recipe, model, code and device, one level deep."""
    from studylib.evaluate import hash_column

    spec, data, items = run.spec, run.data, run.items
    recipe, asked = spec.train, spec.evaluate
    marks: dict[str, Scalar] = {
        "code.sha256": code_sha256(),
        "device.name": device_name(),
        "model.name": spec.model,
        "model.sha256": run.load_block.model_sha256 if run.load_block else None,
        "evaluate.source": asked.questions,
        "evaluate.scoring": asked.scoring,
        "evaluate.shots": asked.shots,
        "evaluate.precision": "float32 log-softmax",
    }
    if items is not None:
        # A quantized run asks everything twice, of other weights: what was asked is the same.
        asked_once = items[items["weights"] == items["weights"].iloc[0]]
        marks["evaluate.items_sha256"] = hash_column(asked_once, ["task", "item"])
        marks["evaluate.prompt"] = hash_column(asked_once, ["task", "prompt_sha256"])
        marks["evaluate.weights"] = run.weights_scored
    if data is not None:
        marks |= {
            "data.source": spec.data.source,
            "data.template": spec.data.template,
            "data.sha256": data.sha256,
            "data.order_sha256": data.order_sha256,
            "data.tokens_seen": data.tokens_seen,
            "recipe.steps": recipe.steps,
            "recipe.seq_len": recipe.seq_len,
            "recipe.batch_tokens": recipe.seq_len * recipe.micro_batch * recipe.accumulation,
            "recipe.schedule": f"{recipe.schedule}, warm-up {recipe.warmup_share:g}",
            "recipe.weight_decay": recipe.weight_decay,
            "recipe.max_grad_norm": recipe.max_grad_norm,
            "recipe.dtype": recipe.dtype,
            "recipe.switches": spell_switches(recipe),
            "recipe.cards": spec.gpus,
            "recipe.sharding": spec.hardware.sharding if spec.gpus > 1 else "none",
        }
    return marks
