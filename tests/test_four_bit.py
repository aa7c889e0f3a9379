"""4-bit weights are what was quantized, at every width, and a base is called 4-bit only if it is.

The reference is the original weights, or their bytes decoded here by hand: never the library's own
reading.
"""

from __future__ import annotations

import pytest
import torch
from families import family_config, save_family
from torch import nn

from studylib.core.errors import StudyError, Unfit
from studylib.inputs.rungs import LARGER_RUNGS, RUNGS
from studylib.modelling import four_bit
from studylib.modelling.four_bit import (
    check_quantization,
    dequantize,
    four_bit_layers,
    four_bit_share,
    guard_reading,
    quantize_linears,
    quantize_part,
    round_trip_error,
)
from studylib.modelling.models import load_model
from studylib.modelling.skeleton import build_meta
from studylib.schema.extent_words import percent_below, spell_base, tell_base
from studylib.schema.profile import MethodSettings, ModelRef

CPU = torch.device("cpu")
QLORA = MethodSettings(name="qlora", rank=4, alpha=8)
RUNG_WIDTHS = {w for rung in (*RUNGS, *LARGER_RUNGS) for w in (rung.hidden, rung.intermediate)}
# Multiples of 16 but not of 64, an even one of neither, odd ones, one shorter than half a block.
UNEVEN = {16, 48, 80, 96, 160, 172, 224, 33, 65}
# Dettmers et al., 2023, appendix E.
NF4 = torch.tensor([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
], dtype=torch.float64)  # fmt: skip


def decode(weight) -> torch.Tensor:
    """A 4-bit weight's bytes as float64 numbers, in plain PyTorch: two codes a byte, the first in
    its upper half, one constant a block of 64, itself 8 bits of a block of 256 around a mean."""
    state, packed = weight.quant_state, weight.data.flatten().to(torch.int64)
    codes = torch.stack([packed >> 4, packed & 15], 1).flatten()[: state.shape.numel()]
    second = state.state2
    index = torch.arange(state.absmax.numel()) // second.blocksize
    constants = second.code.double()[state.absmax.to(torch.int64)] * second.absmax.double()[index]
    constants = constants + state.offset.double()
    block = torch.arange(codes.numel()) // state.blocksize
    return (NF4[codes] * constants[block]).reshape(state.shape)


def one_layer(width: int, out: int = 40, dtype=torch.float32) -> tuple[nn.Module, torch.Tensor]:
    """(a layer in 4 bits, its original weight)."""
    torch.manual_seed(width)
    part = nn.Sequential(nn.Linear(width, out, bias=False, dtype=dtype))
    nn.init.normal_(part[0].weight, std=0.02)
    original = part[0].weight.detach().double()
    quantize_part(part, dtype)
    return part[0], original


def off(ours: torch.Tensor, right: torch.Tensor) -> float:
    return float((ours.double() - right).norm() / right.norm())


def wrong_reading(right):
    """The fault as it was met: constants of other blocks where rows end within a block."""

    def read(packed, state):
        found = right(packed, state)
        return found if state.shape[-1] % 64 == 0 else found.flatten().roll(16).reshape(found.shape)

    return read


# Reading


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", sorted(RUNG_WIDTHS | UNEVEN))
def test_weights_come_back_as_near_to_the_original_as_nf4_can(width, dtype):
    layer, original = one_layer(width, dtype=dtype)
    assert 0.05 < off(dequantize(layer), original) < 0.1
    assert off(dequantize(layer), decode(layer.weight)) < (1e-6 if dtype == torch.float32 else 4e-3)


@pytest.mark.parametrize("width", [64, 96, 160, 172, 33])
def test_products_and_gradients_are_those_of_the_bytes_decoded_by_hand(width):
    layer, original = one_layer(width)
    weight = decode(layer.weight)
    for rows in (1, 7):
        inputs = torch.randn(rows, width, requires_grad=True)
        upstream = torch.randn(rows, 40)
        out = layer(inputs)
        out.backward(upstream)
        assert off(out.detach(), inputs.detach().double() @ weight.T) < 1e-5
        assert off(inputs.grad, upstream.double() @ weight) < 1e-5
        with torch.no_grad():
            assert off(layer(inputs), inputs.double() @ weight.T) < 1e-5
        assert off(out.detach(), inputs.detach().double() @ original.T) < 0.25


def test_an_adapter_of_peft_on_uneven_widths_has_the_gradients_of_a_float64_one(tmp_path):
    from peft import LoraConfig, get_peft_model

    layer, _ = one_layer(96)
    model = nn.Sequential()
    model.add_module("layer", layer)
    model.is_loaded_in_4bit = True
    wrapped = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=["layer"]))
    tuned = wrapped.base_model.model.layer
    nn.init.normal_(tuned.lora_B["default"].weight)
    a, b = (p["default"].weight for p in (tuned.lora_A, tuned.lora_B))
    inputs = torch.randn(5, 96, requires_grad=True)
    wrapped(inputs).square().sum().backward()
    exact = [t.detach().double().requires_grad_() for t in (inputs, a, b)]
    out = exact[0] @ decode(layer.weight).T + 2 * exact[0] @ exact[1].T @ exact[2].T
    out.square().sum().backward()
    for ours, right in zip((inputs, a, b), exact, strict=True):
        assert off(ours.grad, right.grad) < 1e-5


def test_a_traced_step_sees_the_operator_and_its_shape_as_before():
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode

    guard_reading()
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append((str(func), args[4] if "dequantize_4bit" in str(func) else None))
            return func(*args, **(kwargs or {}))

    with FakeTensorMode():
        packed, absmax = torch.empty(96 * 20, 1, dtype=torch.uint8), torch.empty(60)
        with Watch():
            out = torch.ops.bitsandbytes.dequantize_4bit.default(
                packed, absmax, 64, "nf4", [40, 96], torch.float32
            )
    assert out.shape == (40, 96)
    assert seen == [("bitsandbytes.dequantize_4bit.default", [40, 96])]


def test_loss_of_a_round_trip_is_nf4s_at_every_shape():
    for rows, width in [(2, 2), (1, 64), (3, 5), (16, 16), (96, 96), (172, 172), (20_000, 80)]:
        error = round_trip_error(rows, width, torch.float32, CPU)
        assert 0.02 < error < four_bit.LARGEST_ERROR


def test_a_base_that_is_read_back_wrongly_is_refused_by_its_shape(tiny_folder, monkeypatch):
    import bitsandbytes.functional as bnb

    loaded = load_model(ModelRef.parse(f"path:{tiny_folder}"), QLORA, "fp32")
    assert 0.08 < loaded.four_bit_error == check_quantization(loaded.model) < 0.1
    monkeypatch.setattr(bnb, "dequantize_4bit", wrong_reading(bnb.dequantize_4bit))
    with pytest.raises(StudyError, match=r"shape 64 × 96 on cpu: .* where NF4 loses 9 %"):
        check_quantization(loaded.model)


# How much of a base is in 4 bits


def test_forecast_and_load_quantize_the_same_layers_and_the_share_is_right(tmp_path):
    """Llama: all of 7 matrices a layer. GPT-2: its Conv1D too. Mixtral: attention, not experts."""
    norms, width = 64, 64
    attention = 2 * (2 * width * width + 2 * width * 32)
    llama = attention + 2 * 3 * width * 128
    gpt2 = 2 * 12 * width * width
    gpt2_rest = 2 * (4 * norms + 3 * width + width + 4 * width + width) + 2 * norms
    experts = 2 * 4 * 3 * width * 128 + 2 * 4 * width
    shares = {
        "llama": llama / (llama + 5 * norms),
        "gpt2": gpt2 / (gpt2 + gpt2_rest),
        "mixtral": attention / (attention + experts + 5 * norms),
    }
    for family, share in shares.items():
        ref = ModelRef.parse(f"path:{save_family(family, tmp_path / family)}")
        loaded = load_model(ref, QLORA, "fp32")
        skeleton = build_meta(family_config(family), QLORA, "fp32", "sdpa").get_base_model()
        names = [[path for path, _ in four_bit_layers(model)] for model in (loaded.model, skeleton)]
        assert names[0] == names[1] != []
        assert loaded.four_bit_share == four_bit_share(skeleton) == pytest.approx(share)


def test_a_model_made_here_is_quantized_as_transformers_does_it(tmp_path):
    from transformers import AutoModelForCausalLM

    folder = save_family("gpt2", tmp_path / "gpt2")
    made = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    originals = {name: p.detach().clone() for name, p in made.named_parameters()}
    quantize_linears(made, torch.float32)
    loaded = load_model(ModelRef.parse(f"path:{folder}"), QLORA, "fp32").model
    pairs = zip(four_bit_layers(made), four_bit_layers(loaded), strict=True)
    for (name, ours), (other, theirs) in pairs:
        assert name == other
        assert torch.equal(ours.weight.data.flatten(), theirs.weight.data.flatten())
        assert off(dequantize(ours).T, originals[f"{name}.weight"].double()) < 0.1


def test_a_base_of_which_nothing_is_quantized_is_refused_at_load_and_before(tmp_path):
    folder = save_family("falcon", tmp_path / "falcon")
    with pytest.raises(Unfit, match="class of their own"):
        load_model(ModelRef.parse(f"path:{folder}"), QLORA, "fp32")
    with pytest.raises(Unfit, match="Leave qlora"):
        build_meta(family_config("falcon"), QLORA, "fp32", "sdpa")


def test_a_base_hardly_in_4_bits_is_not_called_nf4():
    assert spell_base(0.98, "nf4") == "nf4" and tell_base("QLoRA", 0.98) == ""
    assert spell_base(0.1107, "fp4") == "fp4 (11 % of the weights outside embeddings)"
    assert "11 % of the base's weights" in tell_base("QLoRA", 0.1107)
    assert percent_below(0.9999) == "99 %"
