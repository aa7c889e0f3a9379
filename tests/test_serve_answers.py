"""Whichever way a variant is served, its answers are the same: merged, unmerged, swapped, mixed."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from transformers import Olmo2Config

from studylib.modelling.models import build_random, load_model
from studylib.modelling.variants import (
    adapter_names,
    add_adapters,
    load_adapters,
    merge_adapter,
    plain_copy,
    ready,
    save_adapter,
    share_weights,
)
from studylib.schema.profile import LoraSettings, MethodSettings, ModelRef, parse_method
from studylib.schema.serving import CONTRAST
from studylib.scoring.evaluate import NotANumber
from studylib.serving.hot_swap import (
    TOLERANCES,
    answer,
    answer_fresh,
    logit_difference,
    measure_swap,
    time_loads,
)
from studylib.serving.latency import make_prompt
from studylib.serving.mixed_batch import check_rows, measure_mixed, name_rows

IDS = make_prompt(500, 2, 16, seed=1)
CASES = [(m, d) for m in ("lora", "qlora") for d in ("fp32", "bf16")]


def test_logits_that_are_not_finite_equal_no_others():
    """A maximum over nan may skip it, and nan is not above any tolerance."""
    right = torch.linspace(-1, 1, 12).reshape(1, 3, 4)
    assert logit_difference(right, right) == 0.0
    for broken in (float("nan"), float("inf")):
        wrong = right.clone()
        wrong[0, 1, 2] = broken
        for pair in ((wrong, right), (right, wrong)):
            with pytest.raises(NotANumber, match="1 of 12 logits are not finite"):
                logit_difference(*pair)


@pytest.fixture(scope="module")
def served(tiny_folder, tmp_path_factory):
    """method, dtype -> (plain base, own base, model with three adapters, adapter folders, load)."""
    made = {}

    def serve(method: str, dtype: str):
        if (method, dtype) not in made:
            ref = ModelRef.parse(f"path:{tiny_folder}")
            settings = parse_method(method, LoraSettings(rank=4, alpha=32))

            def load(chosen=settings):
                return load_model(ref, chosen, dtype).model.eval()

            plain, own = load(MethodSettings(name="base")), load()
            model = add_adapters(share_weights(own), settings, 3, dtype)
            folder = tmp_path_factory.mktemp("adapters")
            folders = {name: save_adapter(model, name, folder) for name in adapter_names(3)}
            made[method, dtype] = plain, own, model, folders, load
        return made[method, dtype]

    return serve


@pytest.mark.parametrize(("method", "dtype"), CASES)
def test_merged_model_answers_as_the_dynamic_adapter(served, method, dtype):
    plain, own, model, folders, _ = served(method, dtype)
    merged = merge_adapter(plain, folders["a1"], own if method == "qlora" else None)
    assert not any(type(module).__name__ == "Linear4bit" for module in merged.modules())
    assert {p.dtype for p in merged.parameters()} == {p.dtype for p in plain.parameters()}
    expected = answer(ready(model, "a1"), IDS)
    assert logit_difference(answer(merged, IDS), expected) < TOLERANCES[dtype]
    other = answer(ready(model, "a2"), IDS)
    assert logit_difference(answer(merged, IDS), other) > 3 * TOLERANCES[dtype]


def test_rounding_in_a_deep_bf16_model_is_no_other_answer():
    """As OLMo 2 has it: a norm after each of many layers makes their rounding as large again."""
    settings, device = parse_method("lora", LoraSettings()), torch.device("cpu")
    config = Olmo2Config(
        vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=40,
        num_attention_heads=4, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    base: Any = build_random(config, None, torch.bfloat16, "sdpa", device).eval()
    model: Any = add_adapters(share_weights(base), settings, 2, "bf16")
    expected = answer(model, IDS)
    other = answer(ready(model, "a1"), IDS)
    ready(model, "default").merge_adapter()
    assert 0.1 < logit_difference(answer(model, IDS), expected) < TOLERANCES["bf16"]
    assert logit_difference(other, expected) > CONTRAST * TOLERANCES["bf16"]


def test_no_model_of_an_earlier_load_stays_in_memory(served, monkeypatch):
    """4-bit layers and their weights refer to each other, and go only when they are collected."""
    from bitsandbytes.nn import Linear4bit

    def alive() -> int:
        return sum(type(thing) is Linear4bit for thing in gc.get_objects())

    *_, folders, load = served("qlora", "fp32")
    kept, found = alive(), []

    def load_and_count():
        found.append(alive() - kept)
        return load()

    answer_fresh(load_and_count, folders, IDS)
    assert found == [0, 0, 0]
    time_loads(load_and_count)
    assert found == [0] * 6


@pytest.mark.parametrize(("method", "dtype"), CASES)
def test_merge_unmerge_and_swap_give_the_answers_of_a_fresh_load(served, method, dtype):
    _, _, _, folders, load = served(method, dtype)
    base = MethodSettings(name="base")
    swap = measure_swap(load, folders, IDS, dtype, 5, lambda: load(base))
    assert swap.proven
    required = [check for check in swap.checks if check.required]
    assert len(required) >= 9 and all(check.holds for check in required)
    assert (swap.unmerge_seconds is None) == (method == "qlora")
    assert swap.switch_seconds.count == 5
    assert swap.load_model_seconds is not None and swap.load_model_seconds.count == 3


def test_merging_on_four_bit_layers_is_shown_to_be_no_way(served):
    """Why the study merges into a copy: in place the sum is rounded to 4 bits, for good."""
    _, _, _, folders, load = served("qlora", "fp32")
    swap = measure_swap(load, folders, IDS, "fp32", 2, lambda: load(MethodSettings(name="base")))
    shown = [check for check in swap.checks if not check.required]
    assert len(shown) == 2 and not any(check.holds for check in shown)


@pytest.mark.parametrize(("method", "dtype"), CASES)
def test_rows_of_a_mixed_batch_answer_as_with_their_adapter_alone(served, method, dtype):
    _, _, model, folders, _ = served(method, dtype)
    rows = name_rows(list(folders), 5)
    assert rows == ["default", "a1", "a2", "default", "a1"]
    checks = check_rows(model, make_prompt(500, 5, 12), rows, dtype)
    assert len(checks) == 3 and all(check.holds for check in checks)
    ready(model, "default")
    wrong = answer(model, IDS, adapter_names=["a1", "a2"])
    assert logit_difference(wrong, answer(model, IDS)) > 3 * TOLERANCES[dtype]


def test_mixed_batch_is_timed_against_the_other_ways(served):
    plain, _, model, folders, _ = served("lora", "fp32")
    merged = merge_adapter(plain, folders["default"])
    row = measure_mixed(model, merged, list(folders), (4, 8), 3, 3, 0.01, "fp32")
    assert set(row.tokens_per_second) == {
        "mixed batch", "one adapter", "merged models in turn", "switched in turn"
    }  # fmt: skip
    assert all(speed > 0 for speed in row.tokens_per_second.values())
    assert row.ratio_to_one_adapter.pairs == 3


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_adapters_and_merged_copies_leave_the_base_as_it_was(served, tiny_folder, method):
    plain, own, model, folders, load = served(method, "fp32")
    before = answer(load(), IDS)
    merge_adapter(plain, folders["default"], own if method == "qlora" else None)
    answer(ready(model, "a1"), IDS)
    assert torch.equal(answer(own, IDS), before)
    if method == "qlora":
        difference = logit_difference(answer(plain_copy(plain, own), IDS), before)
        assert difference < TOLERANCES["fp32"]


def test_equal_seeds_give_equal_adapters_on_a_plain_and_a_four_bit_base(served):
    lora, qlora = (
        {n: p for n, p in served(m, "fp32")[2].named_parameters() if "lora_" in n}
        for m in ("lora", "qlora")
    )
    assert lora.keys() == qlora.keys()
    assert all(torch.equal(lora[name], qlora[name]) for name in lora)
    assert all(p.abs().sum() > 0 for p in lora.values())


def test_saved_adapters_load_as_they_were(served):
    _, _, model, folders, load = served("lora", "fp32")
    loaded = load_adapters(load(), folders)
    for name in folders:
        assert torch.equal(answer(ready(loaded, name), IDS), answer(ready(model, name), IDS))
