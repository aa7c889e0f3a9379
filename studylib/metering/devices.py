"""What NVIDIA cards there are, in words for a person and a record, and whether they are free.

A card that others use gives wrong memory, wrong time and somebody else's out-of-memory error, so
a measured run refuses it before it starts.

Not covered: cards of other vendors; other users who start after the check (the samples show them
as NVML memory that neither this process nor the driver's reserve explains).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from functools import partial
from typing import Any

from studylib.core.errors import StudyError
from studylib.metering.nvml import (
    Card,
    Family,
    all_cards,
    list_cards,
    memory_info,
    nvml_errors,
    open_nvml,
)

# Room for a desktop's window system; a CUDA process with any tensors needs more.
IDLE_BYTES = 512 * 2**20


def refuse_busy_devices(
    nvml: Any = None,
    devices: Sequence[int] | None = None,
    allowed_bytes: int = IDLE_BYTES,
    environ: Mapping[str, str] = os.environ,
) -> None:
    """Raise StudyError when others hold more than `allowed_bytes` on a card that CUDA will use.

    Memory of this process and its descendants does not count. Does nothing without NVML.
    """
    nvml, _reason = open_nvml(nvml)
    if nvml is None:
        return
    try:
        cards, _reason = list_cards(nvml, devices, environ)
        family = Family()
        for card in cards:
            _refuse_busy_card(nvml, card, family, allowed_bytes)
    finally:
        nvml.nvmlShutdown()


def _refuse_busy_card(nvml: Any, card: Card, family: Family, allowed_bytes: int) -> None:
    bytes_by_pid = _list_processes(nvml, card.handle)
    others = {pid: held for pid, held in bytes_by_pid.items() if pid not in family}
    own_bytes = sum(held or 0 for pid, held in bytes_by_pid.items() if pid in family)
    used_bytes = _ask(nvml, lambda: memory_info(nvml, card.handle).used) or 0
    foreign_bytes = max(used_bytes - own_bytes, sum(held or 0 for held in others.values()))
    if foreign_bytes <= allowed_bytes:
        return
    named = [
        f"PID {pid} ({'memory not reported' if held is None else _gib(held)})"
        for pid, held in sorted(others.items())
    ]
    raise StudyError(
        f"{card.name} ({card.uuid})",
        f"a card is measured only when it is free, and others hold {_gib(foreign_bytes)} on it: "
        + (", ".join(named) or "no PID visible (another container or user)"),
        "Stop them, choose another card with CUDA_VISIBLE_DEVICES, or allow more use by others "
        f"than {_gib(allowed_bytes)}",
    )


def _gib(count_bytes: int) -> str:
    return f"{count_bytes / 2**30:.2f} GiB"


def _list_processes(nvml: Any, handle: Any) -> dict[int, int | None]:
    """Process id to bytes on the card; a process that both computes and draws is listed twice."""
    held: dict[int, int | None] = {}
    for call in (
        nvml.nvmlDeviceGetComputeRunningProcesses,
        nvml.nvmlDeviceGetGraphicsRunningProcesses,
    ):
        for process in _ask(nvml, partial(call, handle)) or []:
            known = held.get(process.pid)
            seen = [b for b in (known, process.usedGpuMemory) if b is not None]
            held[process.pid] = max(seen, default=None)
    return held


def visible_cards(nvml: Any = None, environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The UUIDs of the cards that CUDA shows this process, in its order; () without NVML."""
    nvml, _reason = open_nvml(nvml)
    if nvml is None:
        return ()
    try:
        return tuple(card.uuid for card in list_cards(nvml, None, environ)[0])
    finally:
        nvml.nvmlShutdown()


def hold_cards(
    count: int, nvml: Any = None, environ: MutableMapping[str, str] = os.environ
) -> tuple[str, ...]:
    """Leave this process the first `count` of the cards that it sees, before CUDA has started.

    With more in sight a training would spread over them, and the meter would add them up.
    """
    cards = visible_cards(nvml, environ)
    if len(cards) > count:
        environ["CUDA_VISIBLE_DEVICES"] = ",".join(cards[:count])
    return cards[:count]


def describe_devices(
    nvml: Any = None, environ: Mapping[str, str] = os.environ
) -> tuple[list[dict], str | None]:
    """Each card as a JSON-able dict, and the reason where there is none (or none that CUDA sees).

    `cuda_ordinal` is torch's number, null for a card that CUDA_VISIBLE_DEVICES hides. Values that
    the driver does not give are null.
    """
    nvml, reason = open_nvml(nvml)
    if nvml is None:
        return [], reason
    try:
        try:
            visible, reason = list_cards(nvml, None, environ)
        except StudyError as error:
            visible, reason = [], str(error)
        ordinals = {card.uuid: ordinal for ordinal, card in enumerate(visible)}
        hidden = [card for card in all_cards(nvml) if card.uuid not in ordinals]
        return [_describe(nvml, c, ordinals.get(c.uuid)) for c in visible + hidden], reason
    finally:
        nvml.nvmlShutdown()


def shows_no_card() -> bool:
    """Whether NVML shows no card at all; where torch is imported already, only torch can say."""
    return "torch" not in sys.modules and not describe_devices()[0]


def _describe(nvml: Any, card: Card, ordinal: int | None) -> dict:
    memory = _ask(nvml, lambda: memory_info(nvml, card.handle))
    whole = card.handle if card.parent is None else card.parent
    cuda = _ask(nvml, nvml.nvmlSystemGetCudaDriverVersion)
    limit_milliwatts = _ask(nvml, lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(whole))
    mig = _ask(nvml, lambda: nvml.nvmlDeviceGetMigMode(whole))
    return {
        "cuda_ordinal": ordinal,
        "name": card.name,
        "uuid": card.uuid,
        "memory_total_bytes": None if memory is None else memory.total,
        "memory_used_bytes": None if memory is None else memory.used,
        "memory_reserved_bytes": getattr(memory, "reserved", None),
        "driver_version": _ask(nvml, nvml.nvmlSystemGetDriverVersion),
        "cuda_version": None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}",
        "power_limit_watts": None if limit_milliwatts is None else limit_milliwatts / 1000,
        "mig_mode": None if mig is None else bool(mig[0]),
        "mig_instance": card.parent is not None,
    }


def _ask(nvml: Any, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except nvml_errors(nvml):
        return None
