"""Train one run on several cards: a process a card, started from the run's own notebook.

The notebook's process writes what is to be done (job.json) into the run's work folder, starts
`accelerate launch` (FSDP2, DeepSpeed's ZeRO-3 or plain copies, as the profile says), follows the
steps that the first process writes down, and reads at the end what each process left. Measuring
stays with the notebook: NVML sees all cards, whoever computes on them.

Where there is no card the processes talk by gloo and each holds the whole model, since accelerate
divides models on cards only; the tests use that.

Not covered: the training in each process (studylib.training.train_worker), machines beyond this
one.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from studylib.core.errors import StudyError
from studylib.core.launch import mark_launched
from studylib.core.places import python_path
from studylib.inputs.extras import refuse_without_card
from studylib.metering.devices import hold_cards
from studylib.modelling.models import Loaded
from studylib.modelling.weights import TRAINED
from studylib.schema.records import write_atomically
from studylib.schema.spec import RunSpec
from studylib.training.train import Diverged, StepLog, multiplies_mixed, try_loss

JOB, STEPS, LOG = "job.json", "worker-steps.jsonl", "workers.log"
POLL_SECONDS = 0.2
Row = dict[str, Any]
AS_USUAL = {"apart": False, "loss": {"own": True, "head_alone": True}}


class WorkerFailed(Exception):
    """A process of a training ended without a result: a bug, or it was killed."""


def take_cards(spec: RunSpec) -> None:
    """Leave this process the cards that the run asks for; raise where there are too few, none for
    what computes on cards alone or, since CUDA has started before, too many in sight."""
    hold_cards(spec.gpus)
    here = torch.cuda.device_count()
    if here > max(spec.gpus, 1) or (here < spec.gpus and spec.gpus > 1):
        raise StudyError(
            f"{spec.run_id}: {spec.gpus} cards",
            f"this process sees {here}",
            "Run it on a larger machine or change hardware.gpus and gpus_of; where there are more, "
            "start anew with CUDA_VISIBLE_DEVICES naming as many.",
        )
    if here == 0:
        refuse_without_card(spec)


def try_model(spec: RunSpec, loaded: Loaded) -> dict[str, Any]:
    """What a whole model shows of how its parts must be trained.

    apart: packed examples must be read one by one. loss: a LossTrial.
    """
    trial = try_loss(loaded.model, spec.train.loss)
    return {"apart": loaded.packing_reason is not None, "loss": trial.as_json()}


def train_on_cards(
    spec: RunSpec,
    folder: Path,
    processes: int,
    log: StepLog,
    on_step: Callable[[Row], None] = lambda row: None,
    on_save: Callable[[int], None] = lambda step: None,
    found: dict[str, Any] = AS_USUAL,
) -> dict[str, int]:
    """Train in `processes` processes, from the newest whole checkpoint in `folder` if there is one.

    found: what `try_model` says of the model, which no process can try that holds a part of it.
    Leaves the trained weights in FOLDER/trained. Returns torch's peaks in bytes, summed over the
    processes, where there is a card. Raises Diverged, torch.OutOfMemoryError, or WorkerFailed with
    the log's last lines.
    """
    job = {"run": spec.model_dump(mode="json"), "rows": len(log.rows), "parent": os.getpid()}
    job |= found
    write_atomically(folder / JOB, json.dumps(job).encode())
    for path in (folder / STEPS, *folder.glob("worker-*.json")):
        path.unlink(missing_ok=True)
    (folder / STEPS).touch()
    shutil.rmtree(folder / TRAINED, ignore_errors=True)
    with (folder / LOG).open("ab") as output:
        process = subprocess.Popen(
            launch_words(spec, folder, processes),
            stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=worker_environment(),
        )  # fmt: skip
    try:
        follow_steps(process, folder / STEPS, log, on_step, on_save)
    finally:
        process.terminate()
        process.wait()
    return read_results(folder, processes)


def launch_words(spec: RunSpec, folder: Path, processes: int) -> list[str]:
    """The command that starts the processes."""
    module = ["-m", "studylib.training.train_worker", str(folder)]
    if not torch.cuda.is_available():
        start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        return [sys.executable, *start, *module]
    config = folder / "accelerate.yaml"
    write_atomically(config, yaml.safe_dump(launch_config(spec, processes)).encode())
    start = ["-m", "accelerate.commands.launch", "--config_file", str(config)]
    return [sys.executable, *start, *module]


def launch_config(spec: RunSpec, processes: int) -> dict[str, Any]:
    """accelerate's configuration: how the model is divided, by the profile alone."""
    recipe = spec.train
    mixed = multiplies_mixed(spec, divided=spec.hardware.sharding != "none")
    config: dict[str, Any] = {
        "compute_environment": "LOCAL_MACHINE",
        "num_machines": 1,
        "num_processes": processes,
        "machine_rank": 0,
        "main_process_port": 0,  # any free one
        "mixed_precision": "bf16" if mixed else "no",
        "use_cpu": False,
        "rdzv_backend": "static",
        "same_network": True,
    }
    if spec.hardware.sharding == "fsdp":
        return config | {
            "distributed_type": "FSDP",
            "fsdp_config": {
                "fsdp_version": 2,
                "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
                "fsdp_reshard_after_forward": True,
                "fsdp_activation_checkpointing": recipe.checkpointing,
                "fsdp_cpu_ram_efficient_loading": True,
                "fsdp_offload_params": False,
                "fsdp_state_dict_type": "SHARDED_STATE_DICT",
            },
        }
    if spec.hardware.sharding == "zero3":
        return config | {
            "distributed_type": "DEEPSPEED",
            "deepspeed_config": {
                "zero_stage": 3,
                "zero3_init_flag": False,
                "zero3_save_16bit_model": True,
                "gradient_accumulation_steps": recipe.accumulation // processes,
                "gradient_clipping": recipe.max_grad_norm,
                "offload_optimizer_device": "none",
                "offload_param_device": "none",
            },
        }
    return config | {"distributed_type": "MULTI_GPU"}


def worker_environment() -> dict[str, str]:
    environ = {**os.environ, "PYTHONPATH": python_path(), "TOKENIZERS_PARALLELISM": "false"}
    mark_launched(environ)
    return environ


def follow_steps(
    process: subprocess.Popen[bytes],
    path: Path,
    log: StepLog,
    on_step: Callable[[Row], None],
    on_save: Callable[[int], None],
) -> None:
    """Take over each step and checkpoint that the first process writes down, until it ends."""
    with path.open("r", encoding="utf-8") as file:
        pending, running = "", True
        while running:
            running = process.poll() is None
            pending += file.read()  # once more after the end
            *whole, pending = pending.split("\n")
            for line in whole:
                told = json.loads(line)
                if "saved" in told:
                    on_save(told["saved"])
                else:
                    log.rows[:] = [row for row in log.rows if row["step"] < told["step"]] + [told]
                    on_step(told)
            if running:
                time.sleep(POLL_SECONDS)


def read_results(folder: Path, processes: int) -> dict[str, int]:
    """The sum of what the processes left; their common fault is raised here."""
    paths = [folder / f"worker-{rank}.json" for rank in range(processes)]
    results = [json.loads(path.read_bytes()) for path in paths if path.is_file()]
    for result in results:
        if result["status"] == "diverged":
            raise Diverged(result["reason"])
        if result["status"] == "out of memory":
            raise torch.OutOfMemoryError(result["reason"])
    if len(results) < processes:
        raise WorkerFailed(
            f"{processes - len(results)} of {processes} processes ended without a result\n"
            + "\n".join(tail_of_log(folder / LOG))
        )
    keys = ("torch_peak_allocated_bytes", "torch_peak_reserved_bytes")
    known = {key: [result[key] for result in results] for key in keys}
    return {key: sum(peaks) for key, peaks in known.items() if None not in peaks}


def tail_of_log(log: Path) -> list[str]:
    """The 40 lines at the end of what the processes said, before the launcher's own 40 or more."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    ends = [number for number, line in enumerate(lines) if "failed (exitcode: " in line]
    return lines[: ends[-1] if ends else None][-40:]
