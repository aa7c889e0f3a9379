"""NVIDIA's management library (NVML): which cards this process will use, and one reading of them.

NVML sees what one rents: everything on the card, contexts and other processes included, which the
framework's own counters do not. The library is taken as a parameter so that a fake can stand in;
None means pynvml, imported on first use. Every refusal of NVML becomes a reason in words: MIG
instances have no utilisation or power of their own, containers and WSL hide process memory, old
drivers lack calls, cards fall off the bus.

"Used" is NVML's second version of the figure where the driver has it: without the driver's own
reserve, as nvidia-smi prints it.

Not covered: vendors other than NVIDIA; a mix of MIG instances and whole cards (the first instance
and all whole cards are taken); CUDA's own order of cards of different models, which NVML cannot
know: such a choice by number is refused instead of guessed.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import psutil

from studylib.core.errors import StudyError

NOT_LISTED = (
    "this process is not in NVML's list: it holds no memory there, or a container hides its PID"
)
HIDDEN_MEMORY = "NVML lists this process without its memory (WSL, or a driver that hides it)"
# Refusals that a second try will not change, so that a 20 Hz sampler stops asking.
PERMANENT = ("NotSupported", "FunctionNotFound", "InvalidArgument", "NoPermission")


@dataclass(frozen=True)
class Card:
    """One CUDA device: a whole card, or a MIG instance of `parent`."""

    handle: Any
    uuid: str
    name: str
    parent: Any = None


class Reading(NamedTuple):
    """One card at one instant. None where NVML would not say; `failures` maps field to reason."""

    used_bytes: int | None
    process_bytes: int | None
    utilisation_percent: float | None
    power_watts: float | None
    temperature_celsius: int | None
    throttle_bits: int | None
    failures: dict[str, str]


def open_nvml(nvml: Any = None) -> tuple[Any, str | None]:
    """Start NVML: (library, None), or (None, the reason). To be paired with nvmlShutdown."""
    if nvml is None:
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            return None, "no NVML device: the package nvidia-ml-py is not installed"
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return None, f"no NVML device: {error}"
    return nvml, None


def list_cards(
    nvml: Any, devices: Sequence[int] | None = None, environ: Mapping[str, str] = os.environ
) -> tuple[list[Card], str | None]:
    """The cards that CUDA will show this process, in CUDA's order; [] comes with a reason.

    `devices` are CUDA ordinals (torch's cuda:0, cuda:1), None for all. CUDA_VISIBLE_DEVICES is
    read as CUDA reads it: numbers, UUIDs or their unique beginnings, MIG UUIDs; the list ends at
    the first entry that names nothing. Raises StudyError for an ordinal that does not exist and
    for a choice by number among different models without CUDA_DEVICE_ORDER=PCI_BUS_ID.
    """
    cards = all_cards(nvml)
    if not cards:
        return [], "no NVML device: the driver lists no card"
    text = environ.get("CUDA_VISIBLE_DEVICES")
    found = cards if text is None else _select(nvml, cards, text)
    visible = _enter_mig(nvml, found)
    if not visible:
        return [], f"no NVML device: CUDA_VISIBLE_DEVICES={text!r} hides all {len(cards)} cards"
    if devices is not None:
        for ordinal in devices:
            if not 0 <= ordinal < len(visible):
                raise StudyError(
                    f"device {ordinal}",
                    f"CUDA shows this process {len(visible)} card(s), numbered from 0",
                    "Name one of those or change CUDA_VISIBLE_DEVICES",
                )
        visible = [visible[ordinal] for ordinal in devices]
        found = visible
    by_number = text is None or any(token.strip().isdigit() for token in text.split(","))
    if by_number and environ.get("CUDA_DEVICE_ORDER") != "PCI_BUS_ID":
        _refuse_unknown_order(cards, found, text)
    return visible, None if visible else "no NVML device: none was asked for"


def _refuse_unknown_order(cards: list[Card], chosen: list[Card], text: str | None) -> None:
    models = {card.name for card in cards}
    if len(models) > 1 and {c.uuid for c in chosen} != {c.uuid for c in cards}:
        raise StudyError(
            f"CUDA_VISIBLE_DEVICES={text!r}",
            f"numbers are ambiguous among {', '.join(sorted(models))}: CUDA puts the fastest first",
            "Set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name the card by its UUID (nvidia-smi -L)",
        )


def all_cards(nvml: Any) -> list[Card]:
    """Every whole card that the driver lists, in NVML's order (by PCI bus)."""
    cards = []
    try:
        count = nvml.nvmlDeviceGetCount()
    except nvml.NVMLError:
        return []
    for index in range(count):
        try:
            cards.append(_card(nvml, nvml.nvmlDeviceGetHandleByIndex(index)))
        except nvml.NVMLError:
            continue  # lost or forbidden: CUDA does not number it either
    return cards


def _card(nvml: Any, handle: Any, parent: Any = None) -> Card:
    return Card(handle, nvml.nvmlDeviceGetUUID(handle), nvml.nvmlDeviceGetName(handle), parent)


def _select(nvml: Any, cards: list[Card], text: str) -> list[Card]:
    chosen: list[Card] = []
    for token in (part.strip() for part in text.split(",")):
        if token.isdigit():
            matches = cards[int(token) : int(token) + 1]
        elif token.startswith("MIG-"):
            instances = [i for card in cards for i in _mig_instances(nvml, card)]
            matches = [i for i in instances if i.uuid.startswith(token)]
        else:
            matches = [card for card in cards if token and card.uuid.startswith(token)]
        if len(matches) != 1:
            break
        chosen += matches
    # CUDA shows nothing at all where a card is named twice.
    return chosen if len({card.uuid for card in chosen}) == len(chosen) else []


def _enter_mig(nvml: Any, cards: list[Card]) -> list[Card]:
    """Replace a card in MIG mode by its first instance; CUDA shows a process one instance only."""
    visible: list[Card] = []
    for card in cards:
        target = next(iter(_mig_instances(nvml, card)), card)
        if target.parent is None or all(seen.parent is None for seen in visible):
            visible.append(target)
    return visible


def _mig_instances(nvml: Any, card: Card) -> list[Card]:
    if card.parent is not None:
        return []
    try:
        current_mode, _pending = nvml.nvmlDeviceGetMigMode(card.handle)
        slots = nvml.nvmlDeviceGetMaxMigDeviceCount(card.handle) if current_mode else 0
    except nvml.NVMLError:
        return []
    instances = []
    for slot in range(slots):
        try:
            handle = nvml.nvmlDeviceGetMigDeviceHandleByIndex(card.handle, slot)
            instances.append(_card(nvml, handle, parent=card.handle))
        except nvml.NVMLError:
            continue  # an empty slot
    return instances


class CardReader:
    """Reads one card again and again, and stops asking for what it will never say."""

    def __init__(self, nvml: Any, card: Card, family: Family):
        self.card = card
        self._nvml, self._family = nvml, family
        self._never: dict[str, str] = {}
        self._failures: dict[str, str] = {}

    def read(self, thorough: bool = True) -> Reading:
        """One reading; `thorough` adds temperature and throttling. Never raises an NVML error."""
        nvml, handle = self._nvml, self.card.handle
        self._failures = {}
        used_bytes = self._ask("used_bytes", lambda: memory_info(nvml, handle).used)
        process_bytes = self._ask("process_bytes", self._own_bytes)
        busy = self._ask(
            "utilisation_percent", lambda: float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)
        )
        watts = self._ask("power_watts", lambda: nvml.nvmlDeviceGetPowerUsage(handle) / 1000)
        celsius = bits = None
        if thorough:
            sensor = nvml.NVML_TEMPERATURE_GPU
            celsius = self._ask(
                "temperature_celsius", lambda: nvml.nvmlDeviceGetTemperature(handle, sensor)
            )
            bits = self._ask(
                "throttle_bits", lambda: nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
            )
        return Reading(used_bytes, process_bytes, busy, watts, celsius, bits, self._failures)

    def energy_joules(self) -> tuple[float | None, str | None]:
        """The energy counter since the driver was loaded, or None and why there is no value."""
        self._failures = {}
        handle = self.card.handle
        read = self._nvml.nvmlDeviceGetTotalEnergyConsumption
        joules = self._ask("energy", lambda: read(handle) / 1000)
        return joules, self._failures.get("energy")

    def _own_bytes(self) -> int | None:
        listed = self._nvml.nvmlDeviceGetComputeRunningProcesses(self.card.handle)
        own = [p.usedGpuMemory for p in listed if p.pid in self._family]
        if not own or None in own:
            self._failures["process_bytes"] = HIDDEN_MEMORY if own else NOT_LISTED
            return None
        return sum(own)

    def _ask(self, field: str, read: Any) -> Any:
        if field in self._never:
            self._failures[field] = self._never[field]
            return None
        try:
            return read()
        except nvml_errors(self._nvml) as error:
            reason = f"NVML: {error}"
            if self.card.parent is not None:
                reason += " (a MIG instance)"
            if type(error).__name__.removeprefix("NVMLError_") in PERMANENT:
                self._never[field] = reason
            self._failures[field] = reason
            return None


class Family:
    """The process ids of this process and its descendants; remembers what it has looked up."""

    def __init__(self, root_pid: int | None = None):
        self._root_pid = os.getpid() if root_pid is None else root_pid
        self._known: dict[int, bool] = {self._root_pid: True}

    def __contains__(self, pid: int) -> bool:
        if pid not in self._known:
            try:
                ancestors = [p.pid for p in psutil.Process(pid).parents()]
            except psutil.Error:
                ancestors = []
            self._known[pid] = self._root_pid in ancestors
        return self._known[pid]


def nvml_errors(nvml: Any) -> tuple[type[Exception], ...]:
    """What an NVML call may raise: its errors, and pynvml's for a driver older than the call."""
    return nvml.NVMLError, getattr(nvml, "NVMLLibraryMismatchError", nvml.NVMLError)


def memory_info(nvml: Any, handle: Any) -> Any:
    """total, used, free in bytes, and reserved where the driver knows the second version."""
    try:
        return nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
    except (nvml.NVMLError_FunctionNotFound, nvml.NVMLError_NotSupported):
        return nvml.nvmlDeviceGetMemoryInfo(handle)
    except nvml.NVMLError_ArgumentVersionMismatch:
        return nvml.nvmlDeviceGetMemoryInfo(handle)
