"""A merged model is the adapter on its 4-bit base, and the probe tells one that is not."""

from __future__ import annotations

import pytest
import torch
from families import save_family
from test_four_bit import decode, off

from studylib.modelling import merging
from studylib.modelling.four_bit import four_bit_layers
from studylib.modelling.merging import (
    MergeFailed,
    check_merge,
    compare_logits,
    overwrite_with_four_bit,
)
from studylib.modelling.methods import attach
from studylib.modelling.models import load_model, merge_into_bf16
from studylib.modelling.variants import plain_copy
from studylib.schema.profile import MethodSettings, ModelRef

QLORA = MethodSettings(name="qlora", rank=4, alpha=8)
BASE = MethodSettings(name="base")


@pytest.fixture(scope="module", params=["llama", "gpt2", "mixtral"])
def trained(request, tmp_path_factory):
    """(reference to the model, its adapter on the 4-bit base, the adapter's folder)."""
    folder = tmp_path_factory.mktemp(request.param)
    ref = ModelRef.parse(f"path:{save_family(request.param, folder / request.param)}")
    model = attach(load_model(ref, QLORA, "fp32").model, QLORA)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.05)
    model.save_pretrained(folder / "adapter")
    return ref, model, folder / "adapter"


def plain_of(ref):
    return load_model(ref, BASE, "fp32").model


def matrices(model):
    """name -> weight as [out, in], whichever way round the layer holds it."""
    turned = {n for n, m in model.named_modules() if type(m).__name__ == "Conv1D"}
    return {
        name: p.detach().T if name.removesuffix(".weight") in turned else p.detach()
        for name, p in model.named_parameters()
    }


def test_every_layer_takes_the_weights_of_the_4_bit_base_the_right_way_round(trained):
    ref, model, _ = trained
    plain = plain_of(ref)
    before = {name: w.clone() for name, w in matrices(plain).items()}
    for laid in (plain, plain_copy(plain_of(ref), model)):
        overwrite_with_four_bit(laid, model)
        after = matrices(laid)
        for path, layer in four_bit_layers(model):
            assert off(after[f"{path}.weight"], decode(layer.weight)) < 1e-6
            assert off(after[f"{path}.weight"], before[f"{path}.weight"].double()) < 0.1


def test_merged_model_is_the_adapter_on_its_base_up_to_bf16(trained):
    ref, model, adapter = trained
    found = compare_logits(merge_into_bf16(plain_of(ref), model, adapter), model)
    assert 0 < found.typical < 2**-6, "bf16 keeps 8 bits"
    rows = torch.arange(24)[None]
    with_adapter = merging.probe(model, rows)
    with model.disable_adapter():
        effect = (with_adapter - merging.probe(model, rows)).std() / with_adapter.std()
    assert float(effect) > 20 * found.typical, "the adapter does far more than rounding"


def test_a_merge_without_the_adapter_fails_the_probe(trained):
    ref, model, _ = trained
    plain = plain_of(ref)
    overwrite_with_four_bit(plain, model)
    with pytest.raises(MergeFailed, match="standard deviations off"):
        check_merge(plain, model)
    with model.disable_adapter():
        check_merge(plain, model)


def test_one_square_matrix_laid_down_transposed_fails_the_probe(trained):
    ref, model, _ = trained
    plain = plain_of(ref)
    overwrite_with_four_bit(plain, model)
    square = next(
        m.weight for name, m in plain.named_modules()
        if name.endswith(("o_proj", "attn.c_proj")) and m.weight.shape[0] == m.weight.shape[1]
    )  # fmt: skip
    square.data = square.data.T.contiguous()
    with model.disable_adapter(), pytest.raises(MergeFailed):
        check_merge(plain, model)


def test_a_plain_model_of_another_shape_is_no_merge(trained, tmp_path):
    ref, model, _ = trained
    plain = plain_of(ref)
    path, _ = next(iter(four_bit_layers(model)))
    plain.get_submodule(path).weight.data = torch.zeros(3, 5)
    with pytest.raises(MergeFailed, match="the plain 3 × 5"):
        overwrite_with_four_bit(plain, model)
    setattr(plain.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2], None)
    with pytest.raises(MergeFailed, match="no such layer"):
        overwrite_with_four_bit(plain, model)
