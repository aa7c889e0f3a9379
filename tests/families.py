"""Tiny random models of families whose layers are not a plain Llama's, as checkpoint folders."""

from __future__ import annotations

from pathlib import Path

LLAMA = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.06,
}
FAMILIES = {
    "llama": LLAMA,
    # Square in every layer but two: a copy that is not turned would pass unseen.
    "gpt2": {
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 512,
        "initializer_range": 0.06,
    },
    "falcon": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": False},
    # Examples of a packed row see one another.
    "opt": {
        "hidden_size": 64,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
        "word_embed_proj_dim": 64,
        "dropout": 0.0,
        "init_std": 0.1,
    },
    "mixtral": LLAMA | {"num_local_experts": 4},
    "deepseek_v3": LLAMA
    | {
        "moe_intermediate_size": 32,
        "num_key_value_heads": 4,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "kv_lora_rank": 16,
        "q_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
        "qk_nope_head_dim": 8,
        "first_k_dense_replace": 1,
    },
    "falcon_h1": LLAMA
    | {
        "mamba_d_ssm": 64,
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
    },
    "llama4_text": LLAMA
    | {
        "intermediate_size": 64,
        "intermediate_size_mlp": 128,
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "attention_chunk_size": 64,
        "interleave_moe_layer_step": 1,
    },
}


def family_config(family: str):
    from transformers import CONFIG_MAPPING

    numbers = {"vocab_size": 1024, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1}
    return CONFIG_MAPPING[family](**(numbers | FAMILIES[family]))


def save_family(family: str, folder: Path) -> Path:
    """A seeded model with the ladder's tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM

    from studylib.inputs.almanac import ladder_folder, ladder_names
    from studylib.modelling.models import load_tokenizer

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(family_config(family)).save_pretrained(folder)
    load_tokenizer(ladder_folder(ladder_names()[0])).save_pretrained(folder)
    return folder
