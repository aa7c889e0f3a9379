"""The meter: memory, time and energy of each stage, sampled beside the work at 20 Hz.

    with Meter() as meter:
        with meter.stage("train"):
            ...
    meter.stages["train"].host_peak_bytes

A thread reads NVML, torch's allocator and the process's size; each stage also gets a sample at its
first and last instant, so a stage shorter than the interval is measured too. A stage whose body
raises is measured like any other: running out of memory is a result. No read error reaches the
work; it ends in the measure's `unavailable` or `incomplete`.

Limits: utilisation is NVML's own average over up to a second, so it means little for a stage
shorter than that. torch's peaks are lost if the work resets them inside a stage (the samples then
stand in). One process is measured; other ranks of a distributed run show in the cards' sums only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import psutil

from studylib.core.errors import StudyError
from studylib.core.measure import StageMeasure
from studylib.metering import allocator, host
from studylib.metering.nvml import CardReader, Family, list_cards, open_nvml
from studylib.metering.tally import Sample, SampleTrace, StageTally, combine, name_throttle_bits

if TYPE_CHECKING:
    import pandas

SLOWEST_INTERVAL_SECONDS = 0.1
# Temperature and throttling change slowly: every 20th sample, a second apart, is enough.
THOROUGH_EVERY = 20
TRACE_ROWS = 20_000
# A hung driver may hold the sampling thread for good; the run's result must not wait for it.
JOIN_SECONDS = 10


class Meter:
    """Measures stages while the `with` block runs.

    `nvml` is pynvml, a fake, or None for pynvml if there is one. `devices` are CUDA ordinals: None
    for all that CUDA_VISIBLE_DEVICES leaves, [] for none (a run on the CPU). Raises StudyError
    for an interval over 0.1 s and, on entry, for a device that does not exist.
    """

    def __init__(
        self,
        interval_seconds: float = 0.05,
        nvml: Any = None,
        devices: Sequence[int] | None = None,
    ):
        if not 0 < interval_seconds <= SLOWEST_INTERVAL_SECONDS:
            raise StudyError(
                f"interval_seconds={interval_seconds}",
                f"the meter samples every {SLOWEST_INTERVAL_SECONDS} s or more often",
                "Leave the default of 0.05",
            )
        self._interval_seconds = interval_seconds
        self._wanted = (nvml, devices)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._process = psutil.Process()
        self._nvml: Any = None
        self._readers: list[CardReader] = []
        self._no_nvml: str | None = None
        self._throttle_names: dict[int, str] = {}
        self._done: dict[str, StageMeasure] = {}
        self._open: _OpenStage | None = None
        self._trace = SampleTrace(TRACE_ROWS)
        self._cpu_seconds = self._start_seconds = 0.0
        self._end_seconds: float | None = None

    def __enter__(self) -> Meter:
        if self._start_seconds:
            raise RuntimeError("a meter measures one run: make a new one")
        nvml, devices = self._wanted
        self._nvml, self._no_nvml = open_nvml(nvml)
        if self._nvml is not None:
            try:
                cards, self._no_nvml = list_cards(self._nvml, devices)
            except StudyError:
                self._nvml.nvmlShutdown()
                raise
            family = Family()
            self._readers = [CardReader(self._nvml, card, family) for card in cards]
            self._throttle_names = name_throttle_bits(self._nvml)
        self._start_seconds = time.perf_counter()
        self._thread = threading.Thread(target=self._run, name="meter", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(JOIN_SECONDS)
        self._end_seconds = time.perf_counter()
        if self._nvml is not None:
            with suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the body under `name`; entered again, the measures are merged."""
        if self._thread is None or self._end_seconds is not None:
            raise RuntimeError("the meter is not running: use stages inside `with meter:`")
        if self._open is not None:
            raise RuntimeError(f"stage {self._open.name} is still open: stages do not nest")
        allocator.release_leftovers()  # before the first sample, and off the stage's clock
        with self._lock:
            self._open = _OpenStage(name, self._readers, self._no_nvml)
            self._take(thorough=True)
            self._open.start()
        try:
            yield
        finally:
            end_seconds = time.perf_counter()
            with self._lock:
                spent = self._open.spent_joules()
                self._take(thorough=True)
                self._done[name] = self._measure_open(end_seconds, spent)
                self._open = None

    @property
    def stages(self) -> dict[str, StageMeasure]:
        """Each stage so far, in order of first entry; an open stage counts up to this instant."""
        with self._lock:
            measures = dict(self._done)
            if self._open is not None:
                self._take(thorough=False)
                now_seconds, spent = time.perf_counter(), self._open.spent_joules()
                measures[self._open.name] = self._measure_open(now_seconds, spent)
            return measures

    def samples(self) -> pandas.DataFrame:
        """The samples as a table, one row an instant, missing values null.

        A long run is thinned to 20,000 rows at most: neighbours of one stage become one row with
        their larger memory and their mean power and utilisation. Peaks are from all samples.
        """
        import pandas

        with self._lock:
            rows = list(self._trace.rows)
        table = pandas.DataFrame(rows, columns=list(Sample._fields))
        kinds = {n: "Int64" if n.endswith("_bytes") else "Float64" for n in Sample._fields}
        return table.astype({**kinds, "stage": "string"})

    @property
    def overhead_share(self) -> float:
        """CPU seconds spent on sampling by second of the run's wall clock: 0.01 is one per cent."""
        end_seconds = self._end_seconds or time.perf_counter()
        return self._cpu_seconds / max(end_seconds - self._start_seconds, 1e-9)

    def _measure_open(
        self, end_seconds: float, spent_joules: tuple[float | None, str | None]
    ) -> StageMeasure:
        assert self._open is not None
        measure = self._open.measure(end_seconds, spent_joules, self._throttle_names)
        earlier = self._done.get(self._open.name)
        return measure if earlier is None else earlier.merge(measure)

    def _run(self) -> None:
        tick = 0
        while not self._stop.is_set():
            next_seconds = time.perf_counter() + self._interval_seconds
            with self._lock:
                self._take(thorough=tick % THOROUGH_EVERY == 0)
            tick += 1
            self._stop.wait(max(0.0, next_seconds - time.perf_counter()))

    def _take(self, thorough: bool) -> None:
        """One sample into the trace and the open stage; the caller holds the lock."""
        cpu_start_seconds = time.thread_time()
        cards = [reader.read(thorough) for reader in self._readers]
        now_seconds = time.perf_counter()
        sample = combine(
            now_seconds - self._start_seconds,
            None if self._open is None else self._open.name,
            host.read_resident_bytes(self._process),
            allocator.read_allocated_bytes(),
            cards,
        )
        self._trace.add(sample)
        spent_seconds = time.thread_time() - cpu_start_seconds
        self._cpu_seconds += spent_seconds
        if self._open is not None:
            self._open.tally.add(now_seconds, sample, cards, spent_seconds)


class _OpenStage:
    """The stage that is being measured: its tally, and the counters as they stood at its start."""

    def __init__(self, name: str, readers: list[CardReader], no_nvml: str | None):
        self.name = name
        self.tally = StageTally(name, [reader.card.uuid for reader in readers], no_nvml)
        self._readers = readers
        self._start_joules: list[float | None] = []
        self._kernel_peak = False
        self._start_seconds = time.perf_counter()

    def start(self) -> None:
        """Set the peaks back, read the energy counters, start the clock: the clock last."""
        allocator.reset_peaks()
        self._kernel_peak = host.reset_peak_bytes()
        self._start_joules = [reader.energy_joules()[0] for reader in self._readers]
        self._start_seconds = time.perf_counter()

    def measure(
        self,
        end_seconds: float,
        spent_joules: tuple[float | None, str | None],
        throttle_names: dict[int, str],
    ) -> StageMeasure:
        """The tally's figures up to `end_seconds` on the clock of time.perf_counter."""
        return self.tally.measure(
            end_seconds - self._start_seconds,
            host.read_peak_bytes() if self._kernel_peak else None,
            allocator.read_peaks(),
            spent_joules,
            throttle_names,
        )

    def spent_joules(self) -> tuple[float | None, str | None]:
        """The counters' joules since the start over all cards, or None and the reason."""
        spent_joules = 0.0
        for reader, before in zip(self._readers, self._start_joules, strict=True):
            now, reason = reader.energy_joules()
            if now is None or before is None or now < before:
                return None, reason or "the energy counter started anew"
            spent_joules += now - before
        return (spent_joules, None) if self._readers else (None, "no card")
