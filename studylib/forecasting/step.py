"""The step that a trace runs: that of studylib.training.train, as operators on fake tensors.

transformers' model and loss (in full, or over slices of tokens), its checkpointing, accelerate's
autocast and fp32 outputs, gradient clipping and the optimizer. For published runs also the loss
that transformers had before 4.46: all logits in fp32, and a copy of them in order.

Not covered: compiled graphs, activation offloading, an optimizer fused into the backward.
"""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from types import MethodType
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional

from studylib.forecasting.cuda_autocast import checkpoint_contexts, cuda_autocast
from studylib.forecasting.job import StepSettings
from studylib.forecasting.optimizers import Optimizer, make_optimizer
from studylib.modelling.by_example import give_layout
from studylib.modelling.chunked_loss import causal_model, install_chunked_loss
from studylib.scoring.token_tree import LOGIT_ROWS_PER_BLOCK


class Watcher(Protocol):
    """What a step tells about where it is (studylib.forecasting.trace.StepTrace listens)."""

    recording: bool

    def enter(self, stage: str, layer: int, category: str) -> None: ...

    def note_peak(self, scratch_bytes: int) -> None: ...

    def move(self, tensors: Any, category: str) -> None: ...


def train_once(
    model: nn.Module, batch: dict[str, torch.Tensor], settings: StepSettings, live: Watcher
) -> int:
    """One step, recorded, after an update that makes the states. Returns paged states' bytes."""
    from peft.helpers import disable_input_dtype_casting

    if settings.checkpointing:
        enable_checkpointing(model, settings.mixed and settings.kernels == "cuda")
    if settings.loss == "chunked":
        fullest = settings.fullest
        install_chunked_loss(model, learned=fullest.learned_tokens if fullest else None)
    elif settings.loss == "shifted":
        install_shifted_loss(model)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.register_post_accumulate_grad_hook(lambda p: live.move([p.grad], "gradients"))
    embeddings = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
    optimizer = make_optimizer(settings.optimizer, trained, settings.master_weights, embeddings)
    for parameter in trained:  # a first update only makes the optimizer's states
        parameter.grad = torch.empty_like(parameter)
    update(trained, optimizer, live)
    live.recording = True
    with disable_input_dtype_casting(model, active=settings.mixed and settings.kernels == "cpu"):
        for _ in range(min(settings.accumulation, 2)):
            forward_backward(model, batch, settings, live)
    update(trained, optimizer, live)
    return optimizer.paged_bytes


def enable_checkpointing(model: Any, cuda_autocasts: bool) -> None:
    kwargs: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": False}
    if cuda_autocasts:
        kwargs["context_fn"] = checkpoint_contexts
    with warnings.catch_warnings():  # the name is on its way out, its successor not yet everywhere
        warnings.simplefilter("ignore", FutureWarning)
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)


def update(trained: list[nn.Parameter], optimizer: Optimizer, live: Watcher) -> None:
    """Clip, step, and let go of the gradients, as Trainer does."""
    live.enter("optimizer", -1, "temporaries")
    torch.nn.utils.clip_grad_norm_(trained, 1.0, foreach=True)
    live.note_peak(0)
    optimizer.step()
    live.move(optimizer.states(), "optimizer_states")
    live.note_peak(0)
    for parameter in trained:
        parameter.grad = None


def make_batch(model: nn.Module, settings: StepSettings) -> dict[str, torch.Tensor]:
    """Token ids and labels; masked rows have the mask that transformers makes."""
    fullest = settings.fullest
    rows, length = settings.micro_batch, fullest.row_tokens if fullest else settings.seq_len
    ids = torch.zeros(rows, length, dtype=torch.int64)
    batch = {"input_ids": ids, "position_ids": torch.zeros_like(ids)}
    if fullest and fullest.example_tokens:
        give_layout(batch["position_ids"], fullest.example_tokens)
    if settings.stage == "train":
        batch["labels"] = torch.zeros_like(ids)
    config: Any = model.config
    if settings.masked and config._attn_implementation != "eager":  # which makes its own
        batch["attention_mask"] = torch.zeros(rows, 1, length, length, dtype=torch.bool)
    return batch


def forward_backward(
    model: nn.Module, batch: dict[str, torch.Tensor], settings: StepSettings, live: Watcher
) -> None:
    live.enter("forward", -1, "saved_activations")
    live.note_peak(0)
    cuda = settings.mixed and settings.kernels == "cuda"
    with cuda_autocast() if cuda else nullcontext():
        mixed = torch.autocast("cpu", torch.bfloat16, settings.mixed, cache_enabled=False)
        with mixed:
            outputs = model(**batch, use_cache=False)
        if settings.mixed and outputs.logits is not None:
            outputs.logits = outputs.logits.float()  # accelerate hands back every output in fp32
        loss = outputs.loss
        del outputs
        live.enter("loss", -1, "logits_and_loss")
        loss.backward()


def score_once(model: nn.Module, batch: dict[str, torch.Tensor], live: Watcher) -> Any:
    """A pass over a token tree as studylib.scoring.prefix_lm has it, every position being asked:
    keys and values stay, a block of logits at a time becomes log-probabilities in fp32, and the
    next pass makes its logits before these are let go.

    Returns what stays after it.
    """
    begin_pass(model, live)
    with torch.no_grad():
        outputs = model(**batch, use_cache=True)
        logits, kept = outputs.logits[0], outputs.past_key_values
        for rows in logits.split(LOGIT_ROWS_PER_BLOCK)[:2]:  # beside the second lies the first
            block = rows.float().log_softmax(-1)
        del block, rows
        return kept, logits, torch.empty_like(logits)


def serve_once(model: nn.Module, batch: dict[str, torch.Tensor], live: Watcher) -> Any:
    """A forward with logits of every position and their log-softmax in fp32; keys and values are
    counted apart."""
    begin_pass(model, live)
    with torch.no_grad():
        logits = model(**batch, use_cache=False).logits
        return nn.functional.log_softmax(logits, dim=-1, dtype=torch.float32)


def begin_pass(model: nn.Module, live: Watcher) -> None:
    model.eval()
    live.recording = True
    live.enter("forward", -1, "saved_activations")
    live.note_peak(0)


def install_shifted_loss(model: Any) -> None:
    """Replace a causal model's forward, under an adapter or not, by one with the loss of then."""
    base = causal_model(model)
    plain = base.forward

    def forward(self: Any, *words: Any, labels: torch.Tensor, **inputs: Any) -> Any:
        from transformers.modeling_outputs import CausalLMOutput

        logits = plain(*words, **inputs).logits.float()
        ahead = logits[..., :-1, :].contiguous()
        loss = functional.cross_entropy(ahead.flatten(0, 1), labels[..., 1:].flatten())
        return CausalLMOutput(loss=loss, logits=logits)

    base.forward = MethodType(forward, base)
