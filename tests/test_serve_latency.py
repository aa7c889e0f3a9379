"""Latency: the loop decodes greedily, percentiles are right, a model against itself costs 1."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch

from studylib.core.errors import StudyError
from studylib.modelling.models import load_model
from studylib.modelling.variants import add_adapters, plain_copy, share_weights
from studylib.schema.profile import (
    LoraSettings,
    MethodSettings,
    ModelRef,
    parse_method,
    read_profile,
)
from studylib.schema.serving import ServeSettings, serve_specs, summarise_seconds
from studylib.serving.engines import (
    VllmClock,
    lora_requests,
    measure_vllm,
    missing_reason,
    open_vllm,
    unfit_reason,
)
from studylib.serving.latency import (
    LAYOUTS,
    Conversation,
    Series,
    Served,
    decode,
    latency_row,
    make_prompt,
    take_turns,
    time_case,
    time_pair,
)


@pytest.fixture(scope="module")
def tiny(tiny_folder):
    ref = ModelRef.parse(f"path:{tiny_folder}")
    return load_model(ref, MethodSettings(name="base"), "fp32").model.eval()


def greedy(model, prompt, count):
    """Token by token without a cache."""
    ids = prompt
    for _ in range(count):
        with torch.inference_mode():
            logits = model(input_ids=ids, use_cache=False).logits
        ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], 1)
    return ids[:, prompt.shape[1] :]


@pytest.mark.parametrize("decoding", ["eager", "static"])
def test_decoding_equals_greedy_decoding_without_a_cache(tiny, decoding):
    prompt = make_prompt(500, 3, 20)
    assert torch.equal(decode(Served("base", tiny, decoding), prompt, 7), greedy(tiny, prompt, 7))


@pytest.mark.parametrize("decoding", ["eager", "static"])
def test_a_conversation_that_starts_again_says_the_same(tiny, decoding):
    prompt = make_prompt(500, 2, 10)
    conversation = Conversation(Served("base", tiny, decoding), prompt, 6)
    conversation.first()
    expected = greedy(tiny, prompt, 6)[:, -1:]
    for _ in range(3):  # 5 steps each: a whole reply
        conversation.steps()
        assert torch.equal(conversation._token, expected)


def test_rounds_go_round_copies_on_the_same_weights(tiny):
    served = Served("base", tiny)
    assert len(served.copies) == LAYOUTS and served.copies is served.copies
    weights = {copy.model.lm_head.weight.data_ptr() for copy in served.copies}
    assert weights == {tiny.lm_head.weight.data_ptr()}
    assert len({id(copy.model) for copy in served.copies}) == LAYOUTS


def test_percentiles_by_hand_and_none_where_so_few_cannot_show_them():
    timings = summarise_seconds([n / 100 for n in range(101)])  # 0.00 ... 1.00
    assert (timings.p50, timings.p95, timings.p99) == pytest.approx((0.50, 0.95, 0.99))
    assert (timings.lowest, timings.highest, timings.mean) == pytest.approx((0, 1, 0.5))
    few = summarise_seconds([1.0, 2.0, 4.0])
    assert (few.p50, few.p95, few.p99) == (2.0, None, None)
    assert summarise_seconds(range(1, 21)).p99 is None
    with pytest.raises(StudyError, match="nothing to summarise"):
        summarise_seconds([])


def test_a_rows_figures_by_hand():
    prompt = make_prompt(500, 4, 10)
    base = Series(first=[0.1, 0.1, 0.1], rounds=[[0.01, 0.01, 0.9]] * 3)  # one interruption each
    other = Series(first=[0.1, 0.1, 0.1], rounds=[[0.02, 0.02, 0.02]] * 3)
    row = latency_row("dynamic", other, "eager", prompt, 11, ("base", base))
    assert row.first_token_ratio.value == pytest.approx(1)
    assert row.between_tokens_ratio.value == pytest.approx(2)  # medians: not the interruption
    assert row.whole_ratio.value == pytest.approx(0.3 / 0.2)
    assert row.tokens_per_second == pytest.approx(4 * 11 / 0.3)
    assert row.decode_tokens_per_second == pytest.approx(4 / 0.02)


def test_turns_are_taken_in_turn_at_least_and_at_most_so_often():
    seen: list[str] = []
    turns = [lambda: seen.append("a"), lambda: seen.append("b")]
    assert take_turns(turns, 3, 10, 0.0) == 3
    assert "".join(seen) == "ababab"
    assert take_turns(turns, 1, 4, 60.0) == 4


def test_a_model_against_itself_costs_about_one(tiny):
    served = Served("base", tiny)
    prompt = make_prompt(500, 1, 16)
    base, other = time_pair(served, Served("again", tiny), prompt, 11, 12, 2.0)
    ratio = latency_row("again", other, "eager", prompt, 11, ("base", base)).between_tokens_ratio
    assert ratio.pairs >= 6
    assert ratio.low <= 1.1 and ratio.high >= 0.9  # benchmarks/paired_ratio.py is strict


def test_kernels_that_are_planned_for_each_length_are_planned_before_the_clock_starts(
    tiny, monkeypatch
):
    """As cuDNN's attention on Hopper: 25 ms where a length of keys is seen for the first time."""
    attend, known = torch.nn.functional.scaled_dot_product_attention, set()

    def plan(query, key, *words, **options):
        if (query.shape, key.shape) not in known:
            known.add((query.shape, key.shape))
            planned.append(key.shape)
        return attend(query, key, *words, **options)

    planned: list = []
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", plan)
    conversation = Conversation(Served("base", tiny), make_prompt(500, 1, 16), 32)
    conversation.warm_up()
    assert len(planned) == 31  # the prompt's and those of 30 steps
    conversation.first()
    for _ in range(13):
        conversation.steps()
    assert len(planned) == 31


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_every_case_of_compiled_decoding_runs_compiled(tiny, tiny_folder, monkeypatch, method):
    """Dynamo gives up, with a log line, on a function that it has compiled 8 times."""
    graphs, runs, compiler = [], [], torch.compile

    def count(graph, _):
        graphs.append(graph)

        def run(*words):
            runs.append(graph)
            return graph.forward(*words)

        return run

    monkeypatch.setattr(torch, "compile", lambda model, **_: compiler(model, backend=count))
    ref, settings = ModelRef.parse(f"path:{tiny_folder}"), parse_method(method, LoraSettings())
    own = load_model(ref, settings, "fp32").model.eval() if method == "qlora" else tiny
    adapted = add_adapters(share_weights(own), settings, 2, "fp32")
    pairs = [
        (Served("base", tiny, "compiled"), Served("dynamic", adapted, "compiled")),
        (Served("own", own, "compiled"), Served("copy", plain_copy(tiny), "compiled")),
    ]
    for prompt_tokens in (8, 12):
        for batch in (1, 2, 3):
            graphs.clear()
            runs.clear()
            rows, timings = time_case(pairs, make_prompt(500, batch, prompt_tokens), 6, 3, 0.001)
            assert len(graphs) == (2 if method == "lora" else 3)
            # a warm-up of 5 steps, then 7 rounds of 5, of two in each of two pairs
            assert len(runs) == 4 * (5 + 7 * 5)
            assert sum(row.first_token_ratio.pairs for row in rows if row.against) == sum(
                one["what"] == "first token" for one in timings
            )


class FakeClock:
    now = 0.0


class FakeEngine:
    """Answers as vLLM does; each token takes 1 ms, with adapters 2 ms, the prompt 10 ms."""

    def __init__(self, **options):
        self.options = options

    def generate(self, prompts, params, lora_request=None, use_tqdm=True):
        assert params.ignore_eos and not use_tqdm and "prompt_token_ids" in prompts[0]
        assert lora_request is None or len(lora_request) == len(prompts)
        each = 0.002 if lora_request else 0.001
        FakeClock.now += 0.010 + (params.max_tokens - 1) * each


def plant_vllm(monkeypatch):
    def handle(name, number, path):
        return SimpleNamespace(name=name, number=number, path=path)

    made = SimpleNamespace(LLM=FakeEngine, SamplingParams=SimpleNamespace, LoRARequest=handle)
    for name in ("vllm", "vllm.lora", "vllm.lora.request"):
        monkeypatch.setitem(sys.modules, name, made)


def test_vllm_rows_come_from_long_and_one_token_calls(monkeypatch, tmp_path):
    import studylib.serving.engines as engines

    monkeypatch.setattr(
        engines, "time", SimpleNamespace(perf_counter=lambda: FakeClock.now), raising=True
    )
    asked = ServeSettings(batch_sizes=(4,), prompt_tokens=(128, 1024), rounds=4)
    specs = {s.method.name: s for s in serve_specs(read_profile("smoke"), "vllm", asked)}
    spec = specs["lora"]
    plant_vllm(monkeypatch)
    assert spec.serve_id.endswith("--vllm")
    engine = open_vllm(tmp_path, spec, 512)
    assert engine.options["max_lora_rank"] == 16 and engine.options["max_loras"] == 4
    requests = lora_requests({"default": tmp_path, "a1": tmp_path})
    assert [request.number for request in requests] == [1, 2]
    rows, skipped = measure_vllm(engine, spec, requests, 500, 512)
    assert [row.variant for row in rows] == ["base", "dynamic", "mixed"]
    assert rows[0].first_token_seconds.p50 == pytest.approx(0.010)
    assert rows[0].between_tokens_seconds.p50 == pytest.approx(0.001)
    assert rows[1].between_tokens_ratio.value == pytest.approx(2)
    assert rows[1].first_token_ratio.value == pytest.approx(1)
    assert [s.what for s in skipped] == ["prompt of 1024 tokens"]
    assert unfit_reason(spec) is None and "4-bit" in unfit_reason(specs["qlora"])
    assert VllmClock(engine, make_prompt(9, 1, 3), 5).first(None) == pytest.approx(0.010)


def test_vllm_is_skipped_with_its_reason_where_it_cannot_run():
    assert missing_reason("transformers") is None
    if not torch.cuda.is_available():
        assert "CUDA" in missing_reason("vllm")
    with pytest.raises(StudyError, match="no such engine"):
        missing_reason("tgi")
