"""What a row of the table may say besides peft's keys: converted, frozen, rate_ratio, last layers,
an optimizer of its own, FP4."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from families import save_family
from peft import PeftModel

from studylib.core.errors import StudyError, Unfit
from studylib.forecasting.depth import trace_depth
from studylib.forecasting.forecast import ForecastSettings, forecast
from studylib.forecasting.step import StepSettings
from studylib.modelling.four_bit import LARGEST_ERRORS
from studylib.modelling.merging import answer_probe, check_converted
from studylib.modelling.methods import attach, trainable_and_total
from studylib.modelling.models import load_model, load_trained
from studylib.modelling.skeleton import shape_config, with_depth
from studylib.modelling.weights import TRAINED, find_trained, keep, keep_beginning
from studylib.schema.methods import METHODS, LastLayers, Method
from studylib.schema.settings import BASE, LoraSettings, ModelRef, parse_method
from studylib.training.optimizer import make_own


def settings_of(method, **lora):
    return parse_method(method, LoraSettings(**lora))


def load(folder, method, dtype="fp32", **lora):
    settings = settings_of(method, **lora)
    return attach(load_model(ModelRef.parse(f"path:{folder}"), settings, dtype).model, settings, 3)


def plain(folder, dtype="fp32"):
    return load_model(ModelRef.parse(f"path:{folder}"), BASE, dtype).model


def move(model, seed=0):
    """As a training would: everything that is trained, by a little."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.02 * torch.randn_like(parameter)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """Its layers hold their weights the other way round."""
    return save_family("gpt2", tmp_path_factory.mktemp("gpt2"))


@pytest.mark.parametrize(
    ("method", "family"), [("pissa", "llama"), ("pissa", "gpt2"), ("olora", "llama")]
)
def test_a_converted_adapter_fits_the_original_base_and_answers_as_trained(
    tiny_folder, gpt2, tmp_path, method, family
):
    folder, settings = (tiny_folder if family == "llama" else gpt2), settings_of(method, rank=4)
    model = load(folder, method, rank=4)
    began = answer_probe(model)
    keep_beginning(tmp_path, settings, model)
    move(model)
    trained = answer_probe(model)
    keep(tmp_path, model)
    assert find_trained(tmp_path) == tmp_path / TRAINED
    base = plain(folder)
    before = copy.deepcopy(base.state_dict())
    original = answer_probe(base)
    torch.testing.assert_close(began, original, rtol=0, atol=2e-4)
    found = PeftModel.from_pretrained(base, tmp_path / TRAINED)  # nothing of ours
    torch.testing.assert_close(answer_probe(found), trained, rtol=0, atol=2e-4)
    assert (trained - original).abs().max() > 0.05
    for name, weight in found.get_base_model().state_dict().items():
        name = name.replace(".base_layer", "")
        if name in before:
            assert torch.equal(weight, before[name])
    check_converted(found, trained)
    with pytest.raises(StudyError, match="on the original base its logits are"):
        check_converted(plain(folder), trained)


def test_a_beginning_that_peft_reads_the_wrong_way_round_is_refused(gpt2):
    with pytest.raises(Unfit, match="transposed weights of c_attn"):
        load(gpt2, "olora", rank=4)


def test_the_first_process_beginning_is_kept(tiny_folder, tmp_path):
    settings = settings_of("pissa", rank=4)
    model = load(tiny_folder, "pissa", rank=4)
    keep_beginning(tmp_path, settings, model)
    first = (tmp_path / "beginning/adapter_model.safetensors").read_bytes()
    move(model)
    keep_beginning(tmp_path, settings, model)
    assert (tmp_path / "beginning/adapter_model.safetensors").read_bytes() == first
    keep_beginning(tmp_path / "lora", settings_of("lora"), model)
    assert not (tmp_path / "lora").exists()


def test_a_frozen_part_stays_as_it_was_drawn_also_after_it_comes_back(tiny_folder, tmp_path):
    model, lora = load(tiny_folder, "lora-fa", rank=4), load(tiny_folder, "lora", rank=4)
    named = dict(model.named_parameters())
    trained = [name for name, p in named.items() if p.requires_grad]
    assert trained and all("lora_B" in name for name in trained)
    for name, parameter in lora.named_parameters():
        assert torch.equal(parameter, named[name]), "both begin alike"
    move(model)
    model.save_pretrained(tmp_path)
    back = load_trained(plain(tiny_folder), settings_of("lora-fa", rank=4), tmp_path)
    assert trainable_and_total(back)[0] == trainable_and_total(model)[0]


def test_a_part_that_no_adapter_has_is_named(tiny_folder, monkeypatch):
    row = METHODS["lora-fa"].model_copy(update={"frozen": ("lora_C",)})
    monkeypatch.setitem(METHODS, "lora-fa", row)
    with pytest.raises(Unfit, match="no part named lora_C"):
        load(tiny_folder, "lora-fa")


class Asked:
    """What of a trainer the optimizer is made from."""

    args = None

    def __init__(self, model):
        self.model = model

    def get_optimizer_cls_and_kwargs(self, args, model):
        return torch.optim.AdamW, {"lr": 1e-3, "betas": (0.9, 0.999)}


def test_b_learns_at_sixteen_times_the_rate_of_a(tiny_folder):
    from record_factory import make_spec

    model = load(tiny_folder, "lora-plus", rank=4)
    optimizer = make_own(Asked(model), make_spec("lora-plus"))
    names = {id(p): name for name, p in model.named_parameters()}
    rates = {names[id(p)]: g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(rates)
    for name, rate in rates.items():
        assert rate == pytest.approx(1e-3 * (16 if "lora_B" in name else 1))
    assert make_own(Asked(model), make_spec("lora")) is None


@pytest.mark.parametrize(("share", "layers"), [(0.25, 1), (0.5, 1), (0.51, 2)])
def test_the_last_layers_alone_are_trained(tiny_folder, monkeypatch, share, layers):
    row = METHODS["last-quarter"].model_copy(update={"trained": LastLayers(last_layers=share)})
    monkeypatch.setitem(METHODS, "last-quarter", row)
    model = load(tiny_folder, "last-quarter")
    trained = {n.split(".")[2] for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {"0", "1"} if layers == 2 else trained == {"1"}
    assert not model.get_input_embeddings().weight.requires_grad


def test_last_layers_are_forecast_at_the_models_own_depth():
    """Two layers of eight; what three and four layers train says nothing of it."""
    config = with_depth(shape_config("smollm2-135m"), 8)
    step = StepSettings(method=settings_of("last-quarter"), seq_len=8)
    one = trace_depth(config, step)
    full = trace_depth(with_depth(config, 1), StepSettings(method=settings_of("full"), seq_len=8))
    alone = 2 * (full.trainable_params - shape_config("smollm2-135m").vocab_size * 576 - 576)
    assert one.trainable_params == alone


def test_biases_alone_are_trained_where_a_model_has_some(gpt2):
    model = load(gpt2, "bitfit")
    names = {n for n, p in model.named_parameters() if p.requires_grad}
    assert names == {n for n, _ in model.named_parameters() if n.endswith(".bias")} != set()


@pytest.mark.parametrize("method", ["full-eight-bit", "full-paged"])
def test_a_methods_own_optimizer_is_the_runs_and_the_forecasts(method):
    from record_factory import make_spec

    spec = make_spec(method)
    assert spec.optimizer == METHODS[method].optimizer != spec.train.optimizer
    assert make_spec("full").optimizer == spec.train.optimizer
    made = ForecastSettings(model="shape:smollm2-135m", method=method, seq_len=64)
    assert made.step.optimizer == METHODS[method].optimizer


def test_eight_bit_states_take_a_quarter_of_what_full_ones_take():
    job = {"model": "shape:smollm2-135m", "seq_len": 64, "weights": "fp32"}
    full, small = (forecast(ForecastSettings(method=m, **job)) for m in ("full", "full-eight-bit"))
    assert small.trainable_params == full.trainable_params
    # Embeddings keep fp32 states; of all else two bytes a weight are left of eight, and constants.
    layers = full.trainable_params - 49_152 * 576
    saved = full.parts["optimizer_states"] - small.parts["optimizer_states"]
    assert saved == pytest.approx(6 * layers, rel=0.02)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_an_fp4_base_is_another_one_than_nf4s_and_read_back_within_its_loss(tiny_folder, dtype):
    kinds = {}
    for method in ("qlora", "qlora-fp4"):
        settings = settings_of(method)
        loaded = load_model(ModelRef.parse(f"path:{tiny_folder}"), settings, dtype)
        layer = loaded.model.model.layers[0].mlp.up_proj
        kinds[method] = layer.weight.quant_state.quant_type
        assert kinds[method] == settings.kind.base
        assert loaded.four_bit_error < LARGEST_ERRORS[kinds[method]]
        if method == "qlora-fp4":
            assert loaded.four_bit_error > LARGEST_ERRORS["nf4"], "it loses more than NF4"
    assert set(kinds.values()) == {"nf4", "fp4"}


def test_marks_of_rows_that_were_there_before_are_as_they_were():
    """Records carry them: a new key must not make old records another method's."""
    assert json.loads(METHODS["lora"].mark).keys() == {"base", "prepared", "trained", "peft"}
    assert json.loads(METHODS["lora-plus"].mark)["rate_ratio"] == 16
    assert json.loads(METHODS["lora-fa"].mark)["frozen"] == ["lora_A"]


def test_a_converted_row_takes_one_card(tmp_path):
    from record_factory import make_spec

    from studylib.schema.profile import check_cards

    spec = make_spec("pissa", gpus=2)
    with pytest.raises(StudyError, match="trained on one card"):
        check_cards(spec)
    check_cards(make_spec("lora", gpus=2))


def test_a_row_that_is_wrong_on_its_base_is_refused(tiny_folder, monkeypatch):
    keys = METHODS["lora"].peft | {"init_lora_weights": "pissa"}
    row = Method(label="X", default_learning_rate=1e-3, peft=keys)
    monkeypatch.setitem(METHODS, "x", row)
    with pytest.raises(Unfit, match="write converted: true"):
        load(tiny_folder, "x", rank=4)
    unchanged = {"converted": True, "peft": METHODS["lora"].peft}
    monkeypatch.setitem(METHODS, "x", row.model_copy(update=unchanged))
    with pytest.raises(Unfit, match="Leave converted out"):
        load(tiny_folder, "x", rank=4)
