"""Forecast the runs that a study has records of, as if they were still to come.

Nothing that was measured goes in but on which device it was: the error that the report shows is
that of a forecast made without the run. Runs of the same settings are traced once.

Not covered: the comparison (studylib.reporting.forecast_errors).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from studylib.core.errors import StudyError
from studylib.metering.code_files import FORECASTING, code_sha256
from studylib.metering.environment import TRACING_PACKAGES, device_name, package_versions
from studylib.planning.catalog import match_gpu
from studylib.planning.cuda_terms import CudaTerms
from studylib.planning.roofline import ASSUMED
from studylib.schema.records import Record
from studylib.schema.run_forecasts import (
    RUN_FORECASTS,
    RunForecast,
    RunForecasts,
    digests,
    read_run_forecasts,
    write_run_forecasts,
)
from studylib.schema.serve_records import read_serve_records

Say = Callable[[str], None]


def refresh_forecasts(folder: Path, records: Sequence[Record], say: Say = print) -> Path:
    """Make results/PROFILE/run_forecasts.json where it is not that of these records and this code.

    A model that cannot be traced any more (its folder is gone, say) is left out with the reason.
    Without torch, which reading results does not need, they stay as they are.
    """
    code, wanted = code_sha256(FORECASTING), digests(records)
    known, serves = read_run_forecasts(folder), read_serve_records(folder / "serve")
    cards = {s.serve_id: match_gpu(s.environment.device) for s in serves}
    served = {s.serve_id: (s.spec, card) for s in serves if (card := cards[s.serve_id])}
    if not wanted or (known is not None and known.made_for(records, code, served)):
        return folder / RUN_FORECASTS
    if find_spec("torch") is None:
        say("forecast: not made, torch is not installed here")
        return folder / RUN_FORECASTS
    from studylib.forecasting.stage_forecasts import plan_serving

    say(f"forecast: {len(wanted)} trainings, to be set beside what was measured")
    runs, left_out = [], {}
    speeds = dict(known.speeds) if known is not None else {}
    for record in records:
        if record.run_id not in wanted:
            continue
        try:
            runs.append(forecast_record(record, speeds))
        except StudyError as error:
            left_out[record.run_id] = str(error)
    return write_run_forecasts(
        folder,
        RunForecasts(
            runs=tuple(runs),
            left_out=left_out,
            serving={name: plan_serving(*asked) for name, asked in served.items()},
            speeds=speeds,
            packages=package_versions(TRACING_PACKAGES),
            code_sha256=code,
        ),
    )


def forecast_record(record: Record, speeds: dict[str, float] | None = None) -> RunForecast:
    """The forecast of a record's training on the device that it ran on.

    speeds: this processor's as far as they are known; those that are asked for are added.
    """
    from studylib.forecasting.job_forecast import Machine, job_settings, trace_once
    from studylib.forecasting.stage_forecasts import plan_card_stages, plan_host_stages

    environment = record.environment
    on_card = bool(environment.devices) and not environment.device.startswith("CPU")
    gpu = match_gpu(environment.device) if on_card else None
    machine = Machine(
        gpu=gpu.name if gpu else None,
        cards=len(environment.devices) if on_card else 0,
        memory_bytes=0,  # whether it fits is not asked any more
        here=False,
    )
    settings = job_settings(record.run, machine, sure=True)
    made = trace_once(settings, machine.here, ASSUMED, CudaTerms())
    seconds, stages = made.seconds_per_step, {}
    if gpu is not None:
        stages = plan_card_stages(record.run, settings, made, gpu)
    elif not on_card and (speed := host_speed(record, {} if speeds is None else speeds)):
        stages = plan_host_stages(record.run, made, speed)
    return RunForecast(
        run_id=record.run_id,
        record_digest=record.digest,
        peak_bytes=made.peak_bytes,
        allocated_bytes=made.peak_allocated_bytes,
        peak_stage=made.peak_stage,
        parts={name: size for name, size in made.parts.items() if size},
        paged_bytes=made.paged_bytes,
        step_seconds=seconds if gpu else None,
        roofline_seconds=seconds.mid * ASSUMED.mid if gpu else None,
        stages=stages,
    )


def host_speed(record: Record, speeds: dict[str, float]) -> float | None:
    """Operations by second of the processor that a run had, with its threads and dtype; None where
    it is another machine's and was never taken."""
    from studylib.forecasting.cpu_hours import product_speed

    where, dtype = record.environment, record.run.train.dtype
    name = f"{where.device}, {where.threads} threads, {dtype}"
    if name not in speeds and where.device == device_name():
        speeds[name] = product_speed(dtype, where.threads)
    return speeds.get(name)
