"""`study gpu-check`: can figures measured on this card be trusted.

Exit codes: 0 all checks pass; 1 one fails; 2 there is no CUDA card, or others use it.

Not covered: the checks (studylib.checking.gpu_check), what a machine has (`study doctor`).
"""

from __future__ import annotations

import os
from pathlib import Path

import typer

from studylib.commands.cli_options import JsonOption, ResultsOption


def gpu_check(results: ResultsOption = Path("results"), as_json: JsonOption = False) -> None:
    """Check a CUDA card in two minutes: NVML, memory, kernels, packing, forecasts, answers."""
    from studylib.metering.devices import refuse_busy_devices
    from studylib.running.runner import follow_parent

    follow_parent()
    os.environ.setdefault("TQDM_DISABLE", "1")  # lm-eval's bars would run through the table
    # Of several cards the first is checked: transformers would train on all that it sees.
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    os.environ["CUDA_VISIBLE_DEVICES"] = shown.partition(",")[0]
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
