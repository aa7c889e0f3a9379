"""Losses over slices are the model's own, whatever it does to its logits."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from studylib.core.errors import StudyError
from studylib.modelling import chunked_loss
from studylib.modelling.chunked_loss import install_chunked_loss, slices_head_alone
from studylib.modelling.packing import read_apart
from studylib.training.collate import PackedCollator

VOCABULARY = {"vocab_size": 200, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1}
USUAL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.3,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8}
# name -> (its settings, whether the output layer is all that makes its logits)
KINDS = {
    "llama": (USUAL, True),
    "qwen3_moe": ({**USUAL, **EXPERTS}, True),
    "cohere": ({**USUAL, "logit_scale": 0.25}, False),
    "granite": ({**USUAL, "logits_scaling": 8.0}, False),
    "gemma2": ({**USUAL, "head_dim": 8, "final_logit_softcapping": 3.0}, False),
    "gemma3_text": ({**USUAL, "head_dim": 8, "final_logit_softcapping": 3.0}, False),
    "falcon_h1": (
        {**USUAL, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8,
         "mamba_n_groups": 1, "lm_head_multiplier": 0.3},
        False,
    ),
    "recurrent_gemma": (
        {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "lru_width": 32,
         "intermediate_size": 64, "attention_window_size": 64, "num_key_value_heads": 1,
         "logits_soft_cap": 3.0},
        False,
    ),
    "opt": (
        {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "max_position_embeddings": 256, "word_embed_proj_dim": 32, "dropout": 0.0},
        True,
    ),
}  # fmt: skip


def make(kind, **more):
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](**{**VOCABULARY, **KINDS[kind][0], **more})
    attention = "eager" if kind == "gemma2" else "sdpa"
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    model.config.use_cache = False
    return model.train()


def draw_batch():
    """Two rows of packed examples, the second filled up, half of each example taught."""
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randint(2, 200, (n,), generator=generator).tolist() for n in (20, 9, 14, 31)]
    made = [{"input_ids": i, "labels": [-100] * (len(i) // 2) + i[len(i) // 2 :]} for i in drawn]
    return PackedCollator()([made[:3], made[3:]])


def loss_and_gradients(model, batch, items=None):
    model.zero_grad()
    more = {} if items is None else {"num_items_in_batch": items}
    loss = model(**batch, **more).loss
    loss.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return float(loss.detach()), grads


@pytest.mark.parametrize("items", [None, 11])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_the_models_own(kind, items, monkeypatch):
    monkeypatch.setattr(chunked_loss, "CHUNK_TOKENS", 7)
    model, batch = make(kind), draw_batch()
    assert slices_head_alone(model) == KINDS[kind][1]
    own, own_gradients = loss_and_gradients(model, batch, items)
    install_chunked_loss(model)
    sliced, gradients = loss_and_gradients(model, batch, items)
    assert sliced == pytest.approx(own, rel=1e-5)
    assert gradients.keys() == own_gradients.keys()
    for name, gradient in gradients.items():
        # against its norm, or rounding's where a weight has no say in the loss
        limit = 1e-4 * own_gradients[name].norm() + 1e-7
        assert (gradient - own_gradients[name]).norm() <= limit, name


@pytest.mark.parametrize("kind", ["cohere", "granite", "gemma2", "falcon_h1", "recurrent_gemma"])
def test_the_output_layer_alone_would_train_another_loss(kind):
    """The control: without the comparison these are off by more than the tolerance."""
    model, batch = make(kind), draw_batch()
    own, _ = loss_and_gradients(model, batch)
    install_chunked_loss(model, head_alone=True)
    assert loss_and_gradients(model, batch)[0] != pytest.approx(own, rel=1e-4)


def test_an_output_layer_that_looks_at_more_than_a_token_is_refused(monkeypatch):
    monkeypatch.setattr(chunked_loss, "CHUNK_TOKENS", 7)
    model = make("llama")
    model.lm_head.register_forward_hook(lambda _layer, _words, logits: logits * logits.std())
    with pytest.raises(StudyError, match="over slices"):
        install_chunked_loss(model)


def test_rows_read_one_by_one_are_sliced_as_well(monkeypatch):
    monkeypatch.setattr(chunked_loss, "CHUNK_TOKENS", 7)
    model, batch = make("falcon_h1"), draw_batch()
    read_apart(model)
    own, own_gradients = loss_and_gradients(model, batch)
    install_chunked_loss(model)
    sliced, gradients = loss_and_gradients(model, batch)
    assert sliced == pytest.approx(own, rel=1e-5)
    for name, gradient in gradients.items():
        limit = 1e-4 * own_gradients[name].norm() + 1e-7
        assert (gradient - own_gradients[name]).norm() <= limit, name


def test_trying_leaves_the_model_as_it_was():
    model = make("granite")
    state = torch.get_rng_state()
    slices_head_alone(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training and all(p.grad is None for p in model.parameters())
    assert "forward" not in vars(model) and "forward" not in vars(model.model)


def test_tensors_without_values_are_not_tried():
    with torch.device("meta"):
        assert slices_head_alone(make("llama")) is True
    with FakeTensorMode():
        assert slices_head_alone(make("llama")) is True


def test_without_labels_logits_are_as_before():
    model, batch = make("granite").eval(), draw_batch()
    del batch["labels"]
    with torch.no_grad():
        before = model(**batch).logits
        install_chunked_loss(model)
        assert torch.equal(model(**batch).logits, before)
