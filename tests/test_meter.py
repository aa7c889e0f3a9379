"""The meter sees what a stage takes, says why where it cannot, and never harms the work."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
import threading
import time
from itertools import pairwise
from types import SimpleNamespace

import fake_nvml
import numpy as np
import pynvml
import pytest
from fake_nvml import GIB, FakeCard, FakeNvml, make_mig_instance, refuse
from waiting import wait_for

from studylib.core.errors import StudyError
from studylib.core.measure import StageMeasure
from studylib.metering import host
from studylib.metering import meter as meter_module
from studylib.metering.devices import describe_devices, refuse_busy_devices
from studylib.metering.meter import Meter
from studylib.metering.nvml import Family, Reading, list_cards
from studylib.metering.tally import Sample, SampleTrace, StageTally, combine

MIB = 2**20
MILLIJOULES = 1e-4  # the counter's steps, as a share of the joules here
NO_TORCH = (None, None, "no torch")


@pytest.fixture(autouse=True)
def no_cuda_choice(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)


class Clock:
    """Seconds pass where a test lets them pass, so that no figure hangs on how busy a machine is.

    The sampling thread goes on in real time beside it.
    """

    def __init__(self) -> None:
        self.now_seconds = 100.0

    def perf_counter(self) -> float:
        return self.now_seconds

    thread_time = staticmethod(time.thread_time)

    def sleep(self, seconds: float) -> None:
        self.now_seconds += seconds


@pytest.fixture(autouse=True)
def clock(monkeypatch) -> Clock:
    """What the meter and the fake's energy counter take for the time."""
    clock = Clock()
    monkeypatch.setattr(meter_module, "time", clock)
    monkeypatch.setattr(fake_nvml, "time", clock)
    return clock


@pytest.fixture
def thread_at_rest(monkeypatch) -> None:
    """No sample but those that a stage's start, its end and `stages` take themselves."""
    monkeypatch.setattr(Meter, "_run", lambda meter: meter._stop.wait())


def measure_one(nvml, seconds=0.2, **options) -> StageMeasure:
    with Meter(nvml=nvml, **options) as meter, meter.stage("train"):
        meter_module.time.sleep(seconds)
    return meter.stages["train"]


# The fake


def test_the_fake_has_the_names_and_parameters_of_the_library():
    calls = [n for n in vars(FakeNvml) if n.startswith("nvml")]
    assert len(calls) > 15
    for call in calls:
        real = list(inspect.signature(getattr(pynvml, call)).parameters)
        assert list(inspect.signature(getattr(FakeNvml, call)).parameters)[1:] == real, call


# All figures of one card


def test_every_figure_of_a_card_is_measured():
    held = pynvml.nvmlClocksThrottleReasonSwPowerCap | pynvml.nvmlClocksThrottleReasonGpuIdle
    card = FakeCard(processes=[(os.getpid(), GIB), (1, 3 * GIB)], throttle_bits=held)
    fake = FakeNvml(card)
    measure = measure_one(fake)
    assert measure.nvml_peak_bytes == 2 * GIB
    assert measure.nvml_peak_bytes_by_device == {"GPU-aaaa0000": 2 * GIB}
    assert measure.nvml_process_peak_bytes == GIB
    assert measure.mean_utilisation_percent == 50
    assert measure.peak_temperature_celsius == 60
    assert measure.throttle_reasons == ("SwPowerCap",)
    assert measure.wall_seconds == pytest.approx(0.2)
    assert not set(measure.unavailable) - {
        "torch_peak_allocated_bytes",
        "torch_peak_reserved_bytes",
    }
    assert measure.incomplete == {}
    assert fake.started == 0


def test_energy_is_the_counters_where_there_is_one():
    measure = measure_one(FakeNvml(FakeCard(watts=200, counter_watts=300)))
    assert measure.energy_source == "counter"
    assert measure.energy_joules == pytest.approx(300 * 0.2, rel=MILLIJOULES)
    assert measure.mean_power_watts == pytest.approx(300, rel=MILLIJOULES)


def test_energy_is_integrated_power_where_there_is_no_counter():
    measure = measure_one(FakeNvml(FakeCard(watts=200, counter_watts=None)))
    assert measure.energy_source == "power"
    assert measure.energy_joules == pytest.approx(200 * 0.2)
    assert measure.mean_power_watts == pytest.approx(200)


def test_integration_follows_power_that_rises():
    tally = StageTally("train", ["a"], None)
    for t_seconds, watts in ((0.0, 100.0), (1.0, 300.0), (3.0, 300.0)):
        reading = Reading(1, 1, 1.0, watts, None, None, {})
        tally.add(t_seconds, combine(t_seconds, "train", 1, None, [reading]), [reading], 0.0)
    measure = tally.measure(3.0, None, NO_TORCH, (None, "no counter"), {})
    assert measure.energy_joules == pytest.approx(200 + 600)
    assert measure.longest_gap_seconds == 2.0


# Several cards


def test_cards_are_summed():
    cards = [
        FakeCard(uuid="GPU-a", used_bytes=3 * GIB, processes=[(os.getpid(), GIB)], busy_percent=90),
        FakeCard(uuid="GPU-b", used_bytes=5 * GIB, processes=[], busy_percent=10),
    ]
    measure = measure_one(FakeNvml(*cards))
    assert measure.nvml_peak_bytes == 8 * GIB
    assert measure.nvml_peak_bytes_by_device == {"GPU-a": 3 * GIB, "GPU-b": 5 * GIB}
    assert measure.nvml_process_peak_bytes == GIB
    assert measure.mean_utilisation_percent == 50
    assert measure.mean_power_watts == pytest.approx(600, rel=MILLIJOULES)


def test_the_sum_of_cards_is_of_one_instant_and_not_of_their_peaks():
    tally = StageTally("train", ["a", "b"], None)
    for t_seconds, held in ((0.0, (10, 1)), (1.0, (1, 10)), (2.0, (1, 2))):
        cards = [Reading(h, 0, 0.0, 0.0, None, None, {}) for h in held]
        tally.add(t_seconds, combine(t_seconds, "train", 1, None, cards), cards, 0.0)
    measure = tally.measure(2.0, None, NO_TORCH, (None, "none"), {})
    assert measure.nvml_peak_bytes == 11
    assert measure.nvml_peak_bytes_by_device == {"a": 10, "b": 10}


def test_a_sum_without_one_cards_answer_is_no_sum():
    failure = {"used_bytes": "NVML: GPU is lost"}
    cards = [
        Reading(10, 0, 0.0, 0.0, None, None, {}),
        Reading(None, 0, 0.0, 0.0, None, None, failure),
    ]
    assert combine(0.0, "train", 1, None, cards).nvml_used_bytes is None


# What NVML refuses


@pytest.mark.parametrize("name", ["LIBRARY_NOT_FOUND", "DRIVER_NOT_LOADED", "NO_PERMISSION"])
def test_no_nvml_gives_nulls_with_the_reason(name):
    measure = measure_one(FakeNvml(init_error=refuse(name)), seconds=0.02)
    reason = f"no NVML device: {refuse(name)}"
    for figure in ("nvml_peak_bytes", "nvml_process_peak_bytes", "energy_joules"):
        assert getattr(measure, figure) is None
        assert measure.unavailable[figure] == reason
    assert measure.nvml_peak_bytes_by_device == {}
    assert measure.host_peak_bytes > 10 * MIB


def test_a_failing_shutdown_does_not_reach_the_work():
    class Stuck(FakeNvml):
        def nvmlShutdown(self):
            raise refuse("UNINITIALIZED")

    assert measure_one(Stuck(FakeCard()), seconds=0.02).nvml_peak_bytes == 2 * GIB


def test_every_null_has_a_reason():
    with_card = FakeNvml(FakeCard(counter_watts=None, refusals={}))
    for nvml in (with_card, FakeNvml(), FakeNvml(make_mig_instance())):
        measure = measure_one(nvml, seconds=0.02)
        nulls = {name for name, value in measure.model_dump().items() if value is None}
        unexplained = nulls - set(measure.unavailable)
        assert unexplained <= {"energy_source", "live_tensor_peak_bytes"}
        assert not {f for f in measure.unavailable if getattr(measure, f) is not None}


def test_a_mig_instance_has_memory_and_no_utilisation_or_energy():
    instance = make_mig_instance()
    instance.processes = [(os.getpid(), GIB)]
    fake = FakeNvml(FakeCard(mig=True, used_bytes=70 * GIB, instances=[instance]))
    measure = measure_one(fake)
    assert measure.nvml_peak_bytes == 2 * GIB
    assert measure.nvml_process_peak_bytes == GIB
    for figure in ("mean_utilisation_percent", "energy_joules", "mean_power_watts"):
        assert getattr(measure, figure) is None
        assert "Not Supported (a MIG instance)" in measure.unavailable[figure]
    # What will never be answered is asked once only.
    assert fake.calls.count("nvmlDeviceGetUtilizationRates") == 1


@pytest.mark.parametrize(
    ("processes", "reason"),
    [([(os.getpid(), None)], "without its memory"), ([(1, GIB)], "not in NVML's list")],
)
def test_hidden_process_memory_is_null_with_the_reason(processes, reason):
    measure = measure_one(FakeNvml(FakeCard(processes=processes)), seconds=0.02)
    assert measure.nvml_process_peak_bytes is None
    assert reason in measure.unavailable["nvml_process_peak_bytes"]


def test_memory_of_child_processes_counts():
    wait = [sys.executable, "-c", "input()"]
    with subprocess.Popen(wait, stdin=subprocess.PIPE) as child:
        card = FakeCard(processes=[(os.getpid(), GIB), (child.pid, GIB)])
        measure = measure_one(FakeNvml(card), seconds=0.02)
        assert child.pid in Family()
        child.communicate(b"\n")
    assert measure.nvml_process_peak_bytes == 2 * GIB


def test_a_driver_without_the_second_memory_call_still_gives_memory():
    for name in ("FUNCTION_NOT_FOUND", "ARGUMENT_VERSION_MISMATCH"):
        card = FakeCard(refusals={"nvmlDeviceGetMemoryInfo_v2": refuse(name)})
        measure = measure_one(FakeNvml(card), seconds=0.02)
        assert measure.nvml_peak_bytes == card.used_bytes + card.reserved_bytes


def test_a_driver_older_than_the_library_is_a_reason_and_no_crash():
    old = pynvml.NVMLLibraryMismatchError("use matching versions")
    card = FakeCard(refusals={"nvmlDeviceGetComputeRunningProcesses": old})
    measure = measure_one(FakeNvml(card), seconds=0.02)
    assert "use matching versions" in measure.unavailable["nvml_process_peak_bytes"]


def test_a_card_lost_in_the_middle_ends_in_words_and_not_in_the_work(clock):
    card = FakeCard(processes=[(os.getpid(), GIB)])
    fake = FakeNvml(card)
    finished = False
    with Meter(nvml=fake) as meter:
        with meter.stage("train"):
            clock.sleep(0.15)
            card.lost = True
            clock.sleep(0.3)
            asked = len(fake.calls)
            wait_for(lambda: len(fake.calls) > asked)  # the thread asks on
            finished = True
        with meter.stage("evaluate"):
            pass
    assert finished
    train = meter.stages["train"]
    assert train.nvml_peak_bytes == 2 * GIB
    assert "GPU is lost (in " in train.incomplete["nvml_peak_bytes"]
    assert train.energy_joules is None
    assert "GPU is lost" in train.unavailable["energy_joules"]
    assert meter.stages["evaluate"].nvml_peak_bytes is None
    assert "GPU is lost" in meter.stages["evaluate"].unavailable["nvml_peak_bytes"]


def test_a_short_failure_is_counted(thread_at_rest):
    card = FakeCard()
    with Meter(nvml=FakeNvml(card)) as meter, meter.stage("train"):
        card.refusals["nvmlDeviceGetMemoryInfo_v2"] = refuse("TIMEOUT")
        gap = meter.stages["train"].incomplete["nvml_peak_bytes"]
        assert gap.endswith("Timeout (in 1 of 2 samples)")
        card.refusals.clear()
    assert meter.stages["train"].nvml_peak_bytes == 2 * GIB
    gap = meter.stages["train"].incomplete["nvml_peak_bytes"]
    assert gap.endswith("Timeout (in 1 of 3 samples)")


# Stages


def test_a_large_array_is_seen_in_its_stage_and_not_in_the_next():
    if not host.reset_peak_bytes():
        pytest.skip("this system does not let a process reset its memory peak")
    with Meter() as meter:
        with meter.stage("before"):
            pass
        with meter.stage("with"):
            array = np.ones(200 * MIB, dtype=np.uint8)
            del array
        with meter.stage("after"):
            pass
    before, inside, after = (meter.stages[name] for name in ("before", "with", "after"))
    assert inside.host_peak_source == "kernel"
    assert inside.host_peak_bytes - before.host_peak_bytes == pytest.approx(200 * MIB, rel=0.05)
    assert abs(after.host_peak_bytes - before.host_peak_bytes) < 20 * MIB


def test_without_the_kernels_peak_the_largest_sample_stands_in(monkeypatch, tmp_path):
    monkeypatch.setattr(host, "CLEAR_REFS", tmp_path / "absent" / "clear_refs")
    with Meter() as meter:
        with meter.stage("with"):
            array = np.ones(200 * MIB, dtype=np.uint8)
        del array
        with meter.stage("after"):
            pass
    inside, after = meter.stages["with"], meter.stages["after"]
    assert inside.host_peak_source == "sampled"
    assert inside.host_peak_bytes - after.host_peak_bytes == pytest.approx(200 * MIB, rel=0.05)


def test_a_stage_whose_body_raises_is_measured(clock):
    with pytest.raises(MemoryError, match="no room"), Meter(nvml=FakeNvml(FakeCard())) as meter:
        with meter.stage("load"):
            pass
        with meter.stage("train"):
            clock.sleep(0.05)
            raise MemoryError("no room")
    assert list(meter.stages) == ["load", "train"]
    assert meter.stages["train"].nvml_peak_bytes == 2 * GIB
    assert meter.stages["train"].wall_seconds == pytest.approx(0.05)


def test_a_stage_entered_twice_is_merged(clock):
    card = FakeCard(used_bytes=5 * GIB)
    with Meter(nvml=FakeNvml(card)) as meter:
        with meter.stage("train"):
            clock.sleep(0.1)
        card.used_bytes = GIB
        with meter.stage("evaluate"):
            pass
        with meter.stage("train"):
            clock.sleep(0.1)
    train = meter.stages["train"]
    assert train.parts == 2
    assert train.nvml_peak_bytes == 5 * GIB
    assert meter.stages["evaluate"].nvml_peak_bytes == GIB
    assert train.wall_seconds == pytest.approx(0.2)
    assert train.energy_joules == pytest.approx(300 * 0.2, rel=MILLIJOULES)


def test_an_open_stage_can_be_read_for_a_checkpoint(clock):
    with Meter(nvml=FakeNvml(FakeCard())) as meter, meter.stage("train"):
        clock.sleep(0.05)
        early = meter.stages["train"]
        clock.sleep(0.05)
    final = meter.stages["train"]
    assert (early.wall_seconds, final.wall_seconds) == pytest.approx((0.05, 0.1))
    assert early.parts == final.parts == 1
    assert early.nvml_peak_bytes == 2 * GIB


def test_a_killed_process_measure_comes_back_from_json_and_merges():
    killed = StageMeasure(
        wall_seconds=10,
        samples=200,
        host_peak_bytes=500,
        host_peak_source="kernel",
        nvml_peak_bytes=900,
        nvml_peak_bytes_by_device={"a": 900},
        energy_joules=1000,
        energy_source="counter",
        mean_power_watts=100,
        mean_utilisation_percent=80,
    )
    resumed = killed.model_copy(
        update={
            "wall_seconds": 30.0,
            "host_peak_bytes": 700,
            "host_peak_source": "sampled",
            "nvml_peak_bytes": 800,
            "nvml_peak_bytes_by_device": {"b": 800},
            "energy_joules": 9000.0,
            "mean_utilisation_percent": 40.0,
        }
    )
    merged = StageMeasure.model_validate_json(killed.model_dump_json()).merge(resumed)
    assert (merged.wall_seconds, merged.parts, merged.samples) == (40, 2, 400)
    assert (merged.host_peak_bytes, merged.host_peak_source) == (700, "sampled")
    assert merged.nvml_peak_bytes == 900
    assert merged.nvml_peak_bytes_by_device == {"a": 900, "b": 800}
    assert (merged.energy_joules, merged.mean_power_watts) == (10_000, 250)
    assert merged.mean_utilisation_percent == 50
    assert json.loads(merged.model_dump_json())["energy_source"] == "counter"


def test_a_sum_with_an_unknown_part_is_unknown_and_a_peak_is_a_lower_bound():
    known = StageMeasure(
        wall_seconds=1, nvml_peak_bytes=5, energy_joules=7, energy_source="counter"
    )
    reasons = {"nvml_peak_bytes": "gone", "energy_joules": "gone"}
    unknown = StageMeasure(wall_seconds=1, unavailable=reasons)
    for merged in (known.merge(unknown), unknown.merge(known)):
        assert merged.energy_joules is None and merged.energy_source is None
        assert merged.unavailable == {"energy_joules": "gone"}
        assert merged.nvml_peak_bytes == 5
        assert merged.incomplete == {"nvml_peak_bytes": "unknown in one part: gone"}


def test_stages_do_not_nest_and_need_a_running_meter():
    meter = Meter()
    with pytest.raises(RuntimeError, match="not running"), meter.stage("load"):
        pass
    nested = pytest.raises(RuntimeError, match="do not nest")
    with meter, meter.stage("load"), nested, meter.stage("train"):
        pass
    with pytest.raises(RuntimeError, match="not running"), meter.stage("load"):
        pass


# Sampling


def test_the_thread_ends_even_when_the_work_fails():
    before = {*threading.enumerate()}  # what an earlier test left asleep is none of this meter's
    with pytest.raises(ValueError), Meter():
        [started] = [t for t in {*threading.enumerate()} - before if t.name == "meter"]
        raise ValueError
    assert not started.is_alive()


def test_ten_samples_a_second_beside_busy_python(monkeypatch):
    monkeypatch.setattr(meter_module, "time", time)
    with Meter(nvml=FakeNvml(FakeCard())) as meter, meter.stage("train"):
        # A second of its own work, which takes longer the busier the machine is.
        end_seconds = time.thread_time() + 1.0
        while time.thread_time() < end_seconds:
            sum(range(1000))
    train = meter.stages["train"]
    assert train.samples >= 10  # 20 asked for
    assert meter.overhead_share < 0.1
    assert 0 < train.sampling_cpu_seconds < 0.1 * train.wall_seconds


def test_an_interval_slower_than_ten_a_second_is_refused():
    for seconds in (0.2, 0, -1):
        with pytest.raises(StudyError, match="interval_seconds"):
            Meter(interval_seconds=seconds)


def test_the_samples_make_a_table_with_nulls():
    with Meter(nvml=FakeNvml(FakeCard(processes=[(1, GIB)]))) as meter, meter.stage("train"):
        wait_for(lambda: meter.stages["train"].samples >= 3)
    table = meter.samples()
    assert list(table.columns) == list(Sample._fields)
    train = table[table["stage"] == "train"]
    assert len(train) == meter.stages["train"].samples >= 4
    assert (train["nvml_used_bytes"] == 2 * GIB).all()
    assert train["nvml_process_bytes"].isna().all()
    assert train["t_seconds"].is_monotonic_increasing


def test_a_long_trace_is_thinned_and_keeps_peaks_and_means():
    trace = SampleTrace(limit=100)
    for i in range(1000):
        host_bytes = 10_000 if i == 333 else i
        stage = "load" if i < 500 else "train"
        trace.add(Sample(float(i), stage, host_bytes=host_bytes, power_watts=float(i % 2)))
    assert 50 <= len(trace.rows) <= 100
    assert max(row.host_bytes for row in trace.rows) == 10_000
    assert {row.stage for row in trace.rows} == {"load", "train"}
    widths = [b.t_seconds - a.t_seconds for a, b in pairwise(trace.rows)]
    assert min(widths) > 0
    assert widths[3] == widths[-4] == max(widths)
    assert sum(row.power_watts for row in trace.rows) / len(trace.rows) == pytest.approx(0.5, 0.1)


# torch's own figures


class FakeCuda:
    def __init__(self):
        self.started, self.peaks, self.held = True, [70, 30], [7, 3]

    def is_initialized(self):
        return self.started

    def is_available(self):
        return True

    def device_count(self):
        return 2

    def memory_allocated(self, device):
        return self.held[device]

    def max_memory_allocated(self, device):
        return self.peaks[device]

    def max_memory_reserved(self, device):
        return 2 * self.peaks[device]

    def empty_cache(self):
        self.emptied = getattr(self, "emptied", 0) + 1

    def reset_peak_memory_stats(self, device):
        assert self.emptied, "what the stage before left in the cache would count for this one"
        self.peaks[device] = self.held[device]


def test_torch_peaks_are_by_stage(monkeypatch):
    cuda = FakeCuda()
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    with Meter(nvml=FakeNvml(FakeCard())) as meter:
        with meter.stage("load"):
            pass
        with meter.stage("train"):
            cuda.peaks = [50, 20]
    assert meter.stages["load"].torch_peak_allocated_bytes == 10
    assert meter.stages["train"].torch_peak_allocated_bytes == 70
    assert meter.stages["train"].torch_peak_reserved_bytes == 140
    assert (meter.samples()["torch_allocated_bytes"] == 10).all()


def test_a_card_that_torch_never_used_has_a_peak_of_nothing(monkeypatch):
    cuda = FakeCuda()
    cuda.started = False
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert measure_one(FakeNvml(FakeCard()), 0.02).torch_peak_allocated_bytes == 0
    assert cuda.peaks == [70, 30]


def test_half_imported_torch_does_no_harm(monkeypatch):
    for half in (SimpleNamespace(), SimpleNamespace(cuda=SimpleNamespace())):
        with Meter(nvml=FakeNvml()) as meter:
            monkeypatch.setitem(sys.modules, "torch", half)
            seen = len(meter.samples())
            wait_for(lambda seen=seen: len(meter.samples()) >= seen + 2)
            monkeypatch.delitem(sys.modules, "torch")


def test_importing_the_meter_imports_neither_torch_nor_nvml():
    code = (
        "import sys, studylib.metering.meter, studylib.metering.devices, studylib.metering.host\n"
        "assert not {'torch', 'pynvml', 'pandas'} & set(sys.modules), 'too much'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# Which cards


A, B = FakeCard(uuid="GPU-aa11"), FakeCard(uuid="GPU-bb22")


@pytest.mark.parametrize(
    ("text", "uuids"),
    [
        (None, ["GPU-aa11", "GPU-bb22"]),
        ("1,0", ["GPU-bb22", "GPU-aa11"]),
        ("1", ["GPU-bb22"]),
        ("GPU-bb22", ["GPU-bb22"]),
        ("GPU-bb", ["GPU-bb22"]),
        ("0,7,1", ["GPU-aa11"]),
        ("0,-1,1", ["GPU-aa11"]),
        ("", []),
        ("GPU", []),
        ("0,0", []),
    ],
)
def test_visible_cards_are_those_of_cuda_in_its_order(text, uuids):
    environ = {} if text is None else {"CUDA_VISIBLE_DEVICES": text}
    cards, reason = list_cards(FakeNvml(A, B), None, environ)
    assert [card.uuid for card in cards] == uuids
    assert (reason is None) == bool(uuids)


def test_devices_are_numbered_among_the_visible():
    environ = {"CUDA_VISIBLE_DEVICES": "1,0"}
    assert list_cards(FakeNvml(A, B), [0], environ)[0][0].uuid == "GPU-bb22"
    assert list_cards(FakeNvml(A, B), [], environ) == ([], "no NVML device: none was asked for")
    with pytest.raises(StudyError, match="device 2"):
        list_cards(FakeNvml(A, B), [2], environ)


def test_a_device_that_is_not_there_is_refused_and_nvml_released():
    fake = FakeNvml(A)
    with pytest.raises(StudyError, match="device 3"), Meter(nvml=fake, devices=[3]):
        pass
    assert fake.started == 0


def test_numbers_among_different_models_need_the_bus_order():
    other = FakeCard(uuid="GPU-cc33", name="NVIDIA GeForce RTX 4090")
    fake = FakeNvml(A, other)
    with pytest.raises(StudyError, match="PCI_BUS_ID"):
        list_cards(fake, None, {"CUDA_VISIBLE_DEVICES": "0"})
    with pytest.raises(StudyError, match="PCI_BUS_ID"):
        list_cards(fake, [0], {})
    ordered = {"CUDA_VISIBLE_DEVICES": "1", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert list_cards(fake, None, ordered)[0][0].uuid == "GPU-cc33"
    assert len(list_cards(fake, None, {})[0]) == 2
    assert list_cards(fake, None, {"CUDA_VISIBLE_DEVICES": "GPU-aa"})[0][0].uuid == "GPU-aa11"


def test_mig_instances_are_found_by_card_and_by_uuid():
    first, second = make_mig_instance("MIG-1111"), make_mig_instance("MIG-2222")
    fake = FakeNvml(FakeCard(mig=True, instances=[first, second]))
    for text, uuid in ((None, "MIG-1111"), ("0", "MIG-1111"), ("MIG-2222", "MIG-2222")):
        environ = {} if text is None else {"CUDA_VISIBLE_DEVICES": text}
        assert [c.uuid for c in list_cards(fake, None, environ)[0]] == [uuid]
    both = {"CUDA_VISIBLE_DEVICES": "MIG-2222,MIG-1111"}
    assert [c.uuid for c in list_cards(fake, None, both)[0]] == ["MIG-2222"]


# Busy cards


def test_a_card_that_others_use_is_refused_by_process_and_memory():
    busy = FakeCard(used_bytes=7 * GIB, processes=[(1, 6 * GIB)])
    with pytest.raises(StudyError) as refusal:
        refuse_busy_devices(FakeNvml(busy))
    message = str(refusal.value)
    assert "PID 1 (6.00 GiB)" in message and "7.00 GiB" in message
    assert "CUDA_VISIBLE_DEVICES" in refusal.value.remedy


def test_a_card_filled_by_processes_that_nvml_hides_is_refused():
    with pytest.raises(StudyError, match="no PID visible"):
        refuse_busy_devices(FakeNvml(FakeCard(used_bytes=3 * GIB)))
    hidden = FakeCard(used_bytes=3 * GIB, processes=[(1, None)])
    with pytest.raises(StudyError, match=r"PID 1 \(memory not reported\)"):
        refuse_busy_devices(FakeNvml(hidden))


def test_a_free_card_passes_and_so_does_ones_own_use():
    own = [(os.getpid(), 9 * GIB)]
    desktop = [(1, 200 * MIB)]
    free = FakeCard(used_bytes=9 * GIB + 200 * MIB, processes=own, drawing=desktop)
    fake = FakeNvml(free)
    refuse_busy_devices(fake)
    assert fake.started == 0
    refuse_busy_devices(FakeNvml(FakeCard(used_bytes=3 * GIB)), allowed_bytes=4 * GIB)
    refuse_busy_devices(FakeNvml(init_error=refuse("DRIVER_NOT_LOADED")))


def test_only_the_cards_that_are_used_need_to_be_free():
    free = FakeCard(uuid="GPU-free", used_bytes=0)
    busy = FakeCard(uuid="GPU-busy", used_bytes=9 * GIB)
    refuse_busy_devices(FakeNvml(free, busy), devices=[0])
    with pytest.raises(StudyError, match="GPU-busy"):
        refuse_busy_devices(FakeNvml(free, busy))


# What the machine is


def test_devices_are_described_for_a_record():
    fake = FakeNvml(A, B)
    cards, reason = describe_devices(fake, {"CUDA_VISIBLE_DEVICES": "1"})
    assert reason is None and fake.started == 0
    assert [(c["uuid"], c["cuda_ordinal"]) for c in cards] == [("GPU-bb22", 0), ("GPU-aa11", None)]
    card = json.loads(json.dumps(cards[0]))
    assert card["memory_total_bytes"] == 80 * GIB
    assert card["memory_reserved_bytes"] == GIB // 2
    assert (card["driver_version"], card["cuda_version"]) == ("570.86.15", "12.8")
    assert (card["power_limit_watts"], card["mig_mode"]) == (400, None)


def test_no_device_is_an_empty_list_with_a_reason():
    missing = FakeNvml(init_error=refuse("LIBRARY_NOT_FOUND"))
    assert describe_devices(missing) == ([], "no NVML device: NVML Shared Library Not Found")
    assert describe_devices(FakeNvml())[1] == "no NVML device: the driver lists no card"


def test_the_host_is_described():
    about = json.loads(json.dumps(host.host_description()))
    assert about["cpu_model"]
    assert 1 <= about["cores_allowed"] <= about["cores_logical"]
    assert about["memory_available_bytes"] <= about["memory_total_bytes"]
    assert about["python"].startswith("3.")


def test_a_containers_limits_are_read_in_both_generations(monkeypatch, tmp_path):
    monkeypatch.setattr(host, "CGROUP", tmp_path)
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "memory.max").write_text(f"{64 * MIB}\n")
    about = host.host_description()
    assert (about["cores_quota"], about["memory_limit_bytes"]) == (1.5, 64 * MIB)
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    for folder, name, text in (
        ("cpu", "cpu.cfs_quota_us", "50000"),
        ("cpu", "cpu.cfs_period_us", "100000"),
        ("memory", "memory.limit_in_bytes", f"{2**63 - 4096}"),
    ):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_text(text)
    about = host.host_description()
    assert (about["cores_quota"], about["memory_limit_bytes"]) == (0.5, None)
