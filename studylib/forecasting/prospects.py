"""Which runs of a profile fit a machine, and what a study takes there, before it is started.

Everything is traced once for each model, method and recipe, in the form in which
studylib.training.train runs it there. The bundled models need a few megabytes: whether they fit is
not asked.

Not covered: the forecast itself (studylib.forecasting.forecast, studylib.forecasting.job_forecast),
what loading and scoring take (studylib.planning.estimate), time from records
(studylib.planning.plan).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from studylib.core.errors import StudyError, Unfit
from studylib.forecasting.calibration import learn_terms
from studylib.forecasting.job_forecast import (
    Machine,
    count_params,
    job_settings,
    rented_machine,
    this_machine,
    trace_ahead,
    trace_once,
)
from studylib.metering.environment import describe_environment, device_name, now
from studylib.planning.catalog import find_gpu
from studylib.planning.estimate import (
    RunHours,
    StudyEstimate,
    download_hours,
    hours,
    price,
    scoring_hours,
    serving_hours,
    start_hours,
)
from studylib.planning.fit import Fit, judge_fit
from studylib.planning.roofline import ASSUMED
from studylib.planning.sweeps import Sweep, sweep_id_of
from studylib.schema.profile import RunSpec
from studylib.schema.ranges import NOTHING, Range, exactly
from studylib.schema.records import Record, write_record
from studylib.schema.serving import ServeSpec
from studylib.schema.settings import Frozen


class Prospect(Frozen):
    """A training run's forecast peak against a machine's memory, and where it would fit.

    peak_bytes: what the driver would show of one card of `gpus`, or the least that it would take
    where they do not fit; least_bytes: with which it still runs; train_hours: of all steps, None
    on a CPU or unknown card, where nothing is assumed about speed, and where it does not fit.
    total_params: the model's without an adapter.
    """

    peak_bytes: int
    least_bytes: int
    available_bytes: int
    gpus: int
    cards: int
    smallest_gpu: str | None
    total_params: int
    train_hours: Range | None = None

    @property
    def lacks_cards(self) -> bool:
        return 0 < self.cards < self.gpus

    @property
    def needed_bytes(self) -> int:
        """On one card; a host without cards holds what all of them would."""
        return self.fit.least_bytes

    @property
    def fit(self) -> Fit:
        """On one card, or on the host for all."""
        count = 1 if self.cards else max(self.gpus, 1)
        return judge_fit(
            count * self.peak_bytes, count * self.least_bytes, self.available_bytes, self.gpus
        )

    @property
    def may_run(self) -> bool:
        return not self.lacks_cards and self.fit.may_run

    @property
    def in_words(self) -> str:
        """fits, tight or does not fit, the last with what would do."""
        if self.may_run:
            return self.fit.in_words
        if self.lacks_cards:
            return f"does not fit: {self.reason}"
        return f"does not fit, needs {self.smallest_gpu or 'more than any card of the catalog'}"

    @property
    def reason(self) -> str:
        if self.lacks_cards:
            return f"it asks for {self.gpus} cards, this machine has {self.cards}"
        which = f" of which {self.gpus} would do" if self.gpus > 1 else " that would do"
        where = (
            f"the smallest card{which} is {self.smallest_gpu}"
            if self.smallest_gpu
            else "no card of the catalog would do"
        )
        return (
            f"by forecast it needs {self.needed_bytes / 1e9:.1f} GB, more than this machine's "
            f"{self.available_bytes / 1e9:.1f} GB; {where}"
        )


def foresee_runs(
    specs: Sequence[RunSpec],
    machine: Machine | None = None,
    bundled: bool = False,
    say: Callable[[str], Any] = print,
) -> dict[str, Prospect]:
    """Run id -> prospect for every training run; of bundled models only where that is asked.

    A model that cannot be traced has none: that is said, and its runs are simply started. Unfit
    where a model cannot take a method at all: no start would help.
    """
    found: dict[str, Prospect] = {}
    failed = set()
    asked = [
        spec
        for spec in specs
        if spec.method.kind.trains and (bundled or spec.model_ref.kind != "ladder" or spec.gpus > 1)
    ]
    if not asked:
        return found
    machine = machine or this_machine()
    trace_ahead((job_settings(spec, machine) for spec in asked), machine.here)
    for spec in asked:
        settings = job_settings(spec, machine)
        if settings in failed:
            continue
        try:
            found[spec.run_id] = foresee_run(spec, machine)
        except Unfit:
            raise
        except StudyError as error:
            say(f"no forecast for {spec.run_id}: {error}")
            failed.add(settings)
    return found


def foresee_run(spec: RunSpec, machine: Machine | None = None) -> Prospect:
    """Trace one training step as it would run there; on a known card, the hours of all steps."""
    machine = machine or this_machine()
    made = trace_once(job_settings(spec, machine), machine.here)
    seconds = made.seconds_per_step * spec.train.steps
    fit = made.fit_on(machine.memory_bytes)
    return Prospect(
        peak_bytes=fit.shown_bytes,
        least_bytes=fit.least_bytes,
        available_bytes=machine.memory_bytes,
        gpus=spec.gpus,
        cards=machine.cards,
        smallest_gpu=made.smallest_gpu,
        total_params=made.total_params,
        train_hours=hours(seconds) if machine.gpu else None,
    )


def estimate_study(
    specs: Sequence[RunSpec],
    gpu: str,
    cards: int,
    serving: Sequence[ServeSpec] = (),
    measured: Mapping[str, float] | None = None,
    sweeps: Sequence[Sweep] = (),
) -> StudyEstimate:
    """Hours and dollars of runs, serving runs and sweeps on `cards` cards of the catalog's `gpu`.

    measured: run id -> seconds that like runs took there, in place of an estimate. Needs neither
    the card nor, for the models that the catalog knows, a network. Runs that by forecast do not fit
    are in `misfits` and in no sum.
    """
    return estimate_on(rented_machine(gpu, cards), specs, serving, measured, sweeps=sweeps)


def estimate_on(
    machine: Machine,
    specs: Sequence[RunSpec],
    serving: Sequence[ServeSpec] = (),
    measured: Mapping[str, float] | None = None,
    force: bool = False,
    sweeps: Sequence[Sweep] = (),
) -> StudyEstimate:
    """The same for a machine, this one for instance; its cards may be unknown to the catalog.

    force: runs that do not fit are started as well. sweeps: each trains and is asked as often as it
    has rates; one that does not fit is not made.
    """
    searched = [spec for spec, _ in sweeps]
    prospects = foresee_runs([*specs, *searched], machine, bundled=True, say=lambda line: None)
    swept = {spec.run_id for spec in searched}
    misfits = {
        run_id: found.reason
        for run_id, found in prospects.items()
        if not (found.may_run or force or run_id in swept)
    }
    left = [spec for spec in specs if spec.run_id not in misfits]
    params = size_models([*left, *searched, *serving], prospects, machine)
    runs, unknown = {}, []
    for spec in left:
        seconds = (measured or {}).get(spec.run_id)
        made = (
            estimate_run(spec, prospects, machine, params)
            if seconds is None
            else RunHours(gpus=max(spec.gpus, 1), measured=hours(exactly(seconds)))
        )
        if made is None:
            unknown.append(spec.run_id)
        else:
            runs[spec.run_id] = made
    for spec, rates in sweeps:
        prospect, name = prospects.get(spec.run_id), f"{sweep_id_of(spec)} (sweep)"
        if prospect is not None and not (prospect.may_run or force):
            continue
        made = estimate_run(spec, prospects, machine, params)
        if made is None:
            unknown.append(name)
        else:
            runs[name] = RunHours(gpus=1, train=made.total * len(rates))
    for served in serving:
        name = f"{served.serve_id} (serving)"
        if machine.gpu is None or served.model not in params:
            unknown.append(name)
        else:
            runs[name] = RunHours(gpus=1, start=serving_hours(served, params[served.model]))
    total = sum((run.total for run in runs.values()), download_hours(left, params))
    return StudyEstimate(
        gpu=machine.gpu,
        cards=machine.cards,
        hours=total,
        usd=price(total, machine.gpu, machine.cards),
        runs=runs,
        misfits=misfits,
        unknown=tuple(unknown),
        training=learn_terms(machine.gpu)[0] if machine.gpu else ASSUMED,
    )


def size_models(
    specs: Sequence[RunSpec | ServeSpec], prospects: Mapping[str, Prospect], machine: Machine
) -> dict[str, int]:
    """Model -> parameters, from a forecast of it or counted; left out where neither can be."""
    params = {
        spec.model: prospects[spec.run_id].total_params
        for spec in specs
        if isinstance(spec, RunSpec) and spec.run_id in prospects
    }
    for model in {spec.model for spec in specs} - params.keys():
        with suppress(StudyError):
            params[model] = count_params(model, machine.here)
    return params


def estimate_run(
    spec: RunSpec, prospects: Mapping[str, Prospect], machine: Machine, params: Mapping[str, int]
) -> RunHours | None:
    """The parts of a run's hours; None where its training, its size or its card is not known."""
    found = prospects.get(spec.run_id)
    trained = found.train_hours if found else None
    size = params.get(spec.model)
    if machine.gpu is None or size is None or (spec.method.kind.trains and trained is None):
        return None
    return RunHours(
        gpus=max(spec.gpus, 1),
        start=start_hours(spec, size),
        train=trained or NOTHING,
        evaluate=scoring_hours(spec, size, find_gpu(machine.gpu)),
    )


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
