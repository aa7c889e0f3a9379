"""Operations by token against counts made by hand and by torch's own counter."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from studylib.modelling.flops import (
    attention_width,
    count_token_flops,
    count_work,
    mean_attended,
)
from studylib.modelling.methods import attach
from studylib.modelling.models import load_model
from studylib.schema.methods import ADAPTER, METHODS, Method
from studylib.schema.profile import LoraSettings, ModelRef, TrainSettings, parse_method

TOKENS = 48


RANK = 8
DORA = Method(
    label="DoRA", default_learning_rate=1e-4, peft=METHODS[ADAPTER].peft | {"use_dora": True}
)
VERA = Method(
    label="VeRA", default_learning_rate=1e-4,
    peft={"peft_type": "VERA", "r": "$rank", "target_modules": "$targets"},
)  # fmt: skip


@pytest.fixture(autouse=True)
def rows(monkeypatch):
    monkeypatch.setitem(METHODS, "dora", DORA)
    monkeypatch.setitem(METHODS, "vera", VERA)


def prepared(method):
    settings = parse_method(method, LoraSettings(rank=RANK))
    return attach(load_model(ModelRef.parse("ladder:0.4m"), settings, "fp32").model, settings)


def recipe(checkpointing=False, seq_len=TOKENS):
    return TrainSettings(steps=1, seq_len=seq_len, checkpointing=checkpointing)


def linear_sizes(model):
    """(inputs, outputs) of the linear layers under an adapter, all layers of the model."""
    config = model.config
    wide, inner = config.hidden_size, config.intermediate_size
    layer = 4 * [(wide, wide)] + 2 * [(wide, inner)] + [(inner, wide)]
    return config.num_hidden_layers * layer


def count_adapter(model):
    return sum(RANK * (inputs + outputs) for inputs, outputs in linear_sizes(model))


def test_a_token_attends_to_half_of_its_example_on_average():
    assert mean_attended([1]) == 1
    assert mean_attended([3]) == 2  # 1, 2 and 3
    assert mean_attended([3, 1, 1]) == pytest.approx((6 + 1 + 1) / 5)


def test_full_training_is_three_forwards_and_frozen_weights_are_two():
    full, lora = prepared("full"), prepared("lora")
    weights = sum(inputs * outputs for inputs, outputs in linear_sizes(full))
    weights += full.config.vocab_size * full.config.hidden_size  # the output layer
    attention = 12 * attention_width(full) * mean_attended([10])
    assert count_token_flops(full, [10], recipe()).model == pytest.approx(6 * weights + attention)
    assert count_token_flops(lora, [10], recipe()).model == pytest.approx(
        4 * weights + 6 * count_adapter(lora) + attention
    )


def test_checkpointing_adds_one_forward_that_is_kept_apart():
    model = prepared("full")
    plain, again = (count_token_flops(model, [10], recipe(flag)) for flag in (False, True))
    assert plain.recomputed == 0
    assert again.model == plain.model
    assert again.recomputed == pytest.approx(again.model / 3)


def test_a_4_bit_weight_counts_what_it_stands_for():
    assert count_work(prepared("qlora")) == count_work(prepared("lora"))


def test_what_a_method_does_once_a_pass_is_shared_by_its_tokens():
    """DoRA multiplies its two matrices out for the norm in every forward: an identity by A, then
    by B, 2 × inputs × RANK × (inputs + outputs), without a gradient."""
    dora, lora = count_work(prepared("dora")), count_work(prepared("lora"))
    norm = sum(2 * i * RANK * (i + o) for i, o in linear_sizes(prepared("lora")))
    assert dora.pass_forward == dora.whole_pass == norm
    assert (dora.token_forward, dora.token) == (lora.token_forward, lora.token)
    short, long = (
        count_token_flops(prepared("dora"), [10], recipe(seq_len=length)).model
        for length in (TOKENS, 2 * TOKENS)
    )
    assert short - long == pytest.approx(norm / TOKENS / 2)


def test_matrices_that_are_no_parameters_count():
    """VeRA's two are shared and frozen: 4 operations a number, and the model's on top."""
    vera, base = prepared("vera"), prepared("base")
    weights = count_work(base).token / 4
    assert count_work(vera).token == 4 * weights + 4 * count_adapter(vera)


@pytest.mark.parametrize("method", ["full", "lora", "dora", "vera"])
def test_matrices_are_those_of_torchs_counter_on_a_real_step(method):
    """Exactly, but for the frozen first layer, whose input needs no gradient."""
    model = prepared(method).train()
    ids = torch.randint(0, 100, (1, TOKENS))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    counted = counter.get_flop_counts()["Global"][torch.ops.aten.mm]
    work = count_work(model)
    width = model.config.hidden_size
    spared = 0 if method == "full" else 2 * 3 * width * (width + RANK)  # of q, k and v
    assert counted == TOKENS * (work.token - spared) + work.whole_pass
