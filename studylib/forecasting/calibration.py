"""What measured runs on a card teach the next forecast: its efficiency, and the context.

The runs are those of the reference and of the reader's own results.

The context is above all the software's, so that runs on another card teach it where a card has
none. Without such runs the assumptions stand, and say so. A run's own forecast, which the report
sets beside it, is made from the assumptions alone (studylib.forecasting.run_forecasts).

Not covered: fitting the terms (studylib.planning.roofline, studylib.planning.cuda_terms).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from studylib.core.errors import StudyError
from studylib.core.places import REFERENCE
from studylib.planning.catalog import find_gpu, match_gpu
from studylib.planning.cuda_terms import CudaTerms, Measured, fit_cuda_terms
from studylib.planning.roofline import Efficiency, calibrate
from studylib.schema.records import RECORD, Record, read_record
from studylib.schema.run_forecasts import RunForecast, read_run_forecasts
from studylib.schema.shared_card import runs_on_card

RESULTS = Path("results")  # the reader's own, where commands leave them


@lru_cache(maxsize=64)
def learn_terms(
    gpu: str, reference: Path = REFERENCE, own: Path = RESULTS
) -> tuple[Efficiency, CudaTerms]:
    """The terms of a card of the catalog. reference, own: folders of results folders."""
    pairs = []
    peaks: dict[str, list[Measured]] = {}  # by card
    for record, made in all_runs(reference, own):
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
            measured = Measured(reserved_bytes=reserved, process_bytes=process)
            peaks.setdefault(card.name, []).append(measured)
    like = {gpu: peaks[gpu]} if gpu in peaks else peaks
    return calibrate(pairs, find_gpu(gpu)), fit_cuda_terms(like)


def less_paged(card_bytes: int | None, made: RunForecast) -> int | None:
    """A card's figure without the paged states that it holds beside the process."""
    return None if card_bytes is None else card_bytes - made.paged_bytes


def all_runs(*folders: Path) -> Iterator[tuple[Record, RunForecast]]:
    """Those of several folders, each record once: what was published lies in two of them."""
    seen = set()
    for folder in folders:
        for record, made in card_runs(folder):
            if record.digest not in seen:
                seen.add(record.digest)
                yield record, made


def card_runs(reference: Path) -> Iterator[tuple[Record, RunForecast]]:
    """Complete runs on cards that the catalog knows, each with its forecast."""
    for folder in sorted(path.parent for path in reference.glob("*/runs")):
        try:
            made = read_run_forecasts(folder)
        except StudyError:  # its own report says what is wrong with it
            continue
        for run in made.runs if made else ():
            if run.roofline_seconds is None:
                continue
            path = folder / "runs" / run.run_id / RECORD
            if not path.is_file():
                continue
            record = read_record(path)
            if record.complete and record.digest == run.record_digest:
                yield record, run
