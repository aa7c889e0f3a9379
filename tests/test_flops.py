"""Operations by token against counts made by hand and by torch's own counter."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from studylib.modelling.flops import (
    attention_width,
    count_matrices,
    count_token_flops,
    mean_attended,
)
from studylib.modelling.methods import attach
from studylib.modelling.models import load_model
from studylib.schema.profile import LoraSettings, ModelRef, parse_method

TOKENS = 48


def prepared(method):
    settings = parse_method(method, LoraSettings(rank=8))
    return attach(load_model(ModelRef.parse("ladder:0.4m"), settings, "fp32").model, settings)


def test_a_token_attends_to_half_of_its_example_on_average():
    assert mean_attended([1]) == 1
    assert mean_attended([3]) == 2  # 1, 2 and 3
    assert mean_attended([3, 1, 1]) == pytest.approx((6 + 1 + 1) / 5)


def test_full_training_is_three_forwards_and_frozen_weights_are_two():
    full, lora = prepared("full"), prepared("lora")
    frozen, trained = count_matrices(full)
    assert frozen == 0
    base, adapter = count_matrices(lora)
    assert base == trained  # the adapter's own matrices come on top
    config = full.config
    width = config.hidden_size + config.intermediate_size
    assert adapter == config.num_hidden_layers * 8 * (4 * 2 * config.hidden_size + 3 * width)
    attention = 12 * attention_width(full) * mean_attended([10])
    assert count_token_flops(full, [10], False).model == pytest.approx(6 * trained + attention)
    assert count_token_flops(lora, [10], False).model == pytest.approx(
        4 * base + 6 * adapter + attention
    )


def test_checkpointing_adds_one_forward_that_is_kept_apart():
    model = prepared("full")
    plain, again = (count_token_flops(model, [10], flag) for flag in (False, True))
    assert plain.recomputed == 0
    assert again.model == plain.model
    assert again.recomputed == pytest.approx(again.model / 3)


def test_a_4_bit_weight_counts_what_it_stands_for():
    assert count_matrices(prepared("qlora")) == count_matrices(prepared("lora"))


@pytest.mark.parametrize("method", ["full", "lora"])
def test_matrices_are_those_of_torchs_counter_on_a_real_step(method):
    """Exactly, but for the frozen first layer, whose input needs no gradient."""
    model = prepared(method).train()
    ids = torch.randint(0, 100, (1, TOKENS))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids).loss.backward()
    counted = counter.get_flop_counts()["Global"][torch.ops.aten.mm]
    frozen, trained = count_matrices(model)
    width = model.config.hidden_size
    spared = 0 if method == "full" else 2 * 3 * width * (width + 8)  # of q, k and v, rank 8
    assert counted == TOKENS * (4 * frozen + 6 * trained - spared)
