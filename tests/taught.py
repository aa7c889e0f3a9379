"""Folders of runs with their plans, from which later forecasts learn."""

from __future__ import annotations

from record_factory import GPU, Factory, make_spec

from studylib.schema.records import read_records
from studylib.schema.run_forecasts import RunForecast, RunForecasts, write_run_forecasts

GB = 10**9
CPU = "CPU AMD EPYC"


def add_run(folder, device=GPU, seconds=20.0, **changes):
    """A run of a minute by its clock: so long a training, all of it clean steps, 10 s of scoring,
    2 of serving."""
    factory = Factory(folder, device=device)
    spec = make_spec("lora", gpus=int(device == GPU), **changes)
    spec = spec.model_copy(
        update={"hardware": spec.hardware.model_copy(update={"runs_per_card": 1})}
    )
    walls = {"train": seconds, "evaluate": 10.0, "serve": 2.0}
    for name, wall in walls.items():
        made = getattr(factory, name)

        def with_wall(asked, made=made, wall=wall):
            block = made(asked)
            clean = {"clean_step_seconds": wall / spec.train.steps} if "steps" in dir(block) else {}
            measure = block.measure.model_copy(update={"wall_seconds": wall})
            return block.model_copy(update={"measure": measure, **clean})

        setattr(factory, name, with_wall)
    return factory.add(spec)


def keep_plans(folder, stages, serving=None, roofline=None):
    runs = tuple(
        RunForecast(
            run_id=record.run_id, record_digest=record.digest, peak_bytes=GB, allocated_bytes=GB,
            peak_stage="backward", parts={"weights": GB}, step_seconds=None,
            roofline_seconds=roofline, stages=stages,
        )
        for record in read_records(folder / "runs")
    )  # fmt: skip
    write_run_forecasts(
        folder,
        RunForecasts(runs=runs, left_out={}, serving=serving or {}, packages={}, code_sha256="c"),
    )
