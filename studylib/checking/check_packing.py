"""Do packed examples keep apart on this device, and does a sliced loss equal the whole one.

A small random Llama reads rows of the study's own examples, flattened by its collator: once packed,
once example by example. As a control, the same row is read without restarting positions, as one
sequence: a comparison that could not see this would prove nothing.

Not covered: speed and memory of the implementations; the loss of Liger's kernels.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from studylib.checking.check_card import error_of
from studylib.checking.check_kernels import BF16_EPSILON, TOLERANCE
from studylib.checking.model_subject import checked_spec
from studylib.inputs.almanac import ladder_folder, ladder_names
from studylib.inputs.data import IGNORED, Row, TrainingData, prepare_data
from studylib.modelling.chunked_loss import CHUNK_TOKENS, install_chunked_loss
from studylib.modelling.models import load_tokenizer
from studylib.schema.checks import CheckedFigure, Found, apply_rules
from studylib.schema.settings import FULL, TrainSettings
from studylib.schema.spec import RunSpec
from studylib.training.train import PackedCollator, StepLog, train_model

# Two kernels in bf16 round every layer's result apart: an epsilon for each of the two layers,
# attention and feed-forward. A leak is of the order of 1.
PACKED_TOLERANCE = {torch.float32: TOLERANCE[torch.float32], torch.bfloat16: 4 * BF16_EPSILON}
LOSS_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: BF16_EPSILON}
PACKING_RULE = (
    "logits of packed rows within 2^-13 (fp32), 2^-5 (bf16) of each example alone, and one "
    "sequence without restarts more than 4 times as far off as that; a training step's loss "
    "within 1e-4 (fp32), 2^-7 (bf16) of that of the examples passed one by one"
)
CHUNKED_RULE = "loss over slices within 1e-5 of the whole one, its gradients within 2^-13 (fp32)"


def implementations(device: torch.device) -> list[tuple[str, torch.dtype]]:
    """What this machine can attend with, in the dtypes to try; on a CPU the default alone."""
    found = [("sdpa", torch.float32)]
    if device.type == "cuda":
        found += [("sdpa", torch.bfloat16), ("flex_attention", torch.bfloat16)]
        if importlib.util.find_spec("flash_attn"):
            found.append(("flash_attention_2", torch.bfloat16))
    return found


def small_model(attention: str, dtype: torch.dtype, device: torch.device) -> Any:
    """Two layers, heads of 64, grouped; weights large enough that a leak shows."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=1024, hidden_size=256, intermediate_size=512, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        initializer_range=0.06, pad_token_id=1, bos_token_id=None, eos_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=attention)
    model.config.use_cache = False
    return model.to(device)


def small_recipe(dtype: torch.dtype, attention: str = "sdpa", rows: int = 2) -> RunSpec:
    """One step of full fine-tuning on the almanac."""
    recipe = TrainSettings(
        steps=1, seq_len=384, micro_batch=rows, attention=attention,  # type: ignore[arg-type]
        dtype="fp32" if dtype == torch.float32 else "bf16",
    )  # fmt: skip
    return checked_spec("ladder:0.4m", FULL, recipe, 1e-4, "gpu-check", facts=40)


def small_data(spec: RunSpec) -> TrainingData:
    tokenizer = load_tokenizer(ladder_folder(ladder_names()[0]))
    return prepare_data(spec.data, spec.train, tokenizer, spec.seed)


def check_packing(device: torch.device, attention: str, dtype: torch.dtype) -> Found:
    """Logits of packed rows, and the loss of the study's own training step, against separate."""
    spec = small_recipe(dtype, attention)
    model, data = small_model(attention, dtype, device), small_data(spec)
    # FlexAttention compiles anew for every length, and examples have many: the default kernel with
    # the same weights reads them alone.
    single = small_model("sdpa", dtype, device).eval()
    apart, control = packed_errors(model, single, data.rows, device)
    separate = separate_loss(single, data.rows, device)
    log = StepLog()
    with tempfile.TemporaryDirectory() as folder:
        train_model(model, data, spec, Path(folder), log, checkpoints=False)
    trained = log.rows[0]["loss"]
    off = abs(trained / separate - 1)
    limit, loss_limit = PACKED_TOLERANCE[dtype], LOSS_TOLERANCE[dtype]
    figures = [
        CheckedFigure(what="examples", value=sum(len(row) for row in data.rows)),
        CheckedFigure(what="packed against alone", value=apart),
        CheckedFigure(what="one sequence against alone (control)", value=control),
        CheckedFigure(what="training step's loss against separate", value=off),
    ]
    return apply_rules(
        figures,
        (apart <= limit, f"packed logits are {apart:.2g} off"),
        (control > 4 * limit, f"a leak would not show: it makes {control:.2g}"),
        (off <= loss_limit, f"the step's loss is {trained:.6g}, that of its examples "
         f"{separate:.6g}"),
    )  # fmt: skip


def packed_errors(
    model: nn.Module, single: nn.Module, rows: Sequence[Row], device: torch.device
) -> tuple[float, float]:
    """The worst example's error when packed, and (control) when read on as one sequence.

    single: the model, with the same weights, that reads each example alone.
    """
    model.eval()
    packed: dict[str, Any] = dict(PackedCollator(one_row=True)(rows))
    ids, positions = packed["input_ids"].to(device), packed["position_ids"].to(device)
    onward = torch.arange(ids.shape[1], device=device)[None]
    apart = control = 0.0
    with torch.no_grad():
        together = model(input_ids=ids, position_ids=positions, use_cache=False).logits[0]
        leaking = single(input_ids=ids, position_ids=onward, use_cache=False).logits[0]
        start = 0
        for example in (example for row in rows for example in row):
            end = start + len(example["input_ids"])
            alone = single(input_ids=ids[:, start:end], use_cache=False).logits[0]
            apart = max(apart, error_of(together[start:end], alone))
            control = max(control, error_of(leaking[start:end], alone))
            start = end
    return apart, control


def separate_loss(single: nn.Module, rows: Sequence[Row], device: torch.device) -> float:
    """The mean loss over all answer tokens, each example passed alone."""
    total, count = 0.0, 0
    with torch.no_grad():
        for example in (example for row in rows for example in row):
            batch = {key: torch.tensor([value], device=device) for key, value in example.items()}
            answers = sum(label != IGNORED for label in example["labels"][1:])
            total += float(single(**batch, use_cache=False).loss) * answers
            count += answers
    return total / count


def check_chunked_loss(device: torch.device) -> Found:
    """Loss and gradients over slices of tokens against those of all logits at once, in fp32."""
    spec = small_recipe(torch.float32, rows=6)
    model = small_model("sdpa", torch.float32, device)
    packed: dict[str, Any] = dict(PackedCollator(one_row=True)(small_data(spec).rows))
    names = ("input_ids", "position_ids", "labels")
    batch = {name: packed[name].to(device) for name in names}
    whole, whole_gradients = loss_and_gradients(model, batch)
    install_chunked_loss(model)
    sliced, sliced_gradients = loss_and_gradients(model, batch)
    off = abs(sliced / whole - 1)
    worst = max(map(error_of, sliced_gradients, whole_gradients))
    tokens = batch["input_ids"].numel()
    figures = [
        CheckedFigure(what="tokens", value=tokens),
        CheckedFigure(what="loss, sliced against whole", value=off),
        CheckedFigure(what="worst gradient", value=worst),
    ]
    return apply_rules(
        figures,
        (tokens > CHUNK_TOKENS, "all tokens fit into one slice"),
        (off <= 1e-5, f"the loss is {sliced:.6g} in slices, {whole:.6g} as a whole"),
        (worst <= TOLERANCE[torch.float32], f"gradients differ by {worst:.2g}"),
    )


def loss_and_gradients(
    model: nn.Module, batch: dict[str, torch.Tensor]
) -> tuple[float, list[torch.Tensor]]:
    model.train()
    model.zero_grad()
    loss = model(**batch, use_cache=False).loss
    loss.backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    return float(loss.detach()), gradients
