"""What this machine has, in one screen: cards, memory, disk, hub, 4-bit, and which profile fits.

Not covered: whether a given run fits (studylib.planning.plan).
"""

from __future__ import annotations

import http.client
import logging
import os
import shutil
import urllib.error
import urllib.request
from functools import lru_cache
from typing import Any

from studylib.metering.devices import describe_devices
from studylib.metering.host import host_description

HUB_TIMEOUT_SECONDS = 5.0
TRIED_WIDTHS = (64, 96, 172)


def examine_machine() -> dict[str, Any]:
    """Everything as a JSON-able mapping; each thing that is missing has its reason beside it."""
    devices, reason = describe_devices()
    hub, hub_reason = reach_hub()
    four_bit, four_bit_reason = try_four_bit()
    findings = {
        "gpus": devices,
        "gpus_reason": reason,
        "host": host_description(),
        "disk_free_bytes": shutil.disk_usage(".").free,
        "hub": hub,
        "hub_reason": hub_reason,
        "four_bit": four_bit,
        "four_bit_reason": four_bit_reason,
    }
    findings["profile"], findings["profile_reason"] = choose_profile(devices, (hub, hub_reason))
    return findings


def reach_hub() -> tuple[bool, str]:
    """Whether the hub answers at all, and at which address."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        return False, "HF_HUB_OFFLINE=1 is set"
    try:
        request = urllib.request.Request(endpoint, method="HEAD")
        with urllib.request.urlopen(request, timeout=HUB_TIMEOUT_SECONDS):
            pass
    except urllib.error.HTTPError:
        return True, endpoint  # it answers, if only to say no to this page
    except (OSError, ValueError, http.client.HTTPException) as error:
        return False, f"{endpoint} does not answer ({getattr(error, 'reason', error)})"
    return True, endpoint


def try_four_bit() -> tuple[bool, str]:
    """Quantize matrices of several widths to NF4 where runs would, and hold them to the originals.

    Widths: a multiple of the block, and two whose rows end within one, as kernels go wrong there.
    """
    import torch

    # It announces a kernel that it would have liked; whether 4-bit works is tried below.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.CRITICAL)
    try:
        from studylib.modelling.four_bit import LARGEST_ERROR, round_trip_error

        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        errors = {w: round_trip_error(w, w, torch.float32, device) for w in TRIED_WIDTHS}
    except (ImportError, RuntimeError, OSError) as fault:
        return False, f"bitsandbytes does not work here: {fault}"
    width, error = max(errors.items(), key=lambda item: item[1])
    if not error < LARGEST_ERROR:
        return False, (
            f"bitsandbytes gives wrong values here: {100 * error:.0f} % off at width {width}, "
            "where NF4 loses 9 %"
        )
    widths = ", ".join(map(str, TRIED_WIDTHS))
    return True, f"NF4 on {device}, {100 * error:.1f} % off the originals at widths {widths}"


def choose_profile(
    devices: list[dict[str, Any]], hub: tuple[bool, str] | None = None
) -> tuple[str, str]:
    """(the profile that suits this machine, why); the hub is asked only where there is a card."""
    if not any(device["cuda_ordinal"] is not None for device in devices):
        return "cpu", "there is no GPU"
    answers, reason = hub or reach_hub()
    if answers:
        return "gpu", f"there is a GPU, and the hub answers ({reason})"
    return "systems", f"there is a GPU, but no hub ({reason}): random weights, nothing to download"


@lru_cache(maxsize=1)
def own_profile() -> tuple[str, str]:
    """The same for the machine at hand, asked once a process."""
    return choose_profile(describe_devices()[0])


def cards_here() -> int:
    """How many cards CUDA sees here."""
    return sum(device["cuda_ordinal"] is not None for device in describe_devices()[0])


def format_findings(findings: dict[str, Any]) -> str:
    host = findings["host"]
    gpus = [
        f"{g['name']}, {g['memory_total_bytes'] / 1e9:.1f} GB, driver {g['driver_version']}"
        for g in findings["gpus"]
    ] or [f"none ({findings['gpus_reason']})"]
    yes = {True: "yes", False: "no"}
    rows = [
        *(("GPU", gpu) for gpu in gpus),
        ("CPU", f"{host['cpu_model']}, {host['cores_allowed']} cores"),
        (
            "memory",
            f"{host['memory_available_bytes'] / 1e9:.1f} GB free of "
            f"{host['memory_total_bytes'] / 1e9:.1f} GB",
        ),
        ("disk", f"{findings['disk_free_bytes'] / 1e9:.1f} GB free here"),
        ("hub", f"{yes[findings['hub']]} ({findings['hub_reason']})"),
        ("4-bit", f"{yes[findings['four_bit']]} ({findings['four_bit_reason']})"),
        ("profile", f"{findings['profile']} ({findings['profile_reason']})"),
    ]
    return "\n".join(f"{name:8} {text}" for name, text in rows)
