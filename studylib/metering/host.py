"""The host's side of a measurement: this process's memory and what machine it runs on.

The kernel keeps each process's largest resident size (VmHWM) and on Linux lets it be set back, so
a stage's peak can be exact, however short. Elsewhere the largest sample stands in, a lower bound.

Not covered: memory of child processes; swap; memory shared with other processes counts in full.
"""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import psutil

CLEAR_REFS = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")
CGROUP = Path("/sys/fs/cgroup")
# Sets that change how the study's arithmetic is done, not only how fast.
NAMED_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")


def reset_peak_bytes() -> bool:
    """Set the kernel's record of this process's peak back to its present size; False if refused."""
    try:
        CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


def read_peak_bytes() -> int | None:
    """The kernel's peak since the last reset; None where it keeps none."""
    try:
        text = STATUS.read_text()
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def read_resident_bytes(process: psutil.Process) -> int | None:
    """Resident size of one process at this instant; None where it cannot be read."""
    try:
        return process.memory_info().rss
    except (psutil.Error, OSError):
        return None


def host_description() -> dict:
    """CPU, cores, memory, system and Python as a JSON-able dict; unknown values are null.

    `cores_allowed` is what affinity lets this process use, `cores_quota` what a container's CPU
    quota comes to (it may be a fraction), `memory_limit_bytes` a container's limit.
    """
    memory = psutil.virtual_memory()
    affinity = getattr(os, "sched_getaffinity", None)
    model, flags = _read_cpu()
    return {
        "cpu_model": model,
        "cpu_instructions": [name for name in NAMED_INSTRUCTIONS if name in flags],
        "cores_physical": psutil.cpu_count(logical=False),
        "cores_logical": psutil.cpu_count(),
        "cores_allowed": len(affinity(0)) if affinity else psutil.cpu_count(),
        "cores_quota": _read_quota(),
        "memory_total_bytes": memory.total,
        "memory_available_bytes": memory.available,
        "memory_limit_bytes": _read_memory_limit(memory.total),
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "python": platform.python_version(),
    }


def _read_cpu() -> tuple[str, set[str]]:
    """The processor's name and its instruction sets."""
    fields: dict[str, str] = {}
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    model = fields.get("model name") or _read_mac_cpu() or platform.processor()
    flags = fields.get("flags") or fields.get("Features") or ""
    return model or platform.machine(), set(flags.split())


def _read_mac_cpu() -> str | None:
    if platform.system() != "Darwin":
        return None
    command = ["sysctl", "-n", "machdep.cpu.brand_string"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def _read_quota() -> float | None:
    """Cores' worth of a container's CPU quota, from either generation of control groups."""
    for folder in _cgroup_folders("cpu"):
        words = _read_words(folder / "cpu.max")
        if len(words) == 2 and words[0] != "max":
            return int(words[0]) / int(words[1])
        quota = _read_words(folder / "cpu.cfs_quota_us")
        period = _read_words(folder / "cpu.cfs_period_us")
        if quota and period and int(quota[0]) > 0:
            return int(quota[0]) / int(period[0])
    return None


def _read_memory_limit(total_bytes: int) -> int | None:
    for folder in _cgroup_folders("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            words = _read_words(folder / name)
            # The first generation writes "no limit" as a huge number.
            if words and words[0] != "max" and int(words[0]) < total_bytes:
                return int(words[0])
    return None


def _cgroup_folders(controller: str) -> list[Path]:
    """Where this process's limits may lie: its own group, then the root that a container sees."""
    folders = [CGROUP, CGROUP / controller]
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return folders
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            folders.insert(0, CGROUP / path.lstrip("/"))
        elif controller in controllers.split(","):
            folders.insert(0, CGROUP / controller / path.lstrip("/"))
    return folders


def _read_words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
