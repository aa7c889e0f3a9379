"""A stand-in for pynvml: the same names, parameters and errors, over cards made up by a test.

Constants and error classes are pynvml's own, so a test sees what the driver's refusals look like.
A test changes a card's attributes while the code under test runs.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pynvml

GIB = 2**30


def refuse(name: str) -> pynvml.NVMLError:
    """The error that pynvml raises for NVML_ERROR_`name`."""
    return pynvml.NVMLError(getattr(pynvml, f"NVML_ERROR_{name}"))


@dataclass
class FakeCard:
    """One card or MIG instance; `refusals` maps an NVML function to the error it raises."""

    uuid: str = "GPU-aaaa0000"
    name: str = "NVIDIA A100-SXM4-80GB"
    total_bytes: int = 80 * GIB
    reserved_bytes: int = GIB // 2
    used_bytes: int = 2 * GIB
    busy_percent: int = 50
    watts: float = 200.0
    counter_watts: float | None = 300.0
    celsius: int = 60
    throttle_bits: int = 0
    processes: list[tuple[int, int | None]] = field(default_factory=list)
    drawing: list[tuple[int, int | None]] = field(default_factory=list)
    refusals: dict[str, Exception] = field(default_factory=dict)
    lost: bool = False
    mig: bool | None = None
    instances: list[FakeCard] = field(default_factory=list)


def make_mig_instance(uuid: str = "MIG-1111") -> FakeCard:
    """An instance as NVML shows it: memory is its own; utilisation, power and energy are not."""
    not_supported = (
        "nvmlDeviceGetUtilizationRates",
        "nvmlDeviceGetPowerUsage",
        "nvmlDeviceGetTotalEnergyConsumption",
        "nvmlDeviceGetTemperature",
        "nvmlDeviceGetCurrentClocksThrottleReasons",
    )
    return FakeCard(
        uuid=uuid,
        name="NVIDIA A100-SXM4-80GB MIG 3g.40gb",
        total_bytes=40 * GIB,
        refusals={call: refuse("NOT_SUPPORTED") for call in not_supported},
    )


class FakeNvml:
    def __init__(self, *cards: FakeCard, init_error: Exception | None = None):
        self.cards = list(cards)
        self.init_error = init_error
        self.started = 0
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("nvml") and callable(getattr(pynvml, name)):
            raise AttributeError(f"the fake has no {name}")
        return getattr(pynvml, name)

    def __dir__(self) -> list[str]:
        return dir(pynvml)

    def _touch(self, handle: FakeCard, call: str) -> None:
        self.calls.append(call)
        if handle.lost:
            raise refuse("GPU_IS_LOST")
        if call in handle.refusals:
            raise handle.refusals[call]

    def nvmlInit(self):
        if self.init_error is not None:
            raise self.init_error
        self.started += 1

    def nvmlShutdown(self):
        self.started -= 1

    def nvmlSystemGetDriverVersion(self):
        return "570.86.15"

    def nvmlSystemGetCudaDriverVersion(self):
        return 12080

    def nvmlDeviceGetCount(self):
        return len(self.cards)

    def nvmlDeviceGetHandleByIndex(self, index):
        self._touch(self.cards[index], "nvmlDeviceGetHandleByIndex")
        return self.cards[index]

    def nvmlDeviceGetUUID(self, handle):
        return handle.uuid

    def nvmlDeviceGetName(self, handle):
        return handle.name

    def nvmlDeviceGetMemoryInfo(self, handle, version=None):
        call = "nvmlDeviceGetMemoryInfo_v2" if version else "nvmlDeviceGetMemoryInfo"
        self._touch(handle, call)
        if version:
            return SimpleNamespace(
                total=handle.total_bytes, used=handle.used_bytes, reserved=handle.reserved_bytes
            )
        return SimpleNamespace(
            total=handle.total_bytes, used=handle.used_bytes + handle.reserved_bytes
        )

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        self._touch(handle, "nvmlDeviceGetComputeRunningProcesses")
        return [SimpleNamespace(pid=p, usedGpuMemory=b) for p, b in handle.processes]

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle):
        self._touch(handle, "nvmlDeviceGetGraphicsRunningProcesses")
        return [SimpleNamespace(pid=p, usedGpuMemory=b) for p, b in handle.drawing]

    def nvmlDeviceGetUtilizationRates(self, handle):
        self._touch(handle, "nvmlDeviceGetUtilizationRates")
        return SimpleNamespace(gpu=handle.busy_percent, memory=0)

    def nvmlDeviceGetPowerUsage(self, handle):
        self._touch(handle, "nvmlDeviceGetPowerUsage")
        return int(handle.watts * 1000)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle):
        self._touch(handle, "nvmlDeviceGetTotalEnergyConsumption")
        if handle.counter_watts is None:
            raise refuse("NOT_SUPPORTED")
        return int(time.perf_counter() * handle.counter_watts * 1000)

    def nvmlDeviceGetTemperature(self, handle, sensor):
        self._touch(handle, "nvmlDeviceGetTemperature")
        return handle.celsius

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):
        self._touch(handle, "nvmlDeviceGetCurrentClocksThrottleReasons")
        return handle.throttle_bits

    def nvmlDeviceGetEnforcedPowerLimit(self, handle):
        self._touch(handle, "nvmlDeviceGetEnforcedPowerLimit")
        return 400_000

    def nvmlDeviceGetMigMode(self, device):
        if device.mig is None:
            raise refuse("NOT_SUPPORTED")
        return [int(device.mig), int(device.mig)]

    def nvmlDeviceGetMaxMigDeviceCount(self, device):
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, device, index):
        if index >= len(device.instances):
            raise refuse("NOT_FOUND")
        return device.instances[index]
