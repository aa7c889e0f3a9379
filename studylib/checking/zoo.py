"""Tiny random models of every causal architecture that transformers knows, to try the study on.

A default configuration is made small by the names of its fields; what one kind needs besides
stands in zoo.yaml, by model type. All speak the ladder's vocabulary of 1,024 tokens.

Not covered: what is tried on them (studylib.checking.check_model); pictures and sound: of a
kind that opens as a text model, the text model is made.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
import yaml

from studylib.core.errors import name_error
from studylib.inputs.almanac import ladder_folder, ladder_names

SIZES_FILE = Path(__file__).with_name("zoo.yaml")
TOKENS = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1}
# Wide enough that two random models differ by more than rounding in what they say.
SPREADS = {"initializer_range": 0.06, "init_std": 0.06, "embed_init_std": 0.06}
MAX_BYTES = 3_000_000


def zoo_names() -> list[str]:
    """Every model type that transformers opens as a causal language model, sorted."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def make_model(folder: Path, name: str) -> Path | str:
    """A tiny checkpoint of one model type in `folder`, or why it cannot be made."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if reason := read_sizes()["left_out"].get(name):
        return str(reason)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = tiny_config(name)
            with torch.device("meta"):  # a kind that would not become small is never made
                model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            size = sum(p.numel() * p.element_size() for p in model.parameters())
            if size > MAX_BYTES:
                return f"{size / 1e6:.1f} MB where {MAX_BYTES / 1e6:.1f} are allowed"
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(ladder_folder(ladder_names()[0]))
        tokenizer.save_pretrained(folder)
    except Exception as error:
        shutil.rmtree(folder, ignore_errors=True)
        return name_error(error)
    return folder


def read_sizes() -> dict[str, dict[str, Any]]:
    """What zoo.yaml says, with the size of each field by its name."""
    table = yaml.safe_load(SIZES_FILE.read_text(encoding="utf-8"))
    sizes = {name: size for size, names in table["sizes"].items() for name in names}
    return {**table, "sizes": sizes}


def tiny_config(name: str) -> Any:
    """The default configuration of a model type with every size that zoo.yaml knows made small."""
    from transformers import CONFIG_MAPPING

    table = read_sizes()
    kind = CONFIG_MAPPING[name]
    own = dict(table["models"].get(name, {}))
    fields = {key: value for key, value in vars(kind()).items() if not key.startswith("_")}
    small: dict[str, Any] = {}
    for key, value in fields.items():
        if key in table["sizes"] and larger(value, table["sizes"][key]):
            small[key] = table["sizes"][key]
        elif key in SPREADS:
            small[key] = SPREADS[key]
    small |= TOKENS
    if "vocab_size" in fields:  # of a smaller default too
        small["vocab_size"] = table["sizes"]["vocab_size"]
    if "kv_lora_rank" in small:  # latent attention: no heads are shared, one is its rotated part
        small["num_key_value_heads"] = small["num_attention_heads"]
        small["head_dim"] = small["qk_rope_head_dim"]
    small |= layer_lists(fields, small)
    return kind(**{**small, **own})


def larger(value: Any, limit: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > limit


def layer_lists(fields: dict[str, Any], small: dict[str, Any]) -> dict[str, Any]:
    """One layer of each kind that the default has, and the lists that name them, cut to match."""
    named = {
        key: list(dict.fromkeys(value))
        for key, value in fields.items()
        if key.endswith(("layer_types", "layers_block_type", "indexer_types"))
        and isinstance(value, (list, tuple))
        and value
    }
    if not named:
        return {}
    depth = max(2, *(len(kinds) for kinds in named.values()))
    # A kind whose lists are shorter than the depth ends with more of its last layer.
    lists = {key: kinds + kinds[-1:] * (depth - len(kinds)) for key, kinds in named.items()}
    return {**lists, "num_hidden_layers": depth}
