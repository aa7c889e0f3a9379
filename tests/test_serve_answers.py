"""Whichever way a variant is served, its answers are the same: merged, unmerged, swapped, mixed."""

from __future__ import annotations

import pytest
import torch

from studylib.modelling.models import load_model
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
from studylib.serving.hot_swap import TOLERANCES, answer, logit_difference, measure_swap
from studylib.serving.latency import make_prompt
from studylib.serving.mixed_batch import check_rows, measure_mixed, name_rows

IDS = make_prompt(500, 2, 16, seed=1)
CASES = [(m, d) for m in ("lora", "qlora") for d in ("fp32", "bf16")]


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
