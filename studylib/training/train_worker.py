"""One process of a training on several cards: `python -m studylib.training.train_worker FOLDER`.

Started by studylib.training.distributed through a launcher that sets RANK, LOCAL_RANK and
WORLD_SIZE. It trains its share of every step by the very code of a run on one card.

Not covered: starting the processes, and what their results become (studylib.training.distributed).
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

from studylib.core.errors import first_line
from studylib.core.launch import sharded
from studylib.inputs.data import prepare_data
from studylib.metering import allocator
from studylib.modelling.added import settled_dtypes
from studylib.modelling.methods import attach
from studylib.modelling.models import load_model
from studylib.modelling.packing import read_apart
from studylib.modelling.token_loss import LossTrial
from studylib.modelling.weights import TRAINED
from studylib.schema.records import write_atomically
from studylib.schema.spec import RunSpec
from studylib.training.distributed import JOB, STEPS
from studylib.training.train import Diverged, StepLog, is_out_of_memory, train_model


def main(folder: Path) -> None:
    job = json.loads((folder / JOB).read_bytes())
    end_with(job["parent"])
    rank = int(os.environ["RANK"])
    result: dict[str, Any] = {"status": "complete", "reason": None}
    try:
        train_share(job, folder, rank)
    except Diverged as error:
        result = {"status": "diverged", "reason": str(error)}
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        result = {"status": "out of memory", "reason": f"process {rank}: {first_line(error)}"}
    allocated_bytes, reserved_bytes, _ = allocator.read_peaks()
    result["torch_peak_allocated_bytes"] = allocated_bytes
    result["torch_peak_reserved_bytes"] = reserved_bytes
    write_atomically(folder / f"worker-{rank}.json", json.dumps(result).encode())
    # The others may wait for this process's share; only its end tells the launcher.
    sys.exit(0 if result["status"] == "complete" else 3)


def train_share(job: dict[str, Any], folder: Path, rank: int) -> None:
    """Load, attach, train; the first process keeps the log and writes the trained weights."""
    spec, logged_steps = RunSpec.model_validate(job["run"]), job["rows"]
    recipe = spec.train
    # A divided model is put together on the host and sent to the cards by the launcher's plugin.
    device = torch.device("cpu") if sharded() else None
    loaded = load_model(
        spec.model_ref, spec.method, spec.weights_dtype, spec.seed, recipe.attention, device,
        probe=False,
    )  # fmt: skip
    if job["apart"]:
        read_apart(loaded.model)
    model = attach(loaded.model, spec.method, spec.seed)
    data = prepare_data(spec.data, recipe, loaded.tokenizer, spec.seed)
    with (folder / STEPS).open("a", encoding="utf-8", buffering=1) as steps:

        def note(content: dict[str, Any]) -> None:
            if rank == 0:
                steps.write(json.dumps(content) + "\n")

        earlier = [{"step": step} for step in range(1, logged_steps + 1)]
        trainer = train_model(
            model, data, spec, folder, StepLog(earlier),
            on_step=note, on_save=lambda step: note({"saved": step}),
            trial=LossTrial(**job["loss"]),
        )  # fmt: skip
    save_trained(trainer, spec, folder / TRAINED, rank)


def save_trained(trainer: Any, spec: RunSpec, folder: Path, rank: int) -> None:
    """Gather what was trained and write it once, in the precision in which it will be served."""
    accelerator = trainer.accelerator
    state = accelerator.get_state_dict(trainer.model_wrapped)  # all processes take part
    if rank == 0:
        model = accelerator.unwrap_model(trainer.model_wrapped)
        if spec.weights_dtype != spec.train.dtype:
            state = {name: tensor.to(torch.bfloat16) for name, tensor in state.items()}
            model.config.dtype = torch.bfloat16
        settled = settled_dtypes(model)
        state = {name: tensor.to(settled.get(name, tensor.dtype)) for name, tensor in state.items()}
        model.save_pretrained(folder, state_dict=state)
    accelerator.wait_for_everyone()


def end_with(parent: int) -> None:
    """End when the notebook's process has died, so that no card is held by what nobody watches."""

    def watch() -> None:
        while True:
            try:
                os.kill(parent, 0)
            except OSError:
                os._exit(1)
            time.sleep(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
