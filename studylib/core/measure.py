"""What one stage of a run took: memory, time, energy, in a form that a record can hold.

A figure that could not be read is null and `unavailable` says why; a figure that was read with
gaps stays, and `incomplete` says what was missing. Both survive merging, so that a run that was
killed and resumed reports one honest sum.

Not covered: how the figures are read (meter, nvml, host).
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt

PEAK_FIELDS = (
    "nvml_peak_bytes",
    "nvml_process_peak_bytes",
    "torch_peak_allocated_bytes",
    "torch_peak_reserved_bytes",
    "live_tensor_peak_bytes",
    "peak_temperature_celsius",
)


class StageMeasure(BaseModel):
    """One stage's figures. Bytes are bytes (not GB), seconds are wall clock, joules are all cards'.

    `nvml_peak_bytes` is the largest sum over the cards at one instant; the peaks by card, keyed by
    UUID, may come from different instants and so add up to more. `torch_*` are the allocator's own
    peaks, summed over cards. `host_peak_source` is "kernel" (exact) or "sampled" (the largest
    sample, a lower bound). `live_tensor_peak_bytes` is left for the stage that counts its own
    tensors where there is no card; the meter leaves it null. `parts` counts how often the stage
    was entered, over all processes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    wall_seconds: NonNegativeFloat
    parts: NonNegativeInt = 1
    samples: NonNegativeInt = 0
    longest_gap_seconds: NonNegativeFloat = 0.0
    sampling_cpu_seconds: NonNegativeFloat = 0.0
    host_peak_bytes: NonNegativeInt | None = None
    host_peak_source: Literal["kernel", "sampled"] | None = None
    nvml_peak_bytes: NonNegativeInt | None = None
    nvml_peak_bytes_by_device: dict[str, NonNegativeInt] = {}
    nvml_process_peak_bytes: NonNegativeInt | None = None
    torch_peak_allocated_bytes: NonNegativeInt | None = None
    torch_peak_reserved_bytes: NonNegativeInt | None = None
    live_tensor_peak_bytes: NonNegativeInt | None = None
    energy_joules: NonNegativeFloat | None = None
    energy_source: Literal["counter", "power", "mixed"] | None = None
    mean_power_watts: NonNegativeFloat | None = None
    mean_utilisation_percent: NonNegativeFloat | None = None
    peak_temperature_celsius: NonNegativeInt | None = None
    throttle_reasons: tuple[str, ...] | None = None
    unavailable: dict[str, str] = {}
    incomplete: dict[str, str] = {}

    def merge(self, other: StageMeasure) -> StageMeasure:
        """This part and another of the same stage as one: maxima of peaks, sums of seconds, joules.

        A sum with an unknown part is unknown (null, with that part's reason). A peak with an
        unknown part is the known part's, a lower bound, and `incomplete` says so.
        """
        values: dict = {
            "wall_seconds": self.wall_seconds + other.wall_seconds,
            "parts": self.parts + other.parts,
            "samples": self.samples + other.samples,
            "longest_gap_seconds": max(self.longest_gap_seconds, other.longest_gap_seconds),
            "sampling_cpu_seconds": self.sampling_cpu_seconds + other.sampling_cpu_seconds,
            "nvml_peak_bytes_by_device": _merge_devices(self, other),
            "incomplete": {**other.incomplete, **self.incomplete},
            **_merge_host(self, other),
            **_merge_energy(self, other),
        }
        if self.throttle_reasons is not None and other.throttle_reasons is not None:
            values["throttle_reasons"] = tuple(
                sorted({*self.throttle_reasons, *other.throttle_reasons})
            )
        unknown = {**other.unavailable, **self.unavailable}
        for field in PEAK_FIELDS:
            known = [v for v in (getattr(self, field), getattr(other, field)) if v is not None]
            values[field] = max(known, default=None)
            if known and field in unknown:
                values["incomplete"][field] = f"unknown in one part: {unknown[field]}"
        values["unavailable"] = {f: why for f, why in unknown.items() if values.get(f) is None}
        return StageMeasure(**values)


def _merge_devices(a: StageMeasure, b: StageMeasure) -> dict[str, int]:
    peaks = dict(a.nvml_peak_bytes_by_device)
    for uuid, peak_bytes in b.nvml_peak_bytes_by_device.items():
        peaks[uuid] = max(peaks.get(uuid, 0), peak_bytes)
    return peaks


def _merge_host(a: StageMeasure, b: StageMeasure) -> dict:
    parts = [m for m in (a, b) if m.host_peak_bytes is not None]
    if not parts:
        return {}
    exact = all(m.host_peak_source == "kernel" for m in (a, b))
    return {
        "host_peak_bytes": max(m.host_peak_bytes for m in parts),  # type: ignore[type-var]
        "host_peak_source": "kernel" if exact else "sampled",
    }


def _merge_energy(a: StageMeasure, b: StageMeasure) -> dict:
    values: dict = {}
    wall_seconds = a.wall_seconds + b.wall_seconds
    if a.energy_joules is not None and b.energy_joules is not None:
        values["energy_joules"] = a.energy_joules + b.energy_joules
        same = a.energy_source == b.energy_source
        values["energy_source"] = a.energy_source if same else "mixed"
        if wall_seconds > 0:
            values["mean_power_watts"] = values["energy_joules"] / wall_seconds
    busy = (a.mean_utilisation_percent, b.mean_utilisation_percent)
    if busy[0] is not None and busy[1] is not None and wall_seconds > 0:
        weighted = busy[0] * a.wall_seconds + busy[1] * b.wall_seconds
        values["mean_utilisation_percent"] = weighted / wall_seconds
    return values
