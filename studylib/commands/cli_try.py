"""The commands `study try` and `study merge`: what to do with the weights that a run kept.

Not covered: the answers (studylib.scoring.trial), the weights (studylib.modelling.kept).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from studylib.commands.cli_options import DEFAULT_RESULTS, JsonOption, ResultsOption
from studylib.core.errors import StudyError, show_plainly

MOST_TOKENS = 100_000

RunArgument = Annotated[str, typer.Argument(help="A finished run's id, or its folder.")]
StudyOption = Annotated[
    str | None, typer.Option("--profile", help="The study, a folder in the results; else any.")
]


def try_run(
    run_id: RunArgument,
    prompts: Annotated[
        list[str] | None,
        typer.Argument(help="What to ask; none, or -, reads a prompt a line from the input."),
    ] = None,
    profile: StudyOption = None,
    results: ResultsOption = DEFAULT_RESULTS,
    max_tokens: Annotated[
        int, typer.Option(min=1, max=MOST_TOKENS, help="Where an answer is broken off.")
    ] = 64,
    system: Annotated[
        str | None, typer.Option(help="A system text that stands before each prompt.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a trained model and its base; greedy answers, in the template of the training."""
    from studylib.schema.find_record import find_record

    record, folder = find_record(results, run_id, profile)
    asked = read_prompts(prompts or ["-"])
    from studylib.scoring.trial import try_prompts

    tried = try_prompts(record, folder, asked, max_tokens, system)
    if as_json:
        rows = [
            {
                "prompt": one.prompt,
                "base": one.base.text,
                "base_finished": one.base.finished,
                "trained": one.trained.text,
                "trained_finished": one.trained.finished,
            }
            for one in tried
        ]
        print(json.dumps({"run_id": record.run_id, "answers": rows}, indent=1, ensure_ascii=False))
        return
    label, run = record.run.method.label, record.run
    template = record.fingerprint.get("data.template", run.data.template)
    print(f"{record.run_id}: {label} on {run.model}, template {template}\n")
    for one in tried:
        print(f"> {show_plainly(one.prompt)}")
        for name, answer in (("base", one.base), (label, one.trained)):
            end = "" if answer.finished else f" … (broken off after {max_tokens} tokens)"
            print(f"{name}: {show_plainly(answer.text.strip())}{end}")
        print()


def read_prompts(words: list[str]) -> list[str]:
    """The prompts of the command; `-` stands for the lines of the input."""
    asked = []
    for word in words:
        if word != "-":
            asked.append(word)
        elif not sys.stdin.isatty():
            asked += [line.rstrip("\n") for line in sys.stdin]
    asked = [prompt for prompt in asked if prompt.strip()]
    if not asked:
        raise StudyError(
            "try", "there is no prompt", "Write one after the run's id (PROMPT='…' with make)."
        )
    return asked


def merge(
    run_id: RunArgument, profile: StudyOption = None, results: ResultsOption = DEFAULT_RESULTS
) -> None:
    """Write a run's base and adapter as one checkpoint, for who serves no adapters."""
    from studylib.schema.find_record import find_record

    record, folder = find_record(results, run_id, profile)
    from studylib.modelling.kept import merge_kept

    place: Path = merge_kept(record, folder)
    total = sum(path.stat().st_size for path in place.iterdir())
    print(f"{place}: base and adapter in bf16, {total / 1e6:,.1f} MB, with the tokenizer")
