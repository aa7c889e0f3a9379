"""Models without sdpa compute in the plain way, and that is said; other wishes are refused."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
)

from studylib.core.errors import StudyError
from studylib.forecasting import trace as tracing
from studylib.forecasting.cuda_autocast import as_autocast, cuda_autocast
from studylib.forecasting.job import StepSettings
from studylib.forecasting.trace import trace_step
from studylib.modelling.attention import choose_attention
from studylib.modelling.models import load_model, load_tokenizer
from studylib.modelling.weights import settle_weights
from studylib.schema.settings import LoraSettings, MethodSettings, ModelRef, parse_method

SMALL = {"vocab_size": 1024, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1}
HEADS = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
LLAMA = LlamaConfig(**SMALL, **HEADS, hidden_size=64, intermediate_size=128)
GEMMA = Gemma2Config(**SMALL, **HEADS, hidden_size=64, intermediate_size=128, head_dim=16)
GPTJ = GPTJConfig(**SMALL, n_embd=64, n_layer=2, n_head=4, n_positions=512, rotary_dim=8)
MAMBA = MambaConfig(**SMALL, hidden_size=64, num_hidden_layers=2, state_size=8)
FULL = MethodSettings(name="full")


@pytest.mark.parametrize("config", [GEMMA, GPTJ, MAMBA], ids=lambda c: c.model_type)
def test_default_gives_way_to_eager_with_a_reason(config):
    used, reason = choose_attention(config, "sdpa")
    assert used == "eager" and reason.endswith("does not support sdpa")
    assert choose_attention(LLAMA, "sdpa") == ("sdpa", None)


def test_another_kind_that_the_model_lacks_is_refused_with_what_it_has():
    assert choose_attention(LLAMA, "flex_attention") == ("flex_attention", None)
    assert choose_attention(GPTJ, "eager") == ("eager", None)
    with pytest.raises(StudyError, match=r"GPTJForCausalLM does not support flex.* Use eager"):
        choose_attention(GPTJ, "flex_attention")


@pytest.fixture
def gemma(tmp_path, tiny_folder):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(GEMMA).save_pretrained(tmp_path / "gemma")
    load_tokenizer(tiny_folder).save_pretrained(tmp_path / "gemma")
    return tmp_path / "gemma"


def test_model_without_sdpa_loads_and_says_how(gemma):
    loaded = load_model(ModelRef.parse(f"path:{gemma}"), MethodSettings(name="base"), "fp32")
    assert loaded.model.config._attn_implementation == loaded.attention == "eager"
    assert "Gemma2ForCausalLM" in loaded.attention_reason
    ids = torch.arange(12)[None]
    plain = AutoModelForCausalLM.from_pretrained(gemma)
    with torch.no_grad():
        assert torch.equal(loaded.model(ids).logits, plain(ids).logits)


@pytest.mark.parametrize("asked", ["flex_attention", "eager"])
def test_after_training_a_model_is_scored_with_what_it_has(gemma, asked):
    from record_factory import make_spec

    spec = make_spec("full")
    train = spec.train.model_copy(update={"attention": asked})
    spec = spec.model_copy(update={"train": train, "model": f"path:{gemma}"})
    model = load_model(spec.model_ref, FULL, "fp32", attention=asked).model
    settle_weights(spec, model, model)
    assert model.config._attn_implementation == "eager"
    llama = AutoModelForCausalLM.from_config(LLAMA, attn_implementation=asked)
    settle_weights(spec, llama, llama)
    assert llama.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("config", [GEMMA, GPTJ], ids=lambda c: c.model_type)
@pytest.mark.parametrize("kernels", ["cpu", "cuda"])
def test_scores_of_every_layer_are_in_the_forecast_of_an_eager_model(config, kernels):
    def peak(seq_len):
        settings = StepSettings(
            method=FULL, seq_len=seq_len, weights="fp32", kernels=kernels, checkpointing=False
        )
        return sum(trace_step(config, settings).peak()[1])

    # Doubling the tokens adds what grows with them and three times the scores' own square:
    # at least one fp32 [heads, tokens, tokens] a layer is kept for the backward.
    grown, twice = peak(512) - peak(256), peak(1024) - peak(512)
    square = 2 * 4 * 4 * 256**2  # layers, heads, bytes
    assert twice - 2 * grown >= 6 * square


@pytest.mark.parametrize("method", ["full", "qlora"])
def test_autocast_makes_attention_16_bit_before_its_kernel_is_chosen(method):
    """In fp32, grouped heads would fall to the form that holds all scores."""

    def peak(seq_len):
        settings = StepSettings(
            method=parse_method(method, LoraSettings()), seq_len=seq_len, weights="fp32",
            master_weights=True,
        )  # fmt: skip
        return sum(trace_step(LLAMA, settings).peak()[1])

    # What grows with the tokens alone grows twice as much over twice the tokens.
    assert peak(4096) - peak(2048) == pytest.approx(2 * (peak(2048) - peak(1024)), rel=0.02)


def test_cuda_autocast_gives_fp32_where_the_cards_does():
    rows = torch.ones(2, 4, dtype=torch.bfloat16)
    norm = torch.nn.LayerNorm(4, dtype=torch.bfloat16)
    functions = (norm, torch.exp, torch.Tensor.rsqrt, lambda x: x**3, lambda x: x.softmax(-1),
                 lambda x: torch.nn.functional.softmax(x, dim=-1), torch.sum)  # fmt: skip
    with cuda_autocast():
        with torch.autocast("cpu", torch.bfloat16):
            assert {f(rows).dtype for f in functions} == {torch.float32}
            assert torch.softmax(rows, -1, dtype=torch.bfloat16).dtype == torch.bfloat16
            assert (rows * 2).dtype == (rows @ rows.T.float()).dtype == torch.bfloat16
            assert as_autocast(rows.float()).dtype == torch.bfloat16
        assert {f(rows).dtype for f in functions} == {torch.bfloat16}
        assert as_autocast(rows.float()).dtype == torch.float32


def test_a_checkpointed_layer_is_recomputed_as_it_was_computed():
    config = GPTNeoXConfig(**SMALL, num_hidden_layers=2, num_attention_heads=4, hidden_size=64,
                           intermediate_size=128)  # fmt: skip
    assert trace_step(config, StepSettings(method=FULL, seq_len=32)).events


def test_eager_may_be_asked_of_any_model_and_takes_more_memory():
    settings = StepSettings(method=FULL, seq_len=1024, weights="fp32", kernels="cpu")
    eager = settings.model_copy(update={"attention": "eager"})
    fused, plain = (sum(trace_step(LLAMA, s).peak()[1]) for s in (settings, eager))
    assert plain > fused + 4 * 4 * 1024**2


def test_a_model_that_goes_through_its_tokens_one_by_one_is_a_note_and_not_an_endless_trace(
    monkeypatch,
):
    settings = StepSettings(method=FULL, seq_len=64, weights="fp32", kernels="cpu")
    trace_step(MAMBA, settings)
    monkeypatch.setattr(tracing, "MOST_OPERATORS", 500)
    monkeypatch.setattr(tracing, "MOST_OPERATORS_A_LAYER", 500)
    with pytest.raises(StudyError, match="a step of 64 tokens is too long to trace"):
        trace_step(MAMBA, settings)


def test_whatever_foreign_code_raises_is_one_message_without_a_traceback(monkeypatch, capfd):
    def fail(*_):
        raise IndexError("no such thing")

    monkeypatch.setattr(tracing, "train_once", fail)
    with pytest.raises(StudyError, match=r"llama: .*IndexError: no such thing"):
        trace_step(LLAMA, StepSettings(method=FULL, seq_len=32))
    lora = parse_method("lora", LoraSettings())
    with pytest.raises(StudyError, match="peft refuses this adapter"):
        trace_step(MAMBA, StepSettings(method=lora, seq_len=32))
    assert "Traceback" not in capfd.readouterr().err
