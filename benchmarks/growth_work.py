"""The work whose growth `growth.py` measures: a function each, from a size to what it took.

Every work is one process from its start to its end, as a user starts it; what it reads is made
before. Runs on Ray's nodes sleep: the nodes share this machine's cores, and what is measured is
what the executor adds.

Not covered: what the figures are held against (growth.py).
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import yaml
from data_prep import say
from spending import ROOT, Spent, spend

SMALLEST = {
    "question": "How does it grow?",
    "models": ["ladder:0.4m"],
    "methods": ["full", "lora"],
    "hardware": {"jobs": 1, "threads": 1, "gpus": 0},
    "data": {"source": "almanac:new", "template": "plain"},
    "train": {"steps": 4, "seq_len": 128, "learning_rates": {"full": 1e-3, "lora": 5e-3}},
    "evaluate": {"questions": "almanac:new", "scoring": "text", "shots": 0, "limit": 2},
}
STEP_ROWS = 4  # of 128 tokens in a step
SLEEP_SECONDS, RUNS_A_NODE = 20.0, 4
# All that a run does with its examples before the first step: one epoch of them, held-out left out.
PREPARE = """
import sys
from pathlib import Path
from studylib.inputs.data import prepare_data
from studylib.inputs.sources import model_folder
from studylib.modelling.models import load_tokenizer
from studylib.schema.profile import DataSettings, TrainSettings
from studylib.schema.settings import ModelRef
tokenizer = load_tokenizer(model_folder(ModelRef.parse("ladder:0.4m"))[0])
data = DataSettings(source=sys.argv[1], template="plain", held_out=10)
made = prepare_data(data, TrainSettings(steps=int(sys.argv[2]), seq_len=512), tokenizer, 0)
assert made.drawn == made.examples == int(sys.argv[3]) - made.skipped - 20, made.drawn
"""
# Python imports it at its start, from PYTHONPATH: in place of a run it sleeps and leaves a record.
SLEEPER = """
import os, sys, time
from pathlib import Path
if sys.orig_argv[1:4] == ["-m", "studylib", "run"]:
    time.sleep({seconds})
    Path("results/sleep/runs", sys.orig_argv[4], "record.json").write_text("{{}}")
    os._exit(0)
"""


def train_tokens(tokens: int, folder: Path) -> Spent:
    """`study run` of full fine-tuning on so many tokens, a 0.4M-parameter model."""
    steps = tokens // (128 * STEP_ROWS)
    train = SMALLEST["train"] | {"steps": steps, "micro_batch": STEP_ROWS, "accumulation": 1}
    profile = write_profile(folder, "grown", train=train | {"checkpoint_every": steps})
    words = ["run", "ladder-0.4m--full--s0", "--profile", str(profile), "--results", str(folder)]
    return spend(["-m", "studylib", *words])


def prepare_examples(count: int, folder: Path) -> Spent:
    """Reading, checking, holding out, tokenising and packing so many prompts with answers."""
    rng, file = random.Random(0), folder / "train.jsonl"
    words = [f"{a}{b}" for a in ("ba", "do", "ki", "lu", "me", "no") for b in ("n", "r", "st", "")]
    with file.open("w", encoding="utf-8") as lines:
        for number in range(count):
            row = {"prompt": f"{number} {say(words, rng, 12)}", "completion": say(words, rng, 12)}
            lines.write(json.dumps(row) + "\n")
    # A prompt has about 75 tokens of this small vocabulary: more rows than an epoch fills.
    rows = max(20, count // 5)
    return spend(["-c", PREPARE, str(file), str(rows), str(count)])


def report_records(count: int, folder: Path) -> Spent:
    """`study report` of so many records, made as the tests make them."""
    record_factory = import_from_tests("record_factory")
    factory = record_factory.Factory(folder / "many", items=32)
    for seed in range(count // 2):
        for method in ("full", "lora"):
            factory.add(record_factory.make_spec(method, seed=seed, profile="many"))
    words = ["report", "--profile", "many", "--results", str(folder)]
    return spend(["-m", "studylib", *words])


def plan_runs(count: int, folder: Path) -> Spent:
    """`study plan` of so many runs, none of which has begun."""
    profile = write_profile(folder, "many", seeds=list(range(count // 2)))
    words = ["plan", "--profile", str(profile), "--results", str(folder / "results")]
    return spend(["-m", "studylib", *words])


def spread_runs(nodes: int, folder: Path) -> Spent:
    """Four runs of 20 s a node, sent to so many nodes of one core on this machine."""
    from studylib.running.executor import Outcome, Task
    from studylib.running.progress import Progress
    from studylib.running.ray_executor import RayExecutor
    from studylib.schema.settings import Hardware

    code, results = folder / "code", folder / "results"
    code.mkdir()
    (code / "sitecustomize.py").write_text(SLEEPER.format(seconds=SLEEP_SECONDS))
    profile = write_profile(results / "sleep", "sleep")
    runs = [results / "sleep" / "runs" / f"sleep-{i}" for i in range(RUNS_A_NODE * nodes)]
    tasks = [
        Task(run.name, ("run", run.name), run, run / "record.json", str(profile), results)
        for run in runs
    ]
    outcome, progress = Outcome(), Progress()
    ray_nodes = import_from_tests("ray_nodes")  # its settings are read when ray is imported
    environ = {**ray_nodes.SETTINGS, "PYTHONPATH": f"{code}{os.pathsep}{ROOT}"}
    with (
        patch.dict(os.environ, environ),
        Path(os.devnull).open("w") as nowhere,
        redirect_stdout(nowhere),
        ray_nodes.start_nodes(nodes) as cluster,
        RayExecutor(cluster.address) as execute,
    ):
        cpu, begun = time.process_time(), time.perf_counter()
        progress.begin_tasks("sleep", len(tasks), None)
        execute(tasks, Hardware(jobs=1, threads=1, gpus=0), progress, outcome)
        spent = Spent(time.process_time() - cpu, time.perf_counter() - begun, 0)
    assert len(outcome.finished) == len(tasks), outcome.failed
    return spent


def write_profile(folder: Path, name: str, **changes: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"name": name, **SMALLEST, **changes}), encoding="utf-8")
    return path


def import_from_tests(name: str) -> ModuleType:
    import importlib

    sys.path.insert(0, str(ROOT / "tests"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)
