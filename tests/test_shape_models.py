"""Models of random weights: the architecture transformers builds, layer by layer, in 4 bits too."""

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from transformers import AutoModelForCausalLM

from studylib.metering.live import LiveBytes
from studylib.modelling.models import build_random, load_model
from studylib.modelling.skeleton import config_of, shape_config
from studylib.planning.catalog import load_shapes
from studylib.schema.settings import MethodSettings, ModelRef

SMALL = "pythia-70m"
META, CPU = torch.device("meta"), torch.device("cpu")


def describe(tensors):
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors}


@pytest.mark.parametrize("name", load_shapes())
def test_layer_by_layer_is_the_model_that_transformers_builds(name):
    made = build_random(config_of(load_shapes()[name]), None, torch.bfloat16, "sdpa", META)
    with META:
        whole = AutoModelForCausalLM.from_config(
            config_of(load_shapes()[name]), dtype=torch.bfloat16, attn_implementation="sdpa"
        )
    assert describe(made.named_parameters()) == describe(whole.named_parameters())
    assert describe(made.named_buffers()) == describe(whole.named_buffers())
    assert made.config.to_dict() == whole.config.to_dict()
    attention = [m for m in made.modules() if hasattr(m, "layer_idx") and hasattr(m, "head_size")]
    attention = attention or [layer.self_attn for layer in made.base_model.layers]
    assert [a.layer_idx for a in attention] == list(range(len(made.base_model.layers)))


def test_every_layer_is_drawn_as_the_first_one_is():
    made = build_random(shape_config(SMALL), None, torch.float32, "sdpa", CPU)
    spreads = [
        float(layer.mlp.dense_h_to_4h.weight.detach().std()) for layer in made.base_model.layers
    ]
    assert spreads == pytest.approx([made.config.initializer_range] * len(spreads), rel=0.02)
    biases = [layer.mlp.dense_h_to_4h.bias for layer in made.base_model.layers]
    assert all(not bias.any() for bias in biases)
    first, second = (made.base_model.layers[i].mlp.dense_h_to_4h.weight for i in (0, 1))
    assert not torch.equal(first, second)


def test_a_4_bit_model_holds_the_same_draw_and_never_stands_in_16_bits():
    ref = ModelRef.parse(f"shape:{SMALL}")
    plain = load_model(ref, MethodSettings(name="base"), "bf16", seed=3).model
    with LiveBytes() as live:
        four_bit = load_model(ref, MethodSettings(name="qlora", rank=4), "bf16", seed=3).model
    layer = "gpt_neox.layers.4.attention.dense"
    packed, weight = four_bit.get_submodule(layer).weight, plain.get_submodule(layer).weight
    kept = dequantize_4bit(packed.data, packed.quant_state)
    assert float((kept - weight).abs().mean() / weight.abs().mean()) < 0.12
    sixteen = sum(p.numel() * 2 for p in plain.parameters())
    layers = sum(p.numel() * 2 for p in plain.base_model.layers.parameters())
    assert live.peak_bytes < sixteen - 0.4 * layers
