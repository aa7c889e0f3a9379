"""`study evaluate`: ask a model questions, alone, or by lm-eval's own path and ours side by side.

Not covered: training (the other commands).
"""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from studylib.commands.cli_options import JsonOption, split
from studylib.core.errors import StudyError

CUTS = ["tokens", "shots"]


def evaluate(
    model: Annotated[
        str,
        typer.Option(help="hub:ID, path:FOLDER, gguf:FILE, pypi:PACKAGE==VERSION, ladder:NAME."),
    ],
    tasks: Annotated[str | None, typer.Option(help="lm-eval tasks: arc_easy,hellaswag")] = None,
    include: Annotated[str | None, typer.Option(help="A folder with task YAMLs.")] = None,
    mmlu: Annotated[str | None, typer.Option(help="hub, or a folder with test.jsonl.")] = None,
    subjects: Annotated[str | None, typer.Option(help="Of --mmlu only these, with commas.")] = None,
    shots: Annotated[int, typer.Option(min=0, max=25)] = 5,
    limit: Annotated[int | None, typer.Option(min=1, help="Questions a subject or task.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts a batch of lm-eval's.")] = 8,
    method: Annotated[
        str | None, typer.Option(help="A fresh adapter on it: a method; none if left out.")
    ] = None,
    cut: Annotated[
        str, typer.Option(help="What too long a prompt loses: tokens from the left, or shots.")
    ] = "tokens",
    stock: Annotated[bool, typer.Option("--stock", help="Use lm-eval's own path.")] = False,
    compare: Annotated[bool, typer.Option("--compare", help="Run both ways in turn.")] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of --compare.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Accuracy of a model on MMLU or any lm-eval task with choices."""
    if (tasks is None) == (mmlu is None):
        raise StudyError("--tasks, --mmlu", "give one of them", "For example --mmlu hub.")
    source = mmlu if mmlu is not None else f"tasks:{tasks}" + (f"@{include}" if include else "")
    from studylib.schema.methods import UNTRAINED
    from studylib.schema.settings import (
        EvaluateSettings,
        LoraSettings,
        ModelRef,
        nearest,
        parse_method,
    )

    if cut not in CUTS:
        raise StudyError(f"--cut {cut}", "prompts are not cut that way", nearest(cut, CUTS))
    settings = EvaluateSettings(questions=source, shots=shots, limit=limit)
    loaded_task = load_tasks(source, settings, subjects)
    from studylib.modelling.methods import attach
    from studylib.modelling.models import load_model
    from studylib.scoring.evaluate import NotANumber, build_lm
    from studylib.scoring.tasks import fit_shots

    chosen = parse_method(method or UNTRAINED, LoraSettings())
    loaded = load_model(ModelRef.parse(model), chosen, "fp32")
    network = attach(loaded.model, chosen)
    lm = build_lm(network, loaded.tokenizer, batch_size, stock and not compare)
    if cut == "shots":
        fit_shots(loaded_task, lm)
    try:
        if compare:
            from studylib.scoring.compare_lm import compare_wrappers

            result = compare_wrappers(
                lambda: build_lm(network, loaded.tokenizer, batch_size, stock=True),
                lambda: lm,
                loaded_task,
                limit,
                rounds,
            ).to_dict()
        else:
            result = ask_all(lm, loaded_task, limit)
    except NotANumber as error:
        remedy = "It has no accuracy: take a checkpoint from before it broke."
        raise StudyError(model, str(error), remedy) from None
    lines = "\n".join(f"{key}: {value}" for key, value in result.items())
    print(json.dumps(result, indent=1) if as_json else lines)


def load_tasks(source: str, settings: Any, subjects: str | None) -> dict[str, Any]:
    """The tasks of a source, or only some of its subjects."""
    from studylib.inputs.questions import check_questions
    from studylib.schema.settings import nearest
    from studylib.scoring.tasks import build_tasks

    check_questions(source, settings.shots)
    found = build_tasks(source, settings)
    if subjects is None:
        return found
    wanted = split(subjects) or []
    for name in wanted:
        if name not in found:
            raise StudyError(name, "there is no such subject", nearest(name, list(found)))
    return {name: found[name] for name in wanted}


def ask_all(lm: Any, tasks: dict[str, Any], limit: int | None) -> dict[str, Any]:
    """Micro and macro accuracy with a standard error by subject, and the seconds in the model.

    undecided: items all of whose choices are equally likely, counted as wrong. Raises NotANumber
    where the answers choose nothing.
    """
    import lm_eval
    import pandas as pd

    from studylib.core.stats import measure_accuracy
    from studylib.scoring.compare_lm import ModelClock
    from studylib.scoring.evaluate import choose_all, read_loglikelihoods

    clock = ModelClock()
    with clock.attach(lm):
        answered = lm_eval.evaluate(lm, tasks, limit=limit, bootstrap_iters=0, log_samples=True)
    samples = [(name, s) for name, rows in answered["samples"].items() for s in rows]
    chosen = choose_all([read_loglikelihoods(sample) for _, sample in samples])
    correct = [
        best >= 0 and bool(sample["acc"]) for (_, sample), best in zip(samples, chosen, strict=True)
    ]
    names = [name for name, _ in samples]
    micro = measure_accuracy(correct, names)
    macro = measure_accuracy(correct, names, mean="macro")
    return {
        "items": len(correct),
        "undecided": sum(best < 0 for best in chosen),
        "subjects": len(set(names)),
        "accuracy": micro.value,
        "accuracy_low": micro.low,
        "accuracy_high": micro.high,
        "macro_accuracy": macro.value,
        "model_seconds": clock.seconds,
        "by_subject": pd.Series(correct).groupby(names).mean().to_dict(),
        "engine": getattr(lm, "fallback_reason", "lm-eval's own path") or "shared prefixes",
    }
