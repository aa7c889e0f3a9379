"""What measured runs teach the next forecast: a card's efficiency and context, a processor's share.

The runs are those of the reference and of the reader's own results.

The context is above all the software's, so that runs on another card teach it where a card has
none. Without such runs the assumptions stand, and say so. A run's own forecast, which the report
sets beside it, is made from the assumptions alone (studylib.forecasting.run_forecasts).

Not covered: fitting the terms (studylib.planning.roofline, studylib.planning.cuda_terms).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from studylib.core.errors import StudyError
from studylib.core.places import REFERENCE, ROOT
from studylib.planning.catalog import find_gpu, match_gpu
from studylib.planning.cuda_terms import CudaTerms, MeasuredPeaks, fit_cuda_terms
from studylib.planning.roofline import Efficiency, calibrate, spread_of_shares
from studylib.schema.records import RECORD, Record, read_record
from studylib.schema.run_forecasts import RunForecast, read_run_forecasts
from studylib.schema.shared_card import runs_on_card

own_results: Path | None = None  # the folder that a command or notebook names
TELLING_SECONDS = 10.0  # of a scoring
LIKE = 10  # times the parameters: what a processor does with models further apart differs


def learn_from(results: Path | None) -> None:
    """Take the reader's own runs from this folder of results folders; None takes the usual one."""
    global own_results
    if results != own_results:
        own_results = results
        learn_terms.cache_clear()
        learn_share.cache_clear()


def usual_roots() -> tuple[Path, Path]:
    """The reference, and the reader's own: where nobody names it, here, or in the checkout."""
    usual = Path("results")
    return REFERENCE, own_results or (usual if usual.is_dir() else ROOT / "results")


@lru_cache(maxsize=64)
def learn_terms(gpu: str, *roots: Path) -> tuple[Efficiency, CudaTerms]:
    """The terms of a card of the catalog. roots: folders of results folders, if not the usual."""
    pairs = []
    peaks: dict[str, list[MeasuredPeaks]] = {}  # by card
    for record, made in all_runs(is_on_card, roots or usual_roots()):
        card = match_gpu(record.environment.device)
        train = record.train
        if card is None or train is None or record.run.gpus > 1:
            continue
        alone = runs_on_card(record) == 1  # a crowd's clock says nothing of a card's efficiency
        if alone and card.name == gpu and train.clean_step_seconds and made.roofline_seconds:
            pairs.append((card.name, made.roofline_seconds, train.clean_step_seconds))
        measure = train.measure
        seen = (
            measure.torch_peak_reserved_bytes,
            # of the card, which a run has to itself, where the driver hides processes
            measure.nvml_process_peak_bytes or less_paged(measure.nvml_peak_bytes, made),
        )
        if all(seen):
            reserved, process = (int(b or 0) for b in seen)
            measured = MeasuredPeaks(reserved_bytes=reserved, process_bytes=process)
            peaks.setdefault(card.name, []).append(measured)
    like = {gpu: peaks[gpu]} if gpu in peaks else peaks
    return calibrate(pairs, find_gpu(gpu)), fit_cuda_terms(like)


@lru_cache(maxsize=64)
def learn_share(device: str, stage: str, params: int, *roots: Path) -> Efficiency | None:
    """What runs on a processor reached in a stage, by what their plans assumed; None without runs.

    Those of models of up to ten times the parameters, or a tenth. The values are factors of the
    assumption's middle.
    """
    factors = []
    for record, made in all_runs(is_planned, roots or usual_roots()):
        plan, seconds = made.stages.get(stage), stage_seconds(record, stage)
        if record.environment.device != device or record.load is None or plan is None:
            continue
        size = record.load.total_params
        if plan.seconds and seconds and max(size, params) <= LIKE * min(size, params):
            factors.append(plan.seconds.mid / seconds)
    return spread_of_shares(factors, device) if factors else None


def stage_seconds(record: Record, stage: str) -> float | None:
    """What a stage took apart from its beginning: all its steps without their warm-up. None of a
    scoring that was hardly more than its beginning."""
    if stage == "train":
        clean = record.train.clean_step_seconds if record.train else None
        return clean and clean * record.run.train.steps
    seconds = record.evaluate.measure.wall_seconds if record.evaluate else 0.0
    return seconds if seconds >= TELLING_SECONDS else None


def is_on_card(made: RunForecast) -> bool:
    return made.roofline_seconds is not None


def is_planned(made: RunForecast) -> bool:
    return bool(made.stages) and not is_on_card(made)


def less_paged(card_bytes: int | None, made: RunForecast) -> int | None:
    """A card's figure without the paged states that it holds beside the process."""
    return None if card_bytes is None else card_bytes - made.paged_bytes


def all_runs(
    wanted: Callable[[RunForecast], bool], roots: Iterable[Path]
) -> Iterator[tuple[Record, RunForecast]]:
    """Those of several folders, each record once: what was published lies in two of them."""
    seen = set()
    for root in roots:
        for record, made in complete_runs(root, wanted):
            if record.digest not in seen:
                seen.add(record.digest)
                yield record, made


def complete_runs(
    root: Path, wanted: Callable[[RunForecast], bool]
) -> Iterator[tuple[Record, RunForecast]]:
    """Complete runs whose forecast is wanted, each with it."""
    for folder in sorted(path.parent for path in root.glob("*/runs")):
        try:
            made = read_run_forecasts(folder)
        except StudyError:  # its own report says what is wrong with it
            continue
        for run in made.runs if made else ():
            if not wanted(run):
                continue
            path = folder / "runs" / run.run_id / RECORD
            if not path.is_file():
                continue
            record = read_record(path)
            if record.complete and record.digest == run.record_digest:
                yield record, run
