"""Provenance of a run: the machine, packages and commit that made it.

Not covered: a hash of the code (studylib.metering.code_files), what else identifies a run
(studylib.training.fingerprint).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

from studylib.core.places import PACKAGE
from studylib.metering.code_files import RUN, SERVING, reached_files
from studylib.metering.devices import describe_devices, shows_no_card
from studylib.metering.host import host_description
from studylib.schema.records import Environment

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
    processor = f"CPU {host_description()['cpu_model']}"
    if shows_no_card():  # or else torch is imported, for a second, to see none
        return processor
    import torch

    if not torch.cuda.is_available():
        return processor
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

    Code that was sent to another machine is told by whoever sent it, whatever history lies there:
    a copy may come on top of an older one.
    """
    told = os.environ.get(COMMIT_VARIABLE)
    if told:
        return told, os.environ.get(DIRTY_VARIABLE) == "1"
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
        return None, None
    measuring = {*reached_files(RUN), *reached_files(SERVING)}
    status = git("status", "--porcelain", "--", *sorted(measuring))
    return commit, bool(status) if status is not None else None
