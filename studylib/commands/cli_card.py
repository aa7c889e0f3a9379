"""`study card`: the most valuable measurements of one card first, under a clock.

Exit codes: 0 nothing failed (steps may be cut off, or not reached); 1 a step failed; 2 bad input.

Not covered: the clock (studylib.running.card), the steps (studylib/card.yaml).
"""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from studylib.commands.cli_options import (
    DEFAULT_RESULTS,
    ResultsOption,
    SetOption,
    read_changes,
    split,
)

SHOTS = 5  # of benchmarks/mmlu_prefix.py
TERMINATED = 143  # the exit code after SIGTERM


def card(
    minutes: Annotated[float, typer.Option(help="Minutes of this call, start to end.")] = 12.0,
    models: Annotated[
        str | None,
        typer.Option(help="Other models in the places 13b, 7b, 1b: 13b=shape:OLMo-2-13B,7b=…"),
    ] = None,
    steps: Annotated[str | None, typer.Option(help="Steps by name; all without it.")] = None,
    data: Annotated[
        str, typer.Option(help="What peers train on: an Alpaca-format file, or almanac:new.")
    ] = "almanac:new",
    mmlu: Annotated[
        Path | None, typer.Option(help="A folder with MMLU's test.jsonl and dev.jsonl.")
    ] = None,
    changes: SetOption = None,
    results: ResultsOption = DEFAULT_RESULTS,
) -> None:
    """Measure a card in minutes, most valuable first; a later call goes on where this one ends."""
    began = time.monotonic()
    from studylib.core.places import ROOT
    from studylib.inputs.questions import check_questions
    from studylib.running.card import run_card
    from studylib.running.card_figures import tabulate
    from studylib.schema.card_study import read_steps

    signal.signal(signal.SIGTERM, end)  # what is under way is stopped, and written down
    asked = read_steps().with_models(split(models))
    chosen = asked.choose(split(steps))
    if not any(model.startswith("hub:") for model in asked.models.values()):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no question to a hub waits for its answer
    folder = mmlu or ROOT.parent / "shared" / "data" / "mmlu"
    over = read_changes(changes)
    if mmlu is not None:
        check_questions(str(mmlu), SHOTS)
    study = run_card(
        asked,
        chosen,
        results,
        minutes,
        data,
        str(folder),
        over,
        say=partial(print, flush=True),
        began=began,
    )
    print(tabulate(study))
    if any(one.state == "failed" for one in study.steps if one.name in {s.name for s in chosen}):
        raise typer.Exit(1)


def end(number: int, frame: Any) -> None:
    raise SystemExit(TERMINATED)
