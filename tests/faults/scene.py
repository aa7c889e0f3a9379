"""A small study to be struck: what an undisturbed one gives, and whether another gave the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import yaml

from studylib.schema.records import check_files, read_record
from studylib.training.checkpoints import checkpoint_step, is_whole_checkpoint

ROOT = Path(__file__).parents[2]
RUN = "ladder-0.4m--lora-r16--s0"
STEPS, EVERY = 12, 4
TOKEN = "hf_" + "plantedPLANTEDplanted0123456789"  # stands for a reader's secret
# Names of the study's own stages, as progress.json has them.
STAGES = ("loading", "training", "evaluating", "serving", "writing")


def write_profile(folder: Path, **changes) -> Path:
    """A study of one short training; it takes some seconds."""
    content = {
        "name": "struck", "question": "Is anything lost?", "models": ["ladder:0.4m"],
        "methods": ["lora"], "hardware": {"jobs": 1, "threads": 1, "gpus": 0},
        "data": {"source": "almanac:new", "template": "plain", "facts": 16},
        "train": {"steps": STEPS, "seq_len": 64, "checkpoint_every": EVERY,
                  "learning_rates": {"lora": 5e-3}},
        "evaluate": {"questions": "almanac:new", "scoring": "text", "shots": 0, "limit": 2},
        "keep": "adapters", **changes,
    }  # fmt: skip
    path = folder / "struck.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def essence(run: Path) -> dict:
    """What a disturbance must not change: all that is learned and answered, and none of the times.

    The record is read as the report reads it, with its tables' hashes.
    """
    record = read_record(run / "record.json")
    check_files(run, record)
    losses = pd.read_parquet(run / "steps.parquet")["loss"] if record.train else []
    return {
        "status": record.status,
        "steps": record.train and record.train.steps,
        "losses": list(losses),
        "scores": record.evaluate.scores,
        "items": record.files["items.parquet"],
        "weights": record.kept and record.kept.sha256,
    }


class Kept:
    """What a run had finished when it was struck; `lost` names what is done again all the same."""

    def __init__(self, run: Path) -> None:
        self.record = read_bytes(run / "record.json")
        self.trained = (run / "work" / "trained" / "whole").is_file()
        whole = filter(is_whole_checkpoint, (run / "work").glob("checkpoint-*"))
        self.step = max(map(checkpoint_step, whole), default=0)

    def lost(self, run: Path) -> str | None:
        """Ask it when the run is done. A checkpoint that is ahead of the step log may be left."""
        if self.record is not None:
            return None if read_bytes(run / "record.json") == self.record else "its record"
        train = read_record(run / "record.json").train
        resumed = train.resumed_at_steps if train else ()
        if self.trained or not resumed or max(resumed) >= self.step - EVERY:
            return None
        return f"steps {max(resumed)} to {self.step}"


def read_bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def study(*words: object, environ: dict | None = None) -> subprocess.Popen:
    """`study WORDS…` in a process group of its own, as a terminal starts it."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    everything = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **(environ or {})}
    return subprocess.Popen(
        [sys.executable, "-m", "studylib", *map(str, words)], env=everything,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
