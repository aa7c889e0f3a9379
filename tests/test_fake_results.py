"""What operators give on fake tensors is the same where they are not asked again."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import LlamaConfig, Qwen3NextConfig

from studylib.forecasting import trace
from studylib.forecasting.fake_results import FakeResults
from studylib.forecasting.job import StepSettings
from studylib.forecasting.trace import trace_step
from studylib.schema.settings import LoraSettings, parse_method

aten = torch.ops.aten
SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 256, "head_dim": 16}  # fmt: skip
MODELS = {
    "llama": LlamaConfig(num_hidden_layers=3, **SIZES),
    "qwen3_next": Qwen3NextConfig(
        num_hidden_layers=4, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32,
        shared_expert_intermediate_size=32, linear_num_key_heads=2, linear_num_value_heads=2,
        linear_key_head_dim=16, linear_value_head_dim=16, **SIZES,
    ),
}  # fmt: skip


class Asked(FakeResults):
    """Counts the operators that go on to FakeTensorMode; all do where nothing may be kept."""

    def __init__(self, keeps: bool = True) -> None:
        super().__init__()
        self.keeps, self.calls, self.forwarded = keeps, 0, 0

    def __call__(self, func, args, kwargs):
        def forward(*args, **kwargs):
            self.forwarded += 1
            return func(*args, **kwargs)

        self.calls += 1
        if not self.keeps:
            self.known.clear()
        return super().__call__(Counted(func, forward), args, kwargs)


class Counted:
    """An operator that is counted, the same key as the operator itself."""

    def __init__(self, func, forward):
        self.func, self.tags, self.forward = func, func.tags, forward

    def __call__(self, *args, **kwargs):
        return self.forward(*args, **kwargs)

    def __eq__(self, other):
        return self.func == other.func

    def __hash__(self):
        return hash(self.func)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_trace_is_the_same_and_a_second_one_asks_for_few_operators(monkeypatch, model, method):
    settings = StepSettings(method=parse_method(method, LoraSettings()), seq_len=64)
    plain, kept = Asked(keeps=False), Asked()
    monkeypatch.setattr(trace, "answer", plain)
    wanted = trace_step(MODELS[model], settings)
    assert plain.forwarded == plain.calls > 500
    monkeypatch.setattr(trace, "answer", kept)
    first = trace_step(MODELS[model], settings)
    kept.calls = kept.forwarded = 0
    second = trace_step(MODELS[model], settings)
    assert kept.forwarded < 0.1 * kept.calls
    for found in (first, second):
        assert found.events == wanted.events and found.operators == wanted.operators
        assert [(r.segment, r.moves) for r in found.runs] == [
            (r.segment, r.moves) for r in wanted.runs
        ]


def test_views_share_what_they_are_of_and_what_is_written_in_place_is_the_input():
    answer = FakeResults()
    for _ in range(2):  # asked, then known
        with FakeTensorMode():
            x = torch.empty(4, 6, dtype=torch.bfloat16)[1:]
            storage = x.untyped_storage()._cdata
            turned = answer(aten.t.default, (x,), {})
            assert turned.untyped_storage()._cdata == storage
            assert (turned.shape, turned.stride(), turned.storage_offset()) == ((6, 3), (1, 6), 6)
            assert answer(aten.add_.Tensor, (x, 1), {}) is x
            new = answer(aten._to_copy.default, (x,), {"dtype": torch.float32})
            assert new.untyped_storage()._cdata != storage and new.untyped_storage().nbytes() == 72
            left, right = answer(aten.split.Tensor, (x, 3, 1), {})
            assert (left.shape, right.storage_offset()) == ((3, 3), 9)
            assert new.device == x.device and new.dtype == torch.float32


def test_numbers_of_other_kinds_are_other_questions():
    answer = FakeResults()
    with FakeTensorMode():
        x = torch.empty(3, dtype=torch.int64)
        kinds = [answer(aten.add.Tensor, (x, one), {}).dtype for one in (1, 1.0, True, 1, 1.0)]
    assert kinds == [torch.int64, torch.float32, torch.int64, torch.int64, torch.float32]


def test_what_reads_data_or_changes_a_form_is_always_asked():
    answer = FakeResults()
    for size in (2, 5):
        with FakeTensorMode():
            x = torch.empty(6)
            answer(aten.resize_.default, (x, [size]), {})
            assert x.shape == (size,)
    assert not answer.known
