"""Packed examples stay apart in every architecture: each is held to itself, read alone."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.masking_utils import find_packed_sequence_indices

from studylib.core.errors import StudyError
from studylib.modelling import packing
from studylib.modelling.packing import (
    group_alike,
    keep_examples_apart,
    probe_causal,
    probe_packing,
    read_apart,
)
from studylib.training.collate import PackedCollator

VOCABULARY = {"vocab_size": 200, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1}
USUAL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.1,
}  # fmt: skip
LINEAR = {
    "head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
OLD = {"hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.1}
MAMBA = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "initializer_range": 0.1}
FALCON = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
          "initializer_range": 0.1}  # fmt: skip
# Those whose mask transformers makes from positions; and those that it leaves to themselves.
PACKED = {
    "llama": ("llama", USUAL),
    "qwen3_moe": ("qwen3_moe", {**USUAL, **EXPERTS, "head_dim": 8}),
    "gemma2": ("gemma2", {**USUAL, "head_dim": 8, "sliding_window": 64}),
    "gpt2": ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256,
                      "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
}  # fmt: skip
LEAKING = {
    "qwen3_5_text": ("qwen3_5_text", {**USUAL, **LINEAR}),
    "qwen3_next": (
        "qwen3_next", {**USUAL, **LINEAR, **EXPERTS, "shared_expert_intermediate_size": 16}
    ),
    "granitemoehybrid": (
        "granitemoehybrid",
        {**USUAL, "num_local_experts": 0, "shared_intermediate_size": 64,
         "layer_types": ["mamba", "attention"], "mamba_n_heads": 4, "mamba_d_state": 8,
         "mamba_d_head": 16, "mamba_n_groups": 1},
    ),
    "jamba": (
        "jamba",
        {**USUAL, "num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1,
         "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_d_state": 8},
    ),
    "falcon_h1": (
        "falcon_h1",
        {**USUAL, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8,
         "mamba_n_groups": 1},
    ),
    "lfm2": ("lfm2", {**USUAL, "layer_types": ["conv", "full_attention"]}),
    "recurrent_gemma": (
        "recurrent_gemma",
        {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "lru_width": 32,
         "intermediate_size": 64, "attention_window_size": 64, "num_key_value_heads": 1},
    ),
    "opt": (
        "opt",
        {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "max_position_embeddings": 256, "word_embed_proj_dim": 32, "init_std": 0.1,
         "dropout": 0.0},
    ),
    "falcon": ("falcon", {**FALCON, "alibi": False}),
    "falcon-alibi": ("falcon", {**FALCON, "alibi": True, "multi_query": False}),
    "bloom": ("bloom", OLD),
    "mpt": ("mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 256,
                    "initializer_range": 0.1}),
    "mamba": ("mamba", MAMBA),
    "mamba2": ("mamba2", {**MAMBA, "num_heads": 8, "head_dim": 8, "n_groups": 1}),
    "rwkv": ("rwkv", {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32,
                      "intermediate_size": 64}),
}  # fmt: skip
LENGTHS = (20, 7, 13, 31)


def make(name):
    kind, numbers = {**PACKED, **LEAKING}[name]
    torch.manual_seed(0)
    config = CONFIG_MAPPING[kind](**{**VOCABULARY, **numbers})
    eager = name in ("gemma2", "bloom", "mpt", "mamba", "mamba2", "rwkv")
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation="eager" if eager else "sdpa"
    )
    model.config.use_cache = False
    return model.eval()


def draw_rows():
    """Two rows of examples, of unequal length, so that the second row is filled up."""
    generator = torch.Generator().manual_seed(1)
    drawn = [torch.randint(2, 200, (n,), generator=generator).tolist() for n in LENGTHS]
    made = [{"input_ids": ids, "labels": [-100] * 3 + ids[3:]} for ids in drawn]
    return [made[:3], made[3:]]


def summed_loss_alone(model, row):
    """By hand, each example alone: -log p of each taught token after those before it."""
    total, count = 0.0, 0
    for example in row:
        logits = model(input_ids=torch.tensor([example["input_ids"]])).logits[0]
        for place in range(1, len(example["labels"])):
            if example["labels"][place] != -100:
                total = total - logits[place - 1].float().log_softmax(-1)[example["labels"][place]]
                count += 1
    return total, count


@pytest.mark.parametrize("name", [*PACKED, *LEAKING])
def test_each_packed_example_has_the_logits_that_it_has_alone(name):
    model = make(name)
    untouched = copy.deepcopy(model)
    reason = keep_examples_apart(model)
    assert (reason is None) == (name in PACKED)
    rows = draw_rows()
    batch = PackedCollator(multiple=8)(rows)
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"]).logits
        assert logits.shape[:2] == batch["input_ids"].shape
        for row, found in zip(rows, logits, strict=True):
            start = 0
            for example in row:
                alone = untouched(input_ids=torch.tensor([example["input_ids"]])).logits[0]
                end = start + len(example["input_ids"])
                assert (found[start:end] - alone).abs().max() < 1e-4 * alone.std()
                start = end


@pytest.mark.parametrize("name", ["qwen3_5_text", "opt", "mamba"])
def test_gradients_are_those_of_the_examples_passed_one_by_one(name):
    """With adapter and checkpointing, over two rows at once."""
    model = make(name)
    read_apart(model)
    targets = {"mamba": ["in_proj"]}.get(name, ["q_proj", "in_proj_qkv", "v_proj"])
    adapted = get_peft_model(
        model, LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
    )
    adapted.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    adapted.train()
    rows = draw_rows()
    adapted(**PackedCollator()(rows)).loss.backward()
    trained = {n: p for n, p in adapted.named_parameters() if p.requires_grad}
    packed = {n: p.grad.clone() for n, p in trained.items()}
    adapted.zero_grad()
    model.gradient_checkpointing_disable()
    total, count = summed_loss_alone(adapted, [example for row in rows for example in row])
    (total / count).backward()
    assert len(packed) >= 4
    for n, parameter in trained.items():
        assert torch.allclose(packed[n], parameter.grad, rtol=1e-3, atol=1e-6), n


def test_a_planted_leak_is_found(monkeypatch):
    """The same Llama, once with transformers' mask of packed rows and once without."""
    assert probe_packing(make("llama")) is None
    monkeypatch.setattr(
        "transformers.masking_utils.find_packed_sequence_indices", lambda position_ids: None
    )
    assert "sees the one before it" in probe_packing(make("llama"))
    assert find_packed_sequence_indices(torch.tensor([[0, 1, 0]])) is not None


def test_positions_that_count_on_are_found():
    model = make("gpt2")
    plain = model.transformer.forward

    def count_on(*words, position_ids=None, **inputs):
        """Restarts hide each example from the next, but the second one begins at 100."""
        if position_ids is not None:
            later = (position_ids.diff(dim=1, prepend=position_ids[:, :1]) < 0).cumsum(1) > 0
            position_ids = position_ids + 100 * later
        return plain(*words, position_ids=position_ids, **inputs)

    model.transformer.forward = count_on
    assert "standard deviations off" in probe_packing(model)


def test_code_that_refuses_restarting_positions_is_a_reason():
    model = make("llama")
    plain = model.forward

    def refuse(input_ids, position_ids=None, **inputs):
        if position_ids is not None:
            raise TypeError("no position_ids here")
        return plain(input_ids=input_ids, **inputs)

    model.forward = refuse
    assert "refuses" in probe_packing(model) and "no position_ids here" in probe_packing(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_encoder_is_no_causal_model(dtype):
    torch.manual_seed(0)
    config = CONFIG_MAPPING["bert"](
        **VOCABULARY, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, initializer_range=0.2,
    )  # fmt: skip
    with pytest.raises(StudyError, match="no causal language model"):
        probe_causal(AutoModelForCausalLM.from_config(config, dtype=dtype))
    probe_causal(make("llama").to(dtype))


def test_a_probe_leaves_no_trace():
    model = make("opt").train()
    model.config.use_cache = True
    model.lm_head.eval()
    state = torch.get_rng_state()
    assert probe_packing(model) is not None
    probe_causal(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training and model.model.training and not model.lm_head.training
    assert model.config.use_cache is True
    assert "forward" not in vars(model)


def test_weights_that_are_no_numbers_are_not_judged():
    model = make("llama")
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    assert keep_examples_apart(model) is None


def test_a_model_that_cannot_be_mended_is_refused(monkeypatch):
    monkeypatch.setattr(packing, "read_apart", lambda model: None)
    with pytest.raises(StudyError, match="cannot be kept apart"):
        keep_examples_apart(make("opt"))


@pytest.mark.parametrize("name", ["opt", "bloom"])
def test_masks_caches_and_signatures_stay_as_they_were(name):
    model = make(name)
    untouched = copy.deepcopy(model)
    read_apart(model)
    own = inspect.signature(untouched.forward)
    assert inspect.signature(model.forward) == own
    ids = torch.arange(2, 14)[None]
    mask = torch.ones_like(ids)
    mask[:, :4] = 0
    with torch.no_grad():
        for inputs in ({"attention_mask": mask}, {"use_cache": True}):
            one, other = (m(input_ids=ids, **inputs) for m in (model, untouched))
            assert torch.equal(one.logits, other.logits)
        later = [
            m(input_ids=ids[:, :1], past_key_values=out.past_key_values).logits
            for m, out in ((model, one), (untouched, other))
        ]
        assert torch.equal(*later)


def test_a_copy_reads_with_its_own_weights():
    model = make("opt")
    read_apart(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.lm_head.weight.mul_(0)
        other.model.decoder.layers[0].fc1.weight.mul_(3)
        batch = PackedCollator()(draw_rows())
        del batch["labels"]
        hidden = [m.model.decoder(**batch).last_hidden_state for m in (model, other)]
        assert model(**batch).logits.abs().max() > 0 == other(**batch).logits.abs().max()
        assert not torch.equal(*hidden)


def test_groups_pad_little_and_hold_every_example():
    lengths = [9, 100, 10, 95, 11, 90, 50, 1]
    groups = group_alike(lengths)
    assert sorted(i for group in groups for i in group) == list(range(8))
    for group in groups:
        own = sum(lengths[i] for i in group)
        assert max(lengths[i] for i in group) * len(group) <= 1.25 * own
    assert len(groups) < 8


def test_processes_that_divide_a_model_call_it_once_and_copies_by_group(monkeypatch):
    for name, value in (("STUDY_LAUNCHED", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert len(group_alike([1, 100, 50])) == 3
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert len(group_alike([1, 100, 50])) == 1


def test_router_logits_come_back_in_packed_layout():
    model = make("qwen3_next")
    read_apart(model)
    ids = torch.arange(2, 26)[None]
    positions = torch.cat([torch.arange(5), torch.arange(12), torch.arange(7)])[None]
    with torch.no_grad():
        found = model(input_ids=ids, position_ids=positions, output_router_logits=True)
        alone = model(input_ids=ids[:, 5:17], output_router_logits=True)
    for layer, one in zip(found.router_logits, alone.router_logits, strict=True):
        assert torch.allclose(layer.flatten(0, -2)[5:17], one.flatten(0, -2), atol=1e-5)
