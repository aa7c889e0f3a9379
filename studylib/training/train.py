"""One training path for all methods: transformers' Trainer over packed rows, on accelerate.

Not covered: what differs between methods (studylib.modelling.methods), what a run does before and
after (studylib.training.run).
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from studylib.core.launch import processes, refuse_left_over, sharded
from studylib.inputs.data import TrainingData, row_multiple
from studylib.metering.step_clock import StepClock
from studylib.modelling.attention import MASKED
from studylib.modelling.chunked_loss import install_chunked_loss, slices_head_alone
from studylib.modelling.token_loss import LossTrial, gives_token_mean, loss_of_outputs
from studylib.modelling.weights import multiply_in
from studylib.schema.profile import RunSpec
from studylib.training.checkpoints import newest_checkpoint
from studylib.training.collate import PackedCollator
from studylib.training.optimizer import (
    make_own,
    name_optimizer,
    name_schedule,
    rise_from_above_zero,
    warmup_steps,
)
from studylib.training.step_memory import WATCHED_STEP, StepMemory

WARMUP_STEPS = 3  # left out of clean step times: allocator and kernels settle
OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)
# What is said where it is not torch's allocator on the card that finds no room: by CUDA and its
# driver (a kernel's code, a stream), cuBLAS (its handle), Triton, and torch's allocator on the CPU.
NO_ROOM = re.compile(
    r"(CUDA|driver) error: out of memory|\[CUDA\]: out of memory|CUBLAS_STATUS_ALLOC_FAILED"
    r"|can't allocate memory"
)
# Liger's fused loss alone: its other kernels would change more than the profile's key says.
LIGER_LOSS = dict.fromkeys(
    ("rope", "rms_norm", "layer_norm", "swiglu", "geglu", "cross_entropy"), False
) | {"fused_linear_cross_entropy": True}


def is_out_of_memory(error: BaseException) -> bool:
    """Also what raises a plain RuntimeError where there is no room left."""
    return isinstance(error, OUT_OF_MEMORY) or bool(NO_ROOM.search(str(error)))


class Diverged(Exception):
    """Loss, gradients or weights are no longer finite numbers: a result, not a bug."""


@dataclass
class StepLog:
    """Per-step figures of all sessions, and bytes counted at one step (StepMemory's names)."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    memory: dict[str, int] = field(default_factory=dict)


def build_trainer(
    model: nn.Module,
    data: TrainingData,
    spec: RunSpec,
    folder: Path,
    callbacks: list[Any],
    clock: StepClock,
    checkpoints: bool = True,
    trial: LossTrial | None = None,
) -> Any:
    """A Trainer that takes the rows in their order and saves a checkpoint every so many steps.

    In one of several processes it takes its share of every step's rows. trial: what the model
    showed where it was whole (None: try it here).
    """
    from accelerate.utils import AutocastKwargs
    from torch.utils.data import SequentialSampler
    from transformers import PrinterCallback, Trainer, TrainingArguments

    class OrderedTrainer(Trainer):
        """Order and rates are the study's: its data's order, and no update at rate zero."""

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return SequentialSampler(data.rows)

        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            schedule = super().create_scheduler(num_training_steps, optimizer)
            self.lr_scheduler = rise_from_above_zero(schedule, warmup_steps(recipe))
            return self.lr_scheduler

        def create_optimizer(self, model: Any = None) -> Any:
            self.optimizer = self.optimizer or make_own(self, spec)
            return super().create_optimizer(model)

        def get_batch_samples(self, *words: Any, **options: Any) -> Any:
            clock.start()
            fetched = super().get_batch_samples(*words, **options)
            clock.fetched()
            return fetched

    recipe, on_card = spec.train, torch.cuda.is_available()
    switches: dict[str, Any] = {}
    if recipe.checkpointing and not sharded():  # sharding wraps its layers for that itself
        switches["gradient_checkpointing"] = True
        switches["gradient_checkpointing_kwargs"] = {"use_reentrant": False}
    if on_card:
        switches["tf32"] = recipe.tf32
    if processes() > 1:
        switches["ddp_backend"] = "nccl" if on_card else "gloo"
        switches["ddp_find_unused_parameters"] = False
    trial = trial or try_loss(model, recipe.loss)
    if recipe.loss == "chunked":
        install_chunked_loss(model, trial.head_alone)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.micro_batch,
        gradient_accumulation_steps=recipe.accumulation // processes(),
        learning_rate=spec.learning_rate,
        lr_scheduler_type=name_schedule(recipe),
        warmup_steps=warmup_steps(recipe),
        weight_decay=recipe.weight_decay,
        max_grad_norm=recipe.max_grad_norm,
        optim=name_optimizer(spec),
        bf16=multiplies_mixed(spec, sharded()),
        torch_compile=recipe.compile,
        use_liger_kernel=recipe.loss == "liger",
        liger_kernel_config=LIGER_LOSS if recipe.loss == "liger" else None,
        **switches,
        save_strategy="steps" if checkpoints else "no",
        save_steps=recipe.checkpoint_every,
        save_total_limit=2,
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        seed=spec.seed,
        data_seed=spec.seed,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_num_workers=0,
        dataloader_pin_memory=on_card,
        use_cpu=not on_card,
    )
    trainer = OrderedTrainer(
        model=model,
        args=arguments,
        train_dataset=data.rows,
        data_collator=PackedCollator(recipe.attention not in MASKED, row_multiple(on_card)),
        callbacks=callbacks,
        compute_loss_func=None if trial.own or recipe.loss != "full" else loss_of_outputs,
    )
    trainer.remove_callback(PrinterCallback)  # it prints every step; the log keeps them
    if on_card:  # accelerate turns TF32 on for a compiled model, whatever was asked
        multiply_in(recipe.tf32)
    # Autocast would keep a bf16 copy of every fp32 weight until the loss is there, to use it again;
    # a pass uses each weight once.
    trainer.accelerator.autocast_handler = AutocastKwargs(cache_enabled=False)
    return trainer


def try_loss(model: nn.Module, loss: str) -> LossTrial:
    """What a whole model shows of its loss; raises StudyError where it cannot train by `loss`."""
    own = loss == "liger" or gives_token_mean(model)  # liger replaces the model's own
    return LossTrial(own, slices_head_alone(model) if loss == "chunked" else None)


def build_callback(
    log: StepLog,
    data: TrainingData,
    spec: RunSpec,
    on_step: Callable[[dict[str, Any]], None],
    clock: StepClock,
) -> Any:
    """Times steps, keeps losses, stops at a loss that is not finite, and tells `on_step`."""
    from transformers import TrainerCallback

    rows_a_step = spec.train.accumulation * spec.train.micro_batch
    tokens = [sum(len(e["input_ids"]) for e in row) for row in data.rows]

    memory, alone = StepMemory(log.memory), processes() == 1

    class Watch(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.session_start = state.global_step
            log.rows[:] = [row for row in log.rows if row["step"] <= state.global_step]

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step - self.session_start == WATCHED_STEP - 1 and alone:
                memory.begin(kwargs["model"], kwargs["optimizer"])

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock.optimizer_begins()

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock.optimizer_ends()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock.stop()
            memory.end()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "loss" not in logs:
                return
            step = state.global_step
            seen = tokens[(step - 1) * rows_a_step : step * rows_a_step]
            row = {
                "step": step,
                "step_in_session": step - self.session_start,
                "loss": float(logs["loss"]),
                "learning_rate": float(logs["learning_rate"]),
                "grad_norm": float(logs.get("grad_norm", math.nan)),
                "step_seconds": clock.step_seconds,
                "data_seconds": clock.data_seconds,
                "optimizer_seconds": clock.optimizer_seconds,
                "tokens": sum(seen),
            }
            if not math.isfinite(row["loss"]):
                raise Diverged(f"the loss is {row['loss']} at step {step}")
            if "grad_norm" in logs and not math.isfinite(row["grad_norm"]):
                raise Diverged(f"the gradient's norm is {row['grad_norm']} at step {step}")
            log.rows.append(row)
            on_step(row)

    return Watch()


def multiplies_mixed(spec: RunSpec, divided: bool) -> bool:
    """Whether matrices are multiplied in bf16 by autocast, or by FSDP's mixed precision (divided).

    FSDP keeps trained weights in fp32 under it; without master weights it must not be asked for.
    """
    if spec.train.dtype != "bf16":
        return False
    return not divided or spec.method.kind.adapter or spec.train.master_weights


def train_model(
    model: nn.Module,
    data: TrainingData,
    spec: RunSpec,
    folder: Path,
    log: StepLog,
    on_step: Callable[[dict[str, Any]], None] = lambda row: None,
    on_save: Callable[[int], None] = lambda step: None,
    checkpoints: bool = True,
    trial: LossTrial | None = None,
) -> Any:
    """Train in place, from the newest whole checkpoint in `folder` if any; the last step has none.

    Returns the Trainer, for what only it can do (gathering shards). Raises Diverged, also where the
    last update left weights that are not finite.
    """
    from peft.helpers import disable_input_dtype_casting
    from transformers import TrainerCallback

    refuse_left_over()

    class Saved(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            # Nothing goes on from the last step, and its writing would count as training: three
            # times the weights, more than a small machine's disk has.
            if state.global_step >= state.max_steps:
                control.should_save = False

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            on_save(state.global_step)

    clock, forwards = StepClock(), own_forwards(model)
    watch = build_callback(log, data, spec, on_step, clock)
    trainer = build_trainer(model, data, spec, folder, [watch, Saved()], clock, checkpoints, trial)
    checkpoint = newest_checkpoint(folder, len(log.rows))
    # With a cache, transformers takes restarting positions for one sequence, and packed examples
    # would attend to each other.
    model.config.use_cache = False  # type: ignore[union-attr]
    model.train()
    # Autocast rounds an adapter's inputs; peft would widen them before, only to be rounded again.
    with disable_input_dtype_casting(model, active=trainer.args.bf16 and trainer.args.use_cpu):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    for module, forward in forwards:
        module.__dict__.pop("_original_forward", None)
        module.__dict__.pop("forward", None)
        if forward is not None:
            module.forward = forward
    refuse_broken_weights(model)
    return trainer


def refuse_broken_weights(model: nn.Module) -> None:
    """Raise Diverged where a trained weight is not finite: no loss has shown the last update.

    Of a divided model each process looks at its own part.
    """
    for name, parameter in model.named_parameters():
        held: Any = getattr(parameter, "ds_tensor", parameter.detach())  # ZeRO-3 keeps parts there
        part = held.to_local() if hasattr(held, "to_local") else held
        if parameter.requires_grad and part.numel():
            lowest, highest = torch.aminmax(part)  # one pass, and nothing of the weight's size
            if not torch.isfinite(torch.stack([lowest, highest])).all():
                raise Diverged(f"the last update left {name} with values that are not finite")


def own_forwards(model: Any) -> list[tuple[Any, Any]]:
    """The model, and what an adapter wraps, with the forward that each was given, if any.

    Training replaces them (autocast, fp32 outputs, a chunked loss). A model that is scored computes
    as one that was never trained, or was loaded after its training, does.
    """
    modules = [model, model.get_base_model()] if hasattr(model, "get_base_model") else [model]
    return [(module, module.__dict__.get("forward")) for module in modules]


def summarise_steps(log: StepLog) -> dict[str, float | int | None]:
    """Clean step time (median), clean tokens/s, first loss and the mean of the last tenth, and the
    shares of the optimizer and of fetching rows in the clean steps' seconds."""
    rows = log.rows
    clean = [row for row in rows if row["step_in_session"] > WARMUP_STEPS]
    seconds = [row["step_seconds"] for row in clean]
    tail = [row["loss"] for row in rows[-max(1, len(rows) // 10) :]]

    def share(part: str) -> float | None:
        return sum(row[part] for row in clean) / sum(seconds) if seconds else None

    return {
        "optimizer_share": share("optimizer_seconds"),
        "data_share": share("data_seconds"),
        "clean_step_seconds": statistics.median(seconds) if seconds else None,
        "clean_steps": len(seconds),
        "tokens_per_second": sum(r["tokens"] for r in clean) / sum(seconds) if seconds else None,
        "first_loss": rows[0]["loss"] if rows else None,
        "last_loss": statistics.fmean(tail) if tail else None,
    }
