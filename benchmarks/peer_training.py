"""Train one model by this study's path or as one writes it by hand, with a result of one form.

Every peer gets the same weights, the same tokenised examples in the same order, and the same
examples in every update; a padded peer gets an update's examples in micro-batches instead of packed
rows. Losses are means over an update's answer tokens, so that the first update's loss must agree.
A step runs from fetching its examples to the end of its update.

Not covered: other libraries (peer_libraries.py), the order of peers and their table (peers.py),
several cards.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import DataCollatorForSeq2Seq, PrinterCallback, Trainer, TrainerCallback
from transformers import TrainingArguments as Arguments

from studylib.core.measure import StageMeasure
from studylib.inputs.data import TrainingData, prepare_data
from studylib.metering.devices import refuse_busy_devices
from studylib.metering.environment import device_name, package_versions
from studylib.metering.meter import Meter
from studylib.metering.step_clock import StepClock
from studylib.modelling.flops import count_token_flops
from studylib.modelling.methods import adapter_config, keep_unpacked, trainable_and_total
from studylib.modelling.models import Loaded, load_model
from studylib.modelling.weights import bring_in
from studylib.planning.catalog import match_gpu
from studylib.schema.spec import RunSpec
from studylib.training.optimizer import name_optimizer
from studylib.training.step_memory import WATCHED_STEP, StepMemory
from studylib.training.train import (
    WARMUP_STEPS,
    StepLog,
    multiplies_mixed,
    train_model,
)


class NotSupported(Exception):
    """The peer has no way to do this job: a word in its row."""


@dataclass
class PeerResult:
    """What one peer did in one process. `tokens` and `positions` (padding included) by step;
    cpu_seconds: of all its threads from the end of the step before, none for the first.

    status: complete, out of memory, not supported, not installed, failed. Peaks are in `measure`,
    the meter's figures of the training stage. same_batches: updates hold the agreed examples.
    """

    peer: str
    status: str = "complete"
    reason: str | None = None
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    same_batches: bool = True
    trainable_params: int | None = None
    flops_per_token: float | None = None
    peak_flops_per_second: float | None = None
    measure: StageMeasure | None = None
    load_seconds: float | None = None
    device: str | None = None
    packages: dict[str, str] = field(default_factory=dict)

    @property
    def first_loss(self) -> float | None:
        """Of the first update, before any weight has changed."""
        return self.losses[0] if self.losses else None

    @property
    def last_loss(self) -> float | None:
        """Mean of the last updates, as many as the warm-up has."""
        last = self.losses[-WARMUP_STEPS:]
        return sum(last) / len(last) if last else None

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens without padding by second, after the warm-up steps; None if none came after."""
        seconds = sum(self.seconds[WARMUP_STEPS:])
        return sum(self.tokens[WARMUP_STEPS:]) / seconds if seconds else None

    @property
    def tokens_per_cpu_second(self) -> float | None:
        """The same by the processor's time, which others on the machine stretch far less."""
        seconds = sum(self.cpu_seconds[WARMUP_STEPS - 1 :])
        return sum(self.tokens[WARMUP_STEPS:]) / seconds if seconds else None

    def to_json(self) -> str:
        measure = self.measure.model_dump(mode="json") if self.measure else None
        return json.dumps({**asdict(self), "measure": measure})

    @classmethod
    def from_json(cls, text: str) -> PeerResult:
        content = json.loads(text)
        if content["measure"] is not None:
            content["measure"] = StageMeasure(**content["measure"])
        return cls(**content)


class Batches(NamedTuple):
    """The examples of all updates in order, and for each micro-batch the places of its own."""

    examples: list[dict[str, list[int]]]
    places: list[list[int]]
    accumulation: int

    @property
    def smallest(self) -> int:
        return min(map(len, self.places))

    @property
    def largest(self) -> int:
        return max(map(len, self.places))


def unpack(data: TrainingData, spec: RunSpec) -> Batches:
    """The examples of each update's packed rows, in equally many micro-batches for every update.

    Micro-batches hold micro_batch examples or nearly: packed rows hold now more, now fewer.
    """
    rows = spec.train.micro_batch * spec.train.accumulation
    updates = [
        [example for row in data.rows[i : i + rows] for example in row]
        for i in range(0, len(data.rows), rows)
    ]
    counts = [len(update) for update in updates]
    accumulation = min(min(counts), math.ceil(max(counts) / spec.train.micro_batch))
    places, start = [], 0
    for count in counts:
        ends = [start + round(count * (i + 1) / accumulation) for i in range(accumulation)]
        begins = [start, *ends[:-1]]
        places += [list(range(a, b)) for a, b in zip(begins, ends, strict=True)]
        start += count
    return Batches([example for update in updates for example in update], places, accumulation)


class Job:
    """One peer's training under way: what it is given, what was seen of it."""

    def __init__(self, peer: str, spec: RunSpec, work: Path):
        self.result = PeerResult(peer, device=device_name(), packages=package_versions())
        self.spec, self.work = spec, work
        devices = None if torch.cuda.is_available() else []
        refuse_busy_devices(devices=devices)
        self.meter = Meter(devices=devices)
        self.clock, self.log = StepClock(), StepLog()
        self.fed: list[tuple[int, int]] = []  # (tokens, positions) of every micro-batch collated
        self.step_ended: float | None = None

    def load(self) -> Loaded:
        """The weights to start from, as the study loads them."""
        spec = self.spec
        with self.meter.stage("load"):
            return load_model(spec.model_ref, spec.method, spec.weights_dtype, spec.seed)

    def batches(self, tokenizer: Any) -> Batches:
        return unpack(self.prepare(tokenizer), self.spec)

    def prepare(self, tokenizer: Any) -> TrainingData:
        return prepare_data(self.spec.data, self.spec.train, tokenizer, self.spec.seed)

    def counted(self, collate: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """The collator, with what it makes counted."""

        def count(examples: Any) -> Any:
            batch = collate(examples)
            mask = batch.get("attention_mask")
            positions = batch["input_ids"].numel()
            self.fed.append((positions if mask is None else int(mask.sum()), positions))
            return batch

        return count

    def end_step(self, *_: Any) -> None:
        """Take the processor's time of a step, from the end of the one before."""
        ended = time.process_time()
        if self.step_ended is not None:
            self.result.cpu_seconds.append(ended - self.step_ended)
        self.step_ended = ended

    def finish(self, model: Any, accumulation: int) -> PeerResult:
        """The result, from what was seen."""
        result, steps = self.result, len(self.result.seconds)
        for update in range(steps):  # a loader may have collated one more than was trained on
            parts = self.fed[update * accumulation : (update + 1) * accumulation]
            result.tokens.append(sum(tokens for tokens, _ in parts))
            result.positions.append(sum(positions for _, positions in parts))
        result.trainable_params = trainable_and_total(model)[0]
        return result

    def close(self) -> PeerResult:
        """The result with the meter's figures, also when the training ended early."""
        stages = self.meter.stages
        if "load" in stages:
            self.result.load_seconds = stages["load"].wall_seconds
        if "train" in stages:
            peak = {"live_tensor_peak_bytes": self.log.memory.get("live_tensor_peak_bytes")}
            self.result.measure = stages["train"].model_copy(update=peak)
        card = match_gpu(device_name()) if torch.cuda.is_available() else None
        dtype: Any = self.spec.train.dtype
        self.result.peak_flops_per_second = card.flops_per_second(dtype) if card else None
        return self.result


def follow(job: Job, trainer: Any, batches: Batches | None) -> Any:
    """Make a Trainer of any make feed the agreed micro-batches, time its steps, keep its loss.

    batches None: its own loader stays, and its collator is counted.
    """
    fetch, memory = trainer.get_batch_samples, StepMemory(job.log.memory)
    trainer.data_collator = job.counted(trainer.data_collator)

    def fetch_timed(*words: Any, **options: Any) -> Any:
        job.clock.start()
        return fetch(*words, **options)

    def load_agreed() -> Any:
        assert batches is not None
        return torch.utils.data.DataLoader(
            trainer.train_dataset,
            batch_sampler=batches.places,  # type: ignore[arg-type]
            collate_fn=trainer.data_collator,
            pin_memory=torch.cuda.is_available(),
        )

    class Watch(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == WATCHED_STEP - 1:
                memory.begin(kwargs["model"], kwargs["optimizer"])

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            job.clock.stop()
            job.result.seconds.append(job.clock.step_seconds)
            job.end_step()
            memory.end()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" in logs:
                job.result.losses.append(float(logs["loss"]))

    trainer.get_batch_samples = fetch_timed
    if batches is not None:
        trainer.get_train_dataloader = load_agreed
    trainer.add_callback(Watch())
    trainer.remove_callback(PrinterCallback)
    return trainer


def settings(job: Job, accumulation: int) -> dict[str, Any]:
    """The recipe as transformers' arguments, for a Trainer and what is derived from it."""
    recipe, spec, on_card = job.spec.train, job.spec, torch.cuda.is_available()
    return {
        "output_dir": str(job.work / "trainer"),
        "max_steps": recipe.steps,
        "per_device_train_batch_size": recipe.micro_batch,
        "gradient_accumulation_steps": accumulation,
        "learning_rate": spec.learning_rate,
        "lr_scheduler_type": recipe.schedule,
        "warmup_steps": math.ceil(recipe.warmup_share * recipe.steps),
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.max_grad_norm,
        "optim": name_optimizer(spec),
        "bf16": multiplies_mixed(spec, divided=False),
        **({"tf32": recipe.tf32} if on_card else {}),  # without a card, transformers refuses it
        "gradient_checkpointing": recipe.checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if recipe.checkpointing else None,
        "logging_steps": 1,
        "save_strategy": "no",
        "seed": spec.seed,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": not on_card,
    }


def train_ours(job: Job) -> PeerResult:
    """This study's path: packed rows, its loss, its switches."""
    spec = job.spec
    with job.meter.stage("load"):
        loaded, model = bring_in(spec, None)
    data = job.prepare(loaded.tokenizer)
    flops = count_token_flops(model, data.lengths(), spec.train)
    job.result.flops_per_token = flops.model
    with job.meter.stage("train"):
        folder = job.work / "trainer"
        train_model(model, data, spec, folder, job.log, job.end_step, checkpoints=False)
    rows = job.log.rows
    job.result.seconds = [row["step_seconds"] for row in rows]
    job.result.losses = [row["loss"] for row in rows]
    job.fed = [(row["tokens"], row["tokens"]) for row in rows]
    return job.finish(model, 1)


def train_plain(job: Job, pad_to_seq_len: bool = False) -> PeerResult:
    """What one writes by hand: transformers' Trainer, peft's adapter, padded examples."""
    from peft import get_peft_model, prepare_model_for_kbit_training

    spec, loaded = job.spec, job.load()
    model: Any = loaded.model
    batches = job.batches(loaded.tokenizer)
    with job.meter.stage("train"):
        model.config.use_cache = False
        if spec.method.kind.quantized:
            model = prepare_model_for_kbit_training(
                model, use_gradient_checkpointing=spec.train.checkpointing
            )
        if spec.method.kind.adapter:
            torch.manual_seed(spec.seed)
            model = get_peft_model(model, adapter_config(spec.method, model))
        keep_unpacked(model)
        widths = {"padding": "max_length", "max_length": spec.train.seq_len}
        trainer = Trainer(
            model=model,
            args=Arguments(**settings(job, batches.accumulation), remove_unused_columns=False),
            train_dataset=batches.examples,  # type: ignore[arg-type]
            data_collator=DataCollatorForSeq2Seq(
                loaded.tokenizer, **(widths if pad_to_seq_len else {})
            ),
        )
        follow(job, trainer, batches).train()
    return job.finish(model, batches.accumulation)


def train_plain_fp32(job: Job) -> PeerResult:
    """The same by hand as it is without a word on precision: fp32 weights, fp32 products."""
    if job.spec.train.dtype == "fp32":
        raise NotSupported("the job is in fp32: this is `plain`")
    exact = job.spec.train.model_copy(update={"dtype": "fp32", "master_weights": False})
    job.spec = job.spec.model_copy(update={"train": exact})
    return train_plain(job)


def train_plain_padded(job: Job) -> PeerResult:
    """The same by hand, every example padded to seq_len."""
    return train_plain(job, pad_to_seq_len=True)
