"""Bring in a model and its tokenizer from a hub, a folder, a published shape or the ladder.

Only safetensors are read, never pickles; code that comes with a model is never run.

Not covered: what a method then does to the model (studylib.modelling.methods).
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.utils import logging as hf_logging

from studylib.core.errors import StudyError, first_line, name_error
from studylib.core.launch import local_rank, refuse_left_over
from studylib.inputs.almanac import ladder_folder, ladder_names
from studylib.inputs.converted import read_origin
from studylib.inputs.sources import folder_sha256, model_folder
from studylib.modelling.attention import choose_attention
from studylib.modelling.checkpoint import check_whole, read_shapes, refuse_holes
from studylib.modelling.four_bit import (
    check_quantization,
    four_bit_share,
    keep_unpacked,
    quantization_config,
    quantize_linears,
    quantize_part,
    refuse_none,
    refuse_unreadable,
)
from studylib.modelling.merging import MergeFailed, check_merge, overwrite_with_four_bit
from studylib.modelling.methods import DTYPES, freeze_parts, prepare
from studylib.modelling.packing import keep_examples_apart
from studylib.modelling.skeleton import load_config
from studylib.schema.profile import MethodSettings, ModelRef
from studylib.schema.records import canonical

# transformers 5 warns of names that it will change in 6; the ranges of this study end before.
warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
hf_logging.set_verbosity_error()
hf_logging.disable_progress_bar()


@dataclass
class Loaded:
    """A model on its device with its tokenizer and what identifies its weights.

    attention, attention_reason, packing_reason, four_bit_share, four_bit_error, origin: as in
    studylib.schema.records.LoadBlock.
    """

    model: nn.Module
    tokenizer: Any
    sha256: str
    revision: str | None
    random_weights: bool = False
    attention: str = "sdpa"
    attention_reason: str | None = None
    packing_reason: str | None = None
    four_bit_share: float | None = None
    four_bit_error: float | None = None
    origin: dict[str, Any] = field(default_factory=dict)


def default_device() -> torch.device:
    """The card of this process (one of several that were launched has its own), or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    rank = local_rank()
    return torch.device("cuda") if rank is None else torch.device("cuda", rank)


def load_model(
    ref: ModelRef,
    method: MethodSettings,
    dtype: str,
    seed: int = 0,
    attention: str = "sdpa",
    device: torch.device | None = None,
    probe: bool = True,
) -> Loaded:
    """Load weights in `dtype` (fp32, bf16), or in 4 bits computing in `dtype`, on the device.

    probe: see to it that the model reads packed rows exactly, one example at a time if need be
    (False: another process has tried).
    """
    refuse_left_over()
    device = device or default_device()
    if ref.kind == "shape":
        loaded = load_shape(ref, method, dtype, seed, attention, device)
    else:
        folder, revision = model_folder(ref)
        used, reason = choose_attention(load_config(folder, ref), attention)
        sha256 = folder_sha256(folder) if revision is None else f"commit {revision}"
        model = open_weights(folder, method, dtype, ref, used, device)
        loaded = Loaded(
            model, load_tokenizer(folder), sha256, revision, attention=used,
            attention_reason=reason, origin=read_origin(folder), **trust_base(model, method),
        )  # fmt: skip
    if probe:
        loaded.packing_reason = keep_examples_apart(loaded.model)
    return loaded


def trust_base(model: nn.Module, method: MethodSettings) -> dict[str, Any]:
    """How much of a quantized base is in 4 bits and how well it is read back, both checked; it is
    prepared besides."""
    if not method.kind.quantized:
        return {}
    refuse_none(model)
    prepare(model, method)
    refuse_unreadable(model)
    return {"four_bit_share": four_bit_share(model), "four_bit_error": check_quantization(model)}


def open_weights(
    folder: Path,
    method: MethodSettings,
    dtype: str,
    ref: ModelRef,
    attention: str,
    device: torch.device,
) -> nn.Module:
    """A checkpoint's model. Towards the meta device: with no weights, as FSDP's other ranks.

    Raises StudyError where the checkpoint is not whole: first by its header, since quantizing
    what is not there ends in others' errors, then by what the load itself says.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    check_whole(folder, ref)
    torch_dtype = DTYPES[dtype]
    extra: dict[str, Any] = {}
    if method.kind.quantized:
        extra["quantization_config"] = quantization_config(torch_dtype, method.kind.base)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            output_loading_info=True,
            dtype=torch_dtype,
            attn_implementation=attention,
            use_safetensors=True,
            device_map={"": device},
            trust_remote_code=False,
            **extra,
        )
    except ImportError as error:
        raise StudyError(
            f"train.attention = {attention}", first_line(error), "Install it, or use sdpa."
        ) from error
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise StudyError(
            ref,
            f"the checkpoint cannot be loaded ({first_line(error)})",
            "It must be a causal language model that transformers knows.",
        ) from error
    model, info = loaded
    refuse_holes(model, info, read_shapes(folder), ref)
    keep_unpacked(model)
    return model


def load_trained(base: nn.Module, method: MethodSettings, folder: Path) -> nn.Module:
    """The trained model that an earlier process of the same run left in `folder`.

    StudyError where an adapter does not come back as it was saved.
    """
    if method.kind.adapter:
        from peft import PeftModel

        model = PeftModel.from_pretrained(
            base, folder, is_trainable=True, autocast_adapter_dtype=method.adapter_dtype == "fp32"
        )
        freeze_parts(model, method)
        keep_unpacked(model)
        refuse_half_loaded(model, folder)
        return model
    from transformers import AutoModelForCausalLM

    dtype = next(base.parameters()).dtype
    used, _ = choose_attention(base.config, "sdpa")
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation=used, device_map={"": default_device()}
    )


def refuse_half_loaded(model: nn.Module, folder: Path) -> None:
    """Raise where part of a saved adapter is not in the model: peft warns of names that it does not
    find and goes on, with that part as new (Laguna's shared experts)."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    saved = load_file(folder / "adapter_model.safetensors")
    found = get_peft_model_state_dict(model)
    lost = [
        name
        for name, tensor in found.items()
        if name not in saved or not torch.equal(tensor.float().cpu(), saved[name].float())
    ]
    if lost:
        raise StudyError(
            folder,
            f"{len(lost)} of the adapter's {len(found)} tensors did not come back as they were "
            f"saved ({lost[0]} among them)",
            "Move the run's folder away and run it again without a break.",
        )


def merge_into_bf16(plain: nn.Module, quantized: nn.Module, adapter: Path) -> nn.Module:
    """The 4-bit base's dequantized weights with the adapter added, rounded to bf16.

    plain: the same model in 16 or 32 bits; it is overwritten. quantized: the adapter on its 4-bit
    base. The sum is computed in plain's dtype, held to what `quantized` answers, rounded once, and
    kept in that dtype for scoring. MergeFailed where it cannot be made or answers otherwise.
    """
    from peft import PeftModel

    overwrite_with_four_bit(plain, quantized)
    try:
        model: Any = PeftModel.from_pretrained(plain, adapter)
        merged = model.merge_and_unload().eval()
    except (ValueError, NotImplementedError) as error:  # what peft says of layers it cannot merge
        raise MergeFailed(adapter, f"peft cannot merge it ({first_line(error)})") from error
    check_merge(merged, quantized)
    for parameter in merged.parameters():
        parameter.data = parameter.data.to(torch.bfloat16).to(parameter.dtype)
    return merged


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in a folder, with a padding token; StudyError where none loads or ends."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the tokenizers package raises plain Exception
        raise StudyError(
            folder,
            f"the folder has no tokenizer that loads ({name_error(error)})",
            "Add tokenizer.json and tokenizer_config.json.",
        ) from error
    if tokenizer.eos_token_id is None:
        raise StudyError(
            folder,
            "the tokenizer has no end-of-sequence token",
            "Set eos_token in tokenizer_config.json.",
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_shape(
    ref: ModelRef,
    method: MethodSettings,
    dtype: str,
    seed: int,
    attention: str,
    device: torch.device,
) -> Loaded:
    """Random weights of a published shape, seeded. Its text is spelled by the ladder's tokenizer:
    lengths in tokens are not the model's own, but every position costs what it would."""
    from studylib.modelling.skeleton import shape_config

    config = shape_config(ref.name)
    # Before the dtype enters it: methods of one study may need the same weights in others.
    sha256 = hashlib.sha256(canonical([config.to_dict(), seed])).hexdigest()
    torch.manual_seed(seed)
    used, reason = choose_attention(config, attention)
    bits = method.kind.base if method.kind.quantized else None
    model = build_random(config, bits, DTYPES[dtype], used, device)
    tokenizer = load_tokenizer(ladder_folder(ladder_names()[0]))
    return Loaded(
        model, tokenizer, sha256, None, random_weights=True, attention=used,
        attention_reason=reason, **trust_base(model, method),
    )  # fmt: skip


def build_random(
    config: Any, bits: str | None, dtype: torch.dtype, attention: str, device: torch.device
) -> nn.Module:
    """A model with fresh weights, made layer by layer, each quantized before the next one comes.

    bits: nf4 or fp4; None for weights as they are.

    So a 4-bit model never stands on its card in 16 bits: neither the load stage's peak nor the
    holes that it would leave in the allocator's memory belong to a checkpoint's loading.
    """
    from transformers import AutoModelForCausalLM

    from studylib.modelling.skeleton import text_config, with_depth

    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(
            with_depth(config, 1), dtype=dtype, attn_implementation=attention
        )
    layers = model.base_model.layers
    kind, own, whole = type(layers[0]), text_config(model.config), text_config(config)
    own.num_hidden_layers = whole.num_hidden_layers
    if "layer_types" in vars(whole):
        own.layer_types = whole.layer_types
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        for index in range(1, whole.num_hidden_layers):
            if bits:
                quantize_part(layers[index - 1], dtype, kind=bits)
            with torch.device(device):
                layers.append(kind(own, index))
            layers[index].apply(model._init_weights)
    finally:
        torch.set_default_dtype(usual)
    if bits:
        quantize_linears(model, dtype, bits)
    return model
