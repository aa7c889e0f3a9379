"""Which card this is, and what it gives at most.

Not covered: measuring its ceilings (studylib.checking.card_ceiling), whether its figures can be
trusted (`study gpu-check`).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

import psutil

from studylib.core.errors import StudyError
from studylib.core.places import python_path
from studylib.metering.devices import describe_devices, refuse_busy_devices
from studylib.metering.environment import package_versions
from studylib.metering.host import host_description
from studylib.schema.card_study import CardFacts, Ceiling

CEILING_SECONDS = 60.0  # more than measuring it can take
FREE_SECONDS, POLL_SECONDS = 5.0, 0.1


def card_slug(name: str) -> str:
    """h200 of NVIDIA H200."""
    words = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return re.sub(r"^(nvidia-)?(geforce-|tesla-|quadro-)?", "", words) or "card"


def wait_until_free() -> None:
    """Raise where others use the card; what an earlier call started may need a moment to end."""
    end = time.monotonic() + FREE_SECONDS
    while True:
        try:
            return refuse_busy_devices(devices=[0])
        except StudyError:
            if time.monotonic() > end:
                raise
            time.sleep(POLL_SECONDS)


def read_card_facts() -> CardFacts:
    """The first card that CUDA sees, by NVML; without one the host's processor and memory."""
    torch = package_versions(["torch"])["torch"]
    seen = [card for card in describe_devices()[0] if card["cuda_ordinal"] == 0]
    if not seen:
        host = host_description()
        limit = host["memory_limit_bytes"] or psutil.virtual_memory().total
        return CardFacts(name=f"CPU {host['cpu_model']}", memory_bytes=limit, torch=torch)
    card = seen[0]
    return CardFacts(
        name=card["name"], uuid=card["uuid"], memory_bytes=card["memory_total_bytes"] or 0,
        driver=card["driver_version"], cuda=card["cuda_version"], torch=torch,
    )  # fmt: skip


def with_ceiling(card: CardFacts) -> CardFacts:
    """The card with its ceilings, measured by a process that holds nothing on it afterwards."""
    environ = {**os.environ, "PYTHONPATH": python_path()}
    if card.uuid is not None:
        environ["CUDA_VISIBLE_DEVICES"] = card.uuid
    command = [sys.executable, "-m", "studylib.checking.card_ceiling"]
    try:
        done = subprocess.run(
            command, env=environ, capture_output=True, text=True, check=True,
            timeout=CEILING_SECONDS,
        )  # fmt: skip
        ceiling = Ceiling.model_validate_json(done.stdout.strip().splitlines()[-1])
    except subprocess.TimeoutExpired:
        reason = f"it did not end within {CEILING_SECONDS:.0f} s"
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["it said nothing"])[-1]
    else:
        return card.model_copy(update={"ceiling": ceiling, "ceiling_reason": None})
    return card.model_copy(update={"ceiling_reason": reason})
