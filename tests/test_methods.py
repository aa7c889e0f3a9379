"""What a method does to a model: counts, frozen weights, and 4-bit gradients that are right."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from studylib.core.errors import StudyError, Unfit
from studylib.modelling.added import settle_whole, settled_dtypes
from studylib.modelling.methods import METHODS, attach, trainable_and_total
from studylib.modelling.models import load_model, load_trained, merge_into_bf16
from studylib.schema.methods import Method
from studylib.schema.profile import LoraSettings, MethodSettings, ModelRef, parse_method


def load(folder, method, dtype="fp32", **lora):
    settings = parse_method(method, LoraSettings(**lora))
    loaded = load_model(ModelRef.parse(f"path:{folder}"), settings, dtype)
    return attach(loaded.model, settings, seed=3)


def batch(vocabulary=500):
    torch.manual_seed(1)
    ids = torch.randint(5, vocabulary, (1, 24))
    return {"input_ids": ids, "labels": ids}


def test_full_trains_everything_and_base_nothing(tiny_folder):
    trainable, total = trainable_and_total(load(tiny_folder, "full"))
    assert trainable == total > 0
    assert trainable_and_total(load(tiny_folder, "base")) == (0, total)


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_adapter_has_r_times_inputs_plus_outputs_of_every_linear_layer(tiny_folder, method):
    model = load(tiny_folder, method, rank=4)
    # Per layer: q 64->64, k 64->32, v 64->32, o 64->64, gate and up 64->96, down 96->64.
    pairs = [(64, 64), (64, 32), (64, 32), (64, 64), (64, 96), (64, 96), (96, 64)]
    assert trainable_and_total(model)[0] == 2 * 4 * sum(a + b for a, b in pairs)


def test_quantized_weights_count_what_they_stand_for(tiny_folder):
    assert (
        trainable_and_total(load(tiny_folder, "qlora"))[1]
        == trainable_and_total(load(tiny_folder, "lora"))[1]
    )


def test_same_seed_gives_the_same_adapter_and_lora_and_qlora_start_alike(tiny_folder):
    first, second = load(tiny_folder, "lora"), load(tiny_folder, "qlora")
    a = {n: p for n, p in first.named_parameters() if p.requires_grad}
    b = {n: p for n, p in second.named_parameters() if p.requires_grad}
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_trained_embeddings_are_an_option_and_stay_tied(tiny_folder):
    model = load(tiny_folder, "lora-embed", rank=4)
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    assert any("embed_tokens" in name for name in names)
    out = model(**batch())
    out.loss.backward()
    embedding = model.get_input_embeddings()
    weight = getattr(embedding, "modules_to_save", {"default": embedding})["default"].weight
    assert weight.grad is not None and weight.grad.abs().sum() > 0


@pytest.mark.parametrize("method", ["lora-embed", "ln-tuning"])
def test_what_an_adapter_trains_whole_takes_small_steps_on_a_bf16_base_too(tiny_folder, method):
    model, plain = load(tiny_folder, method, "bf16"), load(tiny_folder, "base", "bf16")
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        found, wanted = model(**batch()).logits, plain(**batch()).logits
    assert found.dtype == torch.bfloat16
    assert (found - wanted).norm() < 0.01 * wanted.norm()
    before = {n: p.detach().clone() for n, p in trained.items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-6, weight_decay=0.0)
    with torch.autocast("cpu", torch.bfloat16):
        model(**batch()).loss.backward()
    optimizer.step()
    for name, parameter in trained.items():
        assert parameter.dtype == torch.float32
        assert (parameter != before[name])[parameter.grad.abs() > 1e-6].all(), name
    whole = settled_dtypes(model)
    settle_whole(model)
    assert whole
    assert all(model.get_parameter(name).dtype == torch.bfloat16 for name in whole)
    with torch.no_grad():
        assert model(**batch()).logits.dtype == torch.bfloat16


def test_unknown_target_is_refused_with_its_name(tiny_folder):
    with pytest.raises(StudyError, match="no_such_layer"):
        load(tiny_folder, "lora", targets=("no_such_layer",))


def dequantized_copy(model: nn.Module) -> dict[str, torch.Tensor]:
    from bitsandbytes.functional import dequantize_4bit

    return {
        name: dequantize_4bit(module.weight.data, module.weight.quant_state)
        for name, module in model.named_modules()
        if type(module).__name__ == "Linear4bit"
    }


def adapter_gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    model.train()
    model.zero_grad()
    model(**batch()).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def reference_gradients(folder, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same adapter on plain float32 layers that hold the dequantized weights."""
    model = load(folder, "lora")
    for name, weight in weights.items():
        model.get_submodule(name).weight.data.copy_(weight)
    return adapter_gradients(model)


def test_qlora_gradients_equal_a_dequantized_reference_before_and_after_an_evaluation(tiny_folder):
    model = load(tiny_folder, "qlora")
    # B starts at zero, and then A has no gradient: move it off zero in both models alike.
    expected = None
    weights = dequantized_copy(model)
    for when in ("before", "after"):
        gradients = adapter_gradients(model)
        expected = expected or reference_gradients(tiny_folder, weights)
        assert gradients.keys() == expected.keys()
        worst = max(
            float((gradients[n] - expected[n]).norm() / (expected[n].norm() + 1e-12))
            for n in expected if expected[n].norm() > 0
        )  # fmt: skip
        assert worst < 1e-4, f"{when} an evaluation"
        model.eval()
        with torch.no_grad():
            model(**batch())


def test_the_gradient_test_can_fail(tiny_folder):
    """Shifted weights must show: else the comparison above would prove nothing."""
    model = load(tiny_folder, "qlora")
    weights = {name: weight + 0.05 for name, weight in dequantized_copy(model).items()}
    ours, other = adapter_gradients(model), reference_gradients(tiny_folder, weights)
    assert max(float((ours[n] - other[n]).norm() / other[n].norm()) for n in ours
               if other[n].norm() > 0) > 0.01  # fmt: skip


def test_four_bit_layers_compute_in_float32_in_evaluation_too(tiny_folder):
    model = load(tiny_folder, "qlora")
    model.train()
    trained = model(**batch()).loss.item()
    model.eval()
    with torch.no_grad():
        assert model(**batch()).loss.item() == pytest.approx(trained, rel=1e-6)


def test_merged_model_answers_as_the_4_bit_base_with_its_adapter_to_bf16(tiny_folder, tmp_path):
    model = load(tiny_folder, "qlora")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    model.save_pretrained(tmp_path)
    plain = load_model(ModelRef.parse(f"path:{tiny_folder}"), MethodSettings(name="base"), "fp32")
    with torch.no_grad():
        expected = model.eval()(**batch()).logits
        merged = merge_into_bf16(plain.model, model, tmp_path).eval()(**batch()).logits
        base = load(tiny_folder, "base").eval()(**batch()).logits
    error = float((merged - expected).norm() / expected.norm())
    assert 0 < error < 2**-7, "bf16 keeps 8 bits"
    assert float((base - expected).norm() / expected.norm()) > 4 * error


def test_every_method_of_the_table_attaches(tiny_folder):
    """But for one that trains biases alone: this model has none."""
    with pytest.raises(Unfit, match="no weight of this model ends in bias"):
        load(tiny_folder, "bitfit")
    for name in set(METHODS) - {"bitfit"}:
        trainable, total = trainable_and_total(load(tiny_folder, name))
        assert (trainable > 0) == METHODS[name].trains
        assert trainable <= total


def added(monkeypatch, **peft):
    row = Method(label="X", default_learning_rate=1e-3, peft=peft)
    monkeypatch.setitem(METHODS, "x", row)


@pytest.mark.parametrize(
    ("peft", "named"),
    [
        ({"peft_type": "LORRA"}, "peft has no method of this name.*LORA"),
        ({"peft_type": "LORA", "rank": 3}, "does not take these keys .*rank"),
        ({"init_lora_weights": "nope"}, "Unknown initialization.*Change its row"),
        ({"init_lora_weights": "pissa"}, "begins by changing the model's own weights"),
        ({"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4}}, "peft refuses this"),
        ({"init_lora_weights": "olora"}, "begins by changing the model's own weights"),
        ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 4}, "shift the positions"),
    ],
)
def test_a_row_that_peft_or_packing_cannot_follow_says_why(tiny_folder, monkeypatch, peft, named):
    known = {"peft_type": "LORA", "r": "$rank", "target_modules": "$targets"}
    added(monkeypatch, **(peft if "peft_type" in peft else known | peft))
    with pytest.raises(StudyError, match=named):
        load(tiny_folder, "x", rank=4)


def test_a_fault_that_is_not_pefts_is_not_laid_on_the_targets(tiny_folder, monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError("the disk is on fire")

    monkeypatch.setattr("peft.get_peft_model", fail)
    with pytest.raises(ValueError, match="on fire"):
        load(tiny_folder, "lora", targets=("no_such_layer",))


def test_named_weights_of_the_model_can_be_trained_alone(tiny_folder, monkeypatch):
    row = Method(label="norms", default_learning_rate=1e-3, trained=("norm", "layernorm"))
    monkeypatch.setitem(METHODS, "norms", row)
    model = load(tiny_folder, "norms")
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["model.norm.weight"]
    monkeypatch.setitem(METHODS, "norms", row.model_copy(update={"trained": ("bias",)}))
    with pytest.raises(StudyError, match="no weight of this model ends in bias"):
        load(tiny_folder, "norms")


def test_a_prepared_base_has_nothing_in_16_bits(tiny_folder):
    ref = ModelRef.parse(f"path:{tiny_folder}")
    for name, wanted in (("qlora", True), ("qlora-kbit", False)):
        method = parse_method(name, LoraSettings(rank=4))
        model = load_model(ref, method, "bf16").model
        assert any(p.dtype == torch.bfloat16 for p in model.parameters()) == wanted


def test_adapters_on_a_4_bit_shape_are_those_of_4_bit_layers():
    """Else merging such an adapter in place fails, and training would not be QLoRA's."""
    method = MethodSettings(name="qlora", rank=2, alpha=4)
    loaded = load_model(ModelRef.parse("shape:Pythia-70M"), method, "fp32")
    model = attach(loaded.model, method)
    adapted = [module for module in model.modules() if hasattr(module, "lora_A")]
    assert len(adapted) == 24
    assert {type(module).__name__ for module in adapted} == {"Linear4bit"}


def test_a_shape_is_the_same_model_in_every_dtype_so_that_its_methods_are_compared():
    base, ref = MethodSettings(name="base"), ModelRef.parse("shape:Pythia-70M")
    full, half = (load_model(ref, base, dtype, seed=0).sha256 for dtype in ("fp32", "bf16"))
    assert full == half != load_model(ref, base, "bf16", seed=1).sha256


def test_adapter_of_which_a_part_does_not_come_back_is_refused(tiny_folder, tmp_path):
    """peft itself warns of the missing name and goes on with a new half."""
    from safetensors.torch import load_file, save_file

    ref, method = ModelRef.parse(f"path:{tiny_folder}"), parse_method("lora", LoraSettings(rank=4))
    model = attach(load_model(ref, method, "fp32").model, method, 0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    again = load_trained(load_model(ref, method, "fp32").model, method, tmp_path)
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    del tensors[next(name for name in tensors if "lora_B" in name)]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(StudyError, match="1 of the adapter's 28 tensors did not come back"):
        load_trained(load_model(ref, method, "fp32").model, method, tmp_path)
