"""From samples to figures: the trace of a run and the tally of one entry into a stage.

Every sample counts towards peaks and means at once, so that a run of days needs no more memory for
its meter than a run of minutes. A sum over cards exists only for an instant at which every card
answered: a partial sum would look like a smaller need.

Not covered: reading anything (meter, nvml, host, allocator do).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from studylib.core.measure import StageMeasure
from studylib.metering.nvml import NOT_LISTED, Reading

# Integrated power stands for a stage's energy only if good samples span nearly all of it.
LEAST_POWER_COVER = 0.9
THROTTLE_PREFIX = "nvmlClocksThrottleReason"
# Bits that say "idle" or "as configured", not "held back".
NOT_THROTTLING = ("All", "None", "GpuIdle", "ApplicationsClocksSetting", "UserDefinedClocks")
# What is read from a card, and the figure that it becomes.
FIGURE_OF = {
    "used_bytes": "nvml_peak_bytes",
    "process_bytes": "nvml_process_peak_bytes",
    "utilisation_percent": "mean_utilisation_percent",
    "power_watts": "mean_power_watts",
    "temperature_celsius": "peak_temperature_celsius",
    "throttle_bits": "throttle_reasons",
}


class Sample(NamedTuple):
    """Everything at one instant; None where it could not be read."""

    t_seconds: float
    stage: str | None
    host_bytes: int | None = None
    nvml_used_bytes: int | None = None
    nvml_process_bytes: int | None = None
    power_watts: float | None = None
    utilisation_percent: float | None = None
    torch_allocated_bytes: int | None = None


def combine(
    t_seconds: float,
    stage: str | None,
    host_bytes: int | None,
    torch_bytes: int | None,
    cards: Iterable[Reading],
) -> Sample:
    """One sample from the cards' readings: bytes and watts are sums, utilisation is the mean."""
    cards = list(cards)
    busy = _sum_known([card.utilisation_percent for card in cards])
    return Sample(
        t_seconds,
        stage,
        host_bytes,
        _sum_known([card.used_bytes for card in cards]),
        _sum_process_bytes(cards),
        _sum_known([card.power_watts for card in cards]),
        None if busy is None else busy / len(cards),
        torch_bytes,
    )


def _sum_known(values: list) -> Any:
    return None if not values or None in values else sum(values)


def _sum_process_bytes(cards: list[Reading]) -> int | None:
    """A process that one card lists holds nothing on a card that does not list it."""
    values = [card.process_bytes for card in cards]
    if any(value is not None for value in values):
        absent = [card.failures.get("process_bytes") == NOT_LISTED for card in cards]
        values = [0 if gone else value for value, gone in zip(values, absent, strict=True)]
    return _sum_known(values)


class SampleTrace:
    """The samples for a picture over time, thinned to `limit` rows at most."""

    def __init__(self, limit: int):
        self.rows: list[Sample] = []
        self._limit, self._stride, self._filled = limit, 1, 0

    def add(self, sample: Sample) -> None:
        """Append, or fold into the last row once a long run has made rows wider."""
        if self._filled and self._filled < self._stride and self.rows[-1].stage == sample.stage:
            self.rows[-1] = _fold(self.rows[-1], sample, self._filled)
            self._filled += 1
            return
        self.rows.append(sample)
        self._filled = 1
        if len(self.rows) > self._limit:
            self._thin()

    def _thin(self) -> None:
        rows: list[Sample] = []
        folded = False
        for row in self.rows:
            if rows and rows[-1].stage == row.stage and not folded:
                rows[-1], folded = _fold(rows[-1], row, 1), True
            else:
                rows.append(row)
                folded = False
        self.rows, self._stride, self._filled = rows, self._stride * 2, 0


def _fold(row: Sample, new: Sample, weight: int) -> Sample:
    """The larger memory, and the mean power and utilisation of `weight` samples and a new one."""
    values: dict[str, Any] = {}
    for field in Sample._fields[2:]:
        known = [v for v in (getattr(row, field), getattr(new, field)) if v is not None]
        if field.endswith("_bytes") or len(known) < 2:
            values[field] = max(known, default=None)
        else:
            values[field] = (known[0] * weight + known[1]) / (weight + 1)
    return row._replace(**values)


class StageTally:
    """One entry into a stage: takes samples, gives the measure at any instant."""

    def __init__(self, name: str, card_uuids: list[str], no_nvml: str | None):
        self.name = name
        self._uuids, self._no_nvml = card_uuids, no_nvml
        self._samples = 0
        self._cpu_seconds = self._gap_seconds = 0.0
        self._last_seconds: float | None = None
        self._peaks: dict[str, int] = {}
        self._peaks_by_device: dict[str, int] = {}
        self._busy_sum, self._busy_count = 0.0, 0
        self._power: list[float] = []  # the last good sample: seconds, watts
        self._joules = self._powered_seconds = 0.0
        self._throttle_bits: int | None = None
        self._failures: Counter[tuple[str, str]] = Counter()

    def add(self, t_seconds: float, sample: Sample, cards: list[Reading], cpu: float) -> None:
        """Count one sample, its cards' readings, and the CPU seconds that it cost."""
        if self._last_seconds is not None:
            self._gap_seconds = max(self._gap_seconds, t_seconds - self._last_seconds)
        self._last_seconds = t_seconds
        self._samples += 1
        self._cpu_seconds += cpu
        for field in ("host", "nvml_used", "nvml_process", "torch_allocated"):
            self._raise_peak(field, getattr(sample, f"{field}_bytes"))
        if sample.utilisation_percent is not None:
            self._busy_sum += sample.utilisation_percent
            self._busy_count += 1
        if sample.power_watts is not None:
            self._integrate(t_seconds, sample.power_watts)
        for uuid, card in zip(self._uuids, cards, strict=True):
            self._add_card(uuid, card)

    def _raise_peak(self, field: str, value: int | None) -> None:
        if value is not None:
            self._peaks[field] = max(value, self._peaks.get(field, 0))

    def _integrate(self, t_seconds: float, watts: float) -> None:
        """Trapezoids from one good sample to the next."""
        if self._power:
            last_seconds, last_watts = self._power
            step_seconds = t_seconds - last_seconds
            self._joules += step_seconds * (watts + last_watts) / 2
            self._powered_seconds += step_seconds
        self._power = [t_seconds, watts]

    def _add_card(self, uuid: str, card: Reading) -> None:
        self._raise_peak("temperature", card.temperature_celsius)
        if card.used_bytes is not None:
            peak_bytes = self._peaks_by_device.get(uuid, 0)
            self._peaks_by_device[uuid] = max(peak_bytes, card.used_bytes)
        if card.throttle_bits is not None:
            self._throttle_bits = (self._throttle_bits or 0) | card.throttle_bits
        for field, reason in card.failures.items():
            named = f"{uuid}: {reason}" if len(self._uuids) > 1 else reason
            self._failures[FIGURE_OF[field], named] += 1

    def measure(
        self,
        wall_seconds: float,
        kernel_peak_bytes: int | None,
        torch_peaks: tuple[int | None, int | None, str | None],
        counter_joules: tuple[float | None, str | None],
        throttle_names: dict[int, str],
    ) -> StageMeasure:
        """The figures so far; `counter_joules` is (joules, None) or (None, why there are none)."""
        peaks, busy = self._peaks, self._busy_count
        allocated_bytes, reserved_bytes, no_torch = torch_peaks
        figures: dict[str, Any] = {
            "host_peak_bytes": peaks.get("host"),
            "nvml_peak_bytes": peaks.get("nvml_used"),
            "nvml_process_peak_bytes": peaks.get("nvml_process"),
            "torch_peak_allocated_bytes": allocated_bytes,
            "torch_peak_reserved_bytes": reserved_bytes,
            "mean_utilisation_percent": self._busy_sum / busy if busy else None,
            "peak_temperature_celsius": peaks.get("temperature"),
            "throttle_reasons": self._name_throttling(throttle_names),
            **self._energy(wall_seconds, counter_joules[0]),
        }
        if kernel_peak_bytes is not None:
            figures["host_peak_bytes"] = max(kernel_peak_bytes, peaks.get("host", 0))
        if allocated_bytes is not None:
            figures["torch_peak_allocated_bytes"] = max(
                allocated_bytes, peaks.get("torch_allocated", 0)
            )
        reasons = self._reasons(figures, counter_joules[1], no_torch)
        source: Literal["kernel", "sampled"] = "sampled" if kernel_peak_bytes is None else "kernel"
        return StageMeasure(
            wall_seconds=wall_seconds,
            samples=self._samples,
            longest_gap_seconds=self._gap_seconds,
            sampling_cpu_seconds=self._cpu_seconds,
            host_peak_source=None if figures["host_peak_bytes"] is None else source,
            nvml_peak_bytes_by_device=dict(self._peaks_by_device),
            unavailable={f: why for f, why in reasons.items() if figures[f] is None},
            incomplete=self._gaps(figures),
            **figures,
        )

    def _energy(self, wall_seconds: float, counter_joules: float | None) -> dict[str, Any]:
        joules, source = counter_joules, "counter"
        if joules is None and self._powered_seconds >= LEAST_POWER_COVER * wall_seconds > 0:
            # Scaled to the stage's clock: the outermost samples lie just outside it.
            joules, source = self._joules * wall_seconds / self._powered_seconds, "power"
        if joules is None:
            return {"energy_joules": None, "energy_source": None, "mean_power_watts": None}
        mean_watts = joules / wall_seconds if wall_seconds > 0 else None
        return {"energy_joules": joules, "energy_source": source, "mean_power_watts": mean_watts}

    def _reasons(
        self, figures: dict[str, Any], no_counter: str | None, no_torch: str | None
    ) -> dict[str, str]:
        """Why each figure would be null, were it null."""
        reasons = {figure: why for (figure, why), _count in reversed(self._failures.most_common())}
        power = reasons.get("mean_power_watts", "too few power samples")
        reasons["energy_joules"] = reasons["mean_power_watts"] = f"{power}; counter: {no_counter}"
        if self._no_nvml is not None:
            reasons = dict.fromkeys((*FIGURE_OF.values(), "energy_joules"), self._no_nvml)
        reasons["host_peak_bytes"] = "the system does not give this process's size"
        if no_torch is not None:
            reasons["torch_peak_allocated_bytes"] = no_torch
            reasons["torch_peak_reserved_bytes"] = no_torch
        return reasons

    def _gaps(self, figures: dict[str, Any]) -> dict[str, str]:
        """What was read with gaps. A process not yet on the card is no gap; nor is power where
        the energy counter stands in for it."""
        gaps = {}
        for (figure, why), count in self._failures.items():
            if figures[figure] is None or why.endswith(NOT_LISTED):
                continue
            if figure != "mean_power_watts" or figures["energy_source"] == "power":
                gaps[figure] = f"{why} (in {count} of {self._samples} samples)"
        return gaps

    def _name_throttling(self, names: dict[int, str]) -> tuple[str, ...] | None:
        if self._throttle_bits is None:
            return None
        return tuple(sorted(name for bit, name in names.items() if bit & self._throttle_bits))


def name_throttle_bits(nvml: Any) -> dict[int, str]:
    """Bit to name for every reason that holds a card's clocks back, as the library names them."""
    names = {}
    for constant in dir(nvml):
        name = constant.removeprefix(THROTTLE_PREFIX)
        if name != constant and name not in NOT_THROTTLING:
            names[getattr(nvml, constant)] = name
    return names
