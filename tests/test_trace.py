"""A traced step is the real step: its peak, its depth, its arithmetic."""

from __future__ import annotations

import gc
from contextlib import nullcontext

import pytest
import torch
from peft.helpers import disable_input_dtype_casting
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, Qwen3Config

from studylib.core.errors import StudyError
from studylib.forecasting.depth import (
    Depths,
    LayersDiffer,
    continue_trace,
    find_period,
    trace_depth,
)
from studylib.forecasting.job import StepSettings
from studylib.forecasting.moves import ordered
from studylib.forecasting.replay import flatten_moves
from studylib.forecasting.trace import PARTS, StepTrace, Trace, trace_step
from studylib.metering.live import LiveBytes
from studylib.modelling.four_bit import quantize_linears
from studylib.modelling.methods import DTYPES, attach
from studylib.modelling.skeleton import with_depth
from studylib.schema.settings import MethodSettings

SIZES = {"hidden_size": 128, "intermediate_size": 352, "num_attention_heads": 4,
         "num_key_value_heads": 2, "vocab_size": 512, "max_position_embeddings": 512}  # fmt: skip
CONFIG = LlamaConfig(num_hidden_layers=4, **SIZES)
METHOD = {
    "full": MethodSettings(name="full"),
    "lora": MethodSettings(name="lora", rank=8, alpha=16),
    "qlora": MethodSettings(name="qlora", rank=8, alpha=16),
}
RECIPES = {
    "fp32": {"weights": "fp32", "checkpointing": False},
    "checkpointed bf16": {"weights": "bf16"},
    "masked": {"weights": "fp32", "checkpointing": False, "masked": True},
    "foreach without autocast": {"autocast": False, "optimizer": "adamw-foreach"},
}


def measure_real_step(settings: StepSettings) -> int:
    """Peak of live tensor bytes in the second of two real steps on the CPU."""
    model = AutoModelForCausalLM.from_config(
        CONFIG, dtype=DTYPES[settings.weights], attn_implementation="sdpa"
    )
    if settings.method.kind.quantized:
        quantize_linears(model, DTYPES[settings.weights])
        model.is_loaded_in_4bit = True
    model = attach(model, settings.method)
    if settings.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    foreach = settings.optimizer == "adamw-foreach"
    optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=not foreach, foreach=foreach)
    rows, length = settings.micro_batch, settings.seq_len
    positions = torch.arange(length).repeat(rows, 1)
    if settings.masked:  # two examples a row
        positions = torch.cat([positions[:, : length // 2], positions[:, : -(-length // 2)]], 1)
    ids = torch.randint(0, 512, positions.shape)
    gc.collect()
    # As training on a processor has it: autocast rounds what peft would widen.
    narrow = disable_input_dtype_casting(model, active=settings.mixed)
    with narrow, LiveBytes() as live:
        for _ in range(2):
            live.peak_bytes = 0
            with torch.autocast("cpu", torch.bfloat16) if settings.mixed else nullcontext():
                loss = model(
                    input_ids=ids, labels=ids, position_ids=positions, use_cache=False
                ).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            del loss
    return live.peak_bytes


@pytest.mark.parametrize(
    ("method", "recipe"),
    [
        *(("full", recipe) for recipe in RECIPES),
        ("lora", "fp32"),
        ("lora", "checkpointed bf16"),
        ("qlora", "checkpointed bf16"),
        ("qlora", "masked"),
    ],
)
def test_traced_peak_is_within_2_percent_of_a_real_step(method, recipe):
    settings = StepSettings(
        method=METHOD[method], micro_batch=2, seq_len=96, kernels="cpu", **RECIPES[recipe]
    )
    traced = sum(trace_depth(CONFIG, settings).peak()[1])
    assert traced == pytest.approx(measure_real_step(settings), rel=0.02)


@pytest.mark.parametrize(
    ("config", "method", "recipe"),
    [
        (CONFIG, "full", {}),
        (CONFIG, "lora", {"accumulation": 4, "loss": "chunked"}),
        (CONFIG, "qlora", {"checkpointing": False}),
        (CONFIG, "full", {"optimizer": "adamw-8bit", "master_weights": True, "masked": True}),
        (Qwen3Config(head_dim=32, **SIZES), "full", {"optimizer": "adamw-foreach"}),
        (Gemma2Config(head_dim=32, **SIZES), "lora", {"masked": True}),
    ],
)
def test_depth_is_continued_exactly_event_by_event(config, method, recipe):
    settings = StepSettings(method=METHOD[method], seq_len=64, **recipe)
    period = find_period(getattr(config, "layer_types", None))
    depths = Depths(4 * period + 2, period)
    config = with_depth(config, depths.layers)
    short, long, whole = (
        trace_step(with_depth(config, n), settings)
        for n in (depths.short, depths.long, depths.layers)
    )
    continued = continue_trace(short, long, depths)
    if period == 1:
        assert continued.events == whole.events
    else:  # the gradients' norms, 4 bytes a parameter, begin a block of 512 at some depths alone
        for ours, theirs in zip(continued.events, whole.events, strict=True):
            room = 512 if ours[0][0] == "optimizer" else 0
            assert ours[0] == theirs[0]
            assert max(abs(a - b) for a, b in zip(ours[1], theirs[1], strict=True)) <= room
    assert [(r.segment, r.earlier, ordered(r.moves)) for r in continued.runs] == [
        (r.segment, r.earlier, ordered(r.moves)) for r in whole.runs
    ]
    assert (continued.held, continued.trained) == (whole.held, whole.trained)
    assert (continued.trainable_params, continued.total_params) == (
        whole.trainable_params,
        whole.total_params,
    )
    for weight in (1, 2):  # flops, bytes
        totals = [sum(k[weight] * n for k, n in t.operators.items()) for t in (continued, whole)]
        assert totals[0] == totals[1]


def test_layers_that_differ_are_never_continued():
    full = StepSettings(method=METHOD["full"], seq_len=32)
    with pytest.raises(LayersDiffer):
        continue_trace(
            trace_step(with_depth(CONFIG, 3), full),
            trace_step(with_depth(CONFIG, 4), full.model_copy(update={"checkpointing": False})),
            Depths(9),
        )


def test_an_update_parameter_by_parameter_is_continued_to_the_same_peak():
    settings = StepSettings(method=METHOD["full"], seq_len=64, optimizer="adamw-loop")
    depths = Depths(7)
    short, long, whole = (trace_step(with_depth(CONFIG, n), settings) for n in (3, 4, 7))
    assert continue_trace(short, long, depths).peak() == whole.peak()


@pytest.mark.parametrize(
    ("kinds", "period"),
    [(None, 1), ("aaaa", 1), ("abab", 2), ("ababa", 2), ("aaab" * 3, 4), ("aabb", 4)],
)
def test_the_period_of_a_models_kinds_of_layers(kinds, period):
    assert find_period(kinds) == period


def peak_of(**changes) -> dict[str, int]:
    method = METHOD[changes.pop("method", "full")]
    _, parts = trace_step(CONFIG, StepSettings(method=method, seq_len=256, **changes)).peak()
    return dict(zip(PARTS, parts, strict=True))


def test_states_and_copies_have_their_known_sizes():
    weights = peak_of()["weights"]
    assert peak_of()["optimizer_states"] == pytest.approx(2 * weights, rel=0.01)
    assert peak_of(master_weights=True)["optimizer_states"] == pytest.approx(6 * weights, rel=0.01)
    # Two bytes a weight and constants; the embedding's states stay in fp32.
    bits = peak_of(optimizer="adamw-8bit")["optimizer_states"]
    assert bits == pytest.approx(weights + 6 * CONFIG.vocab_size * CONFIG.hidden_size, rel=0.05)


def test_paged_states_leave_the_card_but_are_told():
    config = LlamaConfig(num_hidden_layers=1, **(SIZES | {"vocab_size": 2048}))
    settings = StepSettings(method=METHOD["full"], seq_len=64, optimizer="paged-adamw-8bit")
    trace = trace_step(config, settings)
    # The embedding's in fp32 and the output layer's in 8 bits; others are small.
    assert trace.paged_bytes == (2 * 4 + 2) * 2048 * 128
    assert trace.peak()[1][PARTS.index("optimizer_states")] < trace.paged_bytes


def test_foreach_needs_a_copy_of_the_weights_that_fused_does_not():
    tokens = {"checkpointing": True, "micro_batch": 1}
    fused, foreach = (peak_of(optimizer=o, **tokens) for o in ("adamw", "adamw-foreach"))
    assert sum(foreach.values()) > sum(fused.values())


def test_checkpointing_and_chunking_lower_the_peak():
    config = LlamaConfig(num_hidden_layers=2, **(SIZES | {"vocab_size": 8192}))

    def peak(**changes) -> int:
        settings = StepSettings(method=METHOD["lora"], micro_batch=8, seq_len=512, **changes)
        return sum(trace_step(config, settings).peak()[1])

    assert peak(loss="chunked") < peak() < peak(checkpointing=False)


def test_frozen_weights_have_no_gradient_arithmetic_and_recomputation_counts():
    def flops(method: str, **changes) -> float:
        settings = StepSettings(method=METHOD[method], seq_len=256, **changes)
        return sum(k[1] * n for k, n in trace_step(CONFIG, settings).operators.items())

    matrices = CONFIG.num_hidden_layers * (128 * (2 * 128 + 2 * 64) + 3 * 128 * 352) + 128 * 512
    attention = CONFIG.num_hidden_layers * 2 * 256**2 * 128 / 256  # scores and values, causal half
    forward = 256 * 2 * (matrices + attention / 2)
    assert flops("full", checkpointing=False) == pytest.approx(3 * forward, rel=0.03)
    assert flops("full") == pytest.approx(4 * forward, rel=0.05)
    assert 2 * forward < flops("lora", checkpointing=False) < 2.5 * forward


def test_what_a_layer_recomputes_is_temporary():
    """What the forward saved only shrinks in the backward, whoever calls the layers' hooks."""
    trace = trace_step(CONFIG, StepSettings(method=METHOD["full"], seq_len=256))
    backward = [parts for (stage, _), parts in trace.events if stage == "backward"]
    saved = [parts[PARTS.index("saved_activations")] for parts in backward]
    assert saved == sorted(saved, reverse=True)
    assert max(parts[PARTS.index("temporaries")] for parts in backward) > saved[0]


def test_only_what_a_card_would_run_moves_bytes():
    """PyTorch asks a fake tensor for its device by an operator, thousands of times a step."""
    trace = Trace(layers=0)
    with FakeTensorMode(), StepTrace(trace, cuda=True) as live:
        rows, weight = torch.empty(4, 8), torch.empty(3, 8)
        live.recording = True
        torch.nn.functional.linear(rows, weight)
    assert trace.operators == {("setup", 2 * 4 * 8 * 3, 4 * (4 * 8 + 3 * 8 + 4 * 3)): 1}


def test_an_architecture_that_needs_data_names_its_operator(monkeypatch):
    def data_dependent(self, *_args, **_kwargs):
        return torch.nonzero(torch.zeros(3)).sum().item()

    monkeypatch.setattr("transformers.models.llama.modeling_llama.LlamaMLP.forward", data_dependent)
    with pytest.raises(StudyError, match=r"aten\.(nonzero|_local_scalar_dense)"):
        trace_step(CONFIG, StepSettings(method=METHOD["full"], seq_len=32))


def test_one_recorded_step_equals_the_second_of_two_whole_steps(monkeypatch):
    from studylib.forecasting import step, trace

    def train_twice(model, batch, settings, live):
        model.train()
        trained = [p for p in model.parameters() if p.requires_grad]
        for parameter in trained:
            parameter.register_post_accumulate_grad_hook(lambda p: live.move([p.grad], "gradients"))
        optimizer = step.make_optimizer(settings.optimizer, trained, settings.master_weights)
        for live.recording in (False, True):
            step.forward_backward(model, batch, settings, live)
            step.update(trained, optimizer, live)
        return optimizer.paged_bytes

    settings = StepSettings(method=METHOD["lora"], seq_len=64, checkpointing=False)
    once = trace_step(CONFIG, settings)
    monkeypatch.setattr(trace, "train_once", train_twice)
    twice = trace_step(CONFIG, settings)
    assert twice.events == once.events
    assert flatten_moves(twice.runs) == flatten_moves(once.runs)
