"""Which runs of a profile fit this machine, by forecast, before any of them is started.

The bundled models need a few megabytes and are not forecast. Everything else is traced once for
each model, method and recipe, in the form in which studylib.train runs it here.

Not covered: the forecast itself (studylib.forecast), time from records (studylib.plan).
"""

from __future__ import annotations

from pathlib import Path

from studylib.environment import describe_environment, device_name, now
from studylib.errors import StudyError
from studylib.profile import RunSpec
from studylib.records import Record, write_record
from studylib.settings import Frozen


class Prospect(Frozen):
    """A run's forecast peak against this machine's memory, in bytes, and where it would fit.

    hours and usd: (low, mid, high) of the whole training on one card of this kind; None on a CPU,
    where nothing is assumed about speed.
    """

    peak_bytes: int
    available_bytes: int
    smallest_gpu: str | None
    hours: tuple[float, float, float] | None = None
    usd: tuple[float, float, float] | None = None

    @property
    def fits(self) -> bool:
        return self.peak_bytes <= self.available_bytes

    @property
    def reason(self) -> str:
        where = (
            f"the smallest card that would do is {self.smallest_gpu}"
            if self.smallest_gpu
            else ("no single card of the catalog would do")
        )
        return (
            f"the forecast peak of {self.peak_bytes / 1e9:.1f} GB is more than this machine's "
            f"{self.available_bytes / 1e9:.1f} GB; {where}"
        )


def foresee(specs: list[RunSpec]) -> dict[str, Prospect]:
    """Run id -> prospect for every training run of a model that is not bundled.

    A model that cannot be traced has none: that is said, and its runs are simply started.
    """
    found: dict[str, Prospect] = {}
    known: dict[tuple[str, str, str], Prospect | None] = {}
    for spec in specs:
        if spec.model_ref.kind == "ladder" or not spec.method.kind.trains:
            continue
        key = (spec.model, spec.method.model_dump_json(), spec.train.model_dump_json())
        if key not in known:
            try:
                known[key] = foresee_run(spec)
            except StudyError as error:
                print(f"no forecast for {spec.run_id}: {error}")
                known[key] = None
        prospect = known[key]
        if prospect is not None:
            found[spec.run_id] = prospect
    return found


def foresee_run(spec: RunSpec) -> Prospect:
    """Trace one training step as it would run here; with a card, its hours and dollars too."""
    import torch

    from studylib.forecast import ForecastSettings, forecast

    on_card = torch.cuda.is_available()
    recipe, method = spec.train, spec.method
    settings = ForecastSettings(
        model=spec.model,
        method=method.name,
        rank=method.rank or 1,
        alpha=method.alpha or 1,
        targets=method.targets,
        adapter=method.adapter_dtype,
        micro_batch=recipe.micro_batch,
        seq_len=recipe.seq_len,
        accumulation=recipe.accumulation,
        packed=True,
        weights=recipe.dtype,
        autocast=recipe.dtype == "bf16",
        optimizer="adamw" if on_card else "adamw-foreach",
        checkpointing=recipe.checkpointing,
        gpu=nearest_card(device_name()) if on_card else "a100-80gb",
        kernels="cuda" if on_card else "cpu",
    )
    made = forecast(settings)
    steps = recipe.steps
    seconds = made.seconds_per_step
    hours = tuple(steps * s / 3600 for s in (seconds.low, seconds.mid, seconds.high))
    return Prospect(
        peak_bytes=made.peak_bytes,
        available_bytes=available_bytes(),
        smallest_gpu=made.smallest_gpu,
        hours=hours if on_card else None,  # type: ignore[arg-type]
        usd=price_hours(hours, settings.gpu) if on_card else None,
    )


def available_bytes() -> int:
    """Memory of the first card, or what the host has free."""
    import psutil
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory
    return psutil.virtual_memory().available


def nearest_card(device: str) -> str:
    """The catalog's name of the card that torch names, such as NVIDIA H200 -> h200-141gb."""
    from studylib.catalog import load_gpus
    from studylib.settings import nearest

    words = device.lower().replace("-", " ").split()
    names = list(load_gpus())
    found = [name for name in names if name.split("-")[0] in words]
    if not found:
        raise StudyError(
            device, "the catalog has no such card", f"Add it to gpus.csv. {nearest(device, names)}"
        )
    exact = [name for name in found if all(part in device.lower() for part in name.split("-")[1:])]
    return (exact or found)[0]


def price_hours(hours: tuple[float, ...], gpu: str) -> tuple[float, float, float] | None:
    from studylib.catalog import load_prices, price_range

    offers = price_range(gpu, load_prices())
    if offers is None:
        return None
    low, mid, high = hours
    return (low * offers.cheapest, mid * offers.median, high * offers.dearest)


def record_misfit(spec: RunSpec, prospect: Prospect, folder: Path) -> None:
    """The record of a run that was not started: "does not fit, forecast" and the figures."""
    folder.mkdir(parents=True, exist_ok=True)
    instant = now()
    write_record(
        folder,
        Record(
            run_id=spec.run_id,
            status="does not fit, forecast",
            reason=prospect.reason,
            run=spec,
            environment=describe_environment(instant, instant, 1, 0),
            fingerprint={"device.name": device_name(), "model.name": spec.model},
            files={},
        ),
    )
