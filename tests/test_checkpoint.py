"""A checkpoint that is not the whole model is refused before work, by name and likely cause."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaForCausalLM,
    MixtralConfig,
)

from studylib.core.errors import StudyError
from studylib.modelling.checkpoint import check_whole, read_shapes
from studylib.modelling.models import load_model, load_tokenizer
from studylib.modelling.preflight import check_models, refuse_outside
from studylib.schema.profile import read_profile
from studylib.schema.settings import LoraSettings, ModelRef, parse_method

SMALL = {"vocab_size": 1024, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1}
FAMILIES = {
    "gpt2": GPT2Config(**SMALL, n_embd=64, n_layer=2, n_head=4, n_positions=128),
    "gpt_neox": GPTNeoXConfig(
        **SMALL, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4
    ),
    "mixtral": MixtralConfig(
        **SMALL, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4,
    ),
    "bert": BertConfig(
        **SMALL, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128
    ),
}  # fmt: skip


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """An untied two-layer Llama; its own copy for every test."""
    place = shutil.copytree(tiny_folder, tmp_path / "model")
    config = AutoConfig.from_pretrained(place)
    config.tie_word_embeddings = False
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(place)
    return place


def ref_of(place):
    return ModelRef.parse(f"path:{place}")


def change(place, edit):
    """Rewrite the weights: edit takes the tensors by name and gives others."""
    path = place / "model.safetensors"
    save_file(edit(load_file(path)), path, metadata={"format": "pt"})


def configure(place, **changes):
    path = place / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def without(name):
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def refused(place, rule, remedy="."):
    with pytest.raises(StudyError, match=rule) as caught:
        check_whole(place, ref_of(place))
    with pytest.raises(StudyError, match=remedy):
        raise caught.value


def save(family, place, tokenizer_of):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(FAMILIES[family]).save_pretrained(place)
    load_tokenizer(tokenizer_of).save_pretrained(place)
    return place


def test_whole_checkpoint_passes_tied_or_not_and_no_weight_is_read(folder, tiny_folder):
    for place in (folder, tiny_folder):
        model = check_whole(place, ref_of(place))
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    weights = folder / "model.safetensors"
    header = 8 + int.from_bytes(weights.read_bytes()[:8], "little")
    weights.write_bytes(weights.read_bytes()[:header])  # the header alone
    check_whole(folder, ref_of(folder))


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "mixtral"])
def test_families_whose_tensors_are_renamed_or_fused_pass_and_lack_what_is_taken(
    family, tmp_path, tiny_folder
):
    place = save(family, tmp_path / family, tiny_folder)
    check_whole(place, ref_of(place))
    lost = next(name for name in sorted(read_shapes(place)) if ".1." in name)
    change(place, without(lost))
    with pytest.raises(StudyError):
        check_whole(place, ref_of(place))


def test_lost_tensor_is_named_for_every_method_and_at_the_load_too(folder):
    lost = "model.layers.1.mlp.down_proj.weight"
    change(folder, without(lost))
    refused(folder, rf"lacks 1 of the model's 21 tensors: {lost}", "at random")
    for method in ("base", "lora", "qlora"):
        with pytest.raises(StudyError, match=lost):
            load_model(ref_of(folder), parse_method(method, LoraSettings()), "fp32")


def test_a_load_that_is_not_checked_beforehand_is_refused_by_what_it_says(folder, monkeypatch):
    from studylib.modelling import models

    monkeypatch.setattr(models, "check_whole", lambda *_: None)
    change(folder, without("lm_head.weight"))
    with pytest.raises(StudyError, match=r"lacks 1 .* lm_head\.weight"):
        load_model(ref_of(folder), parse_method("base", LoraSettings()), "fp32")


def test_head_alone_missing_says_that_the_model_was_saved_without_it(folder):
    change(folder, without("lm_head.weight"))
    refused(folder, r"lacks 1 .*: lm_head\.weight", "saved without its head")


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module."])
def test_names_of_a_wrapper_are_told(folder, prefix):
    change(folder, lambda tensors: {prefix + key: value for key, value in tensors.items()})
    refused(folder, "lacks 21 of the model's 21 tensors: .* and 18 more", f"begins with {prefix}")


def test_other_sizes_are_named_with_both(folder):
    configure(folder, vocab_size=1100)
    refused(folder, r"2 tensors have other sizes .*lm_head\.weight 1024×64 .* 1100×64")


def test_a_configuration_with_fewer_layers_or_without_biases_is_refused(folder):
    configure(folder, num_hidden_layers=1)
    refused(folder, r"leaves 9 tensors of the checkpoint out: model\.layers\.1\.")
    configure(folder, num_hidden_layers=2)
    bias = {"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}
    change(folder, lambda tensors: tensors | bias)
    refused(folder, r"leaves 1 tensors .*q_proj\.bias", "switches")


def test_parts_beside_the_model_and_old_masks_are_let_be(folder):
    beside = {
        "vision_tower.layers.0.weight": torch.zeros(4, 4),
        "mtp.layers.0.mlp.up_proj.weight": torch.zeros(4, 4),
        "model.image_newline": torch.zeros(4),
        "model.layers.0.self_attn.bias": torch.zeros(1, 1, 8, 8),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8),
    }
    change(folder, lambda tensors: tensors | beside)
    check_whole(folder, ref_of(folder))
    load_model(ref_of(folder), parse_method("base", LoraSettings()), "fp32")


def test_an_encoder_is_refused_and_made_a_decoder_passes(tmp_path, tiny_folder):
    place = save("bert", tmp_path / "bert", tiny_folder)
    refused(place, "BertLMHeadModel is an encoder")
    configure(place, is_decoder=True)
    check_whole(place, ref_of(place))


def test_a_plan_looks_into_folders_and_not_at_the_ladder(folder):
    profile = read_profile("smoke", {"models": [f"path:{folder}", "ladder:0.4m"]})
    check_models(profile)
    change(folder, without("lm_head.weight"))
    with pytest.raises(StudyError, match="saved without its head"):
        check_models(profile)


def test_examples_longer_than_the_positions_or_with_unknown_tokens_are_refused(folder):
    model = check_whole(folder, ref_of(folder))
    short = {"input_ids": [1] * 200, "labels": [1] * 200}
    refuse_outside(model, [[short, short]], ref_of(folder))  # 400 tokens a row, 200 an example
    with pytest.raises(StudyError, match="longest example has 300 tokens, the model has 256"):
        refuse_outside(model, [[{"input_ids": [1] * 300, "labels": []}]], ref_of(folder))
    with pytest.raises(StudyError, match="gives token 1024, the model has embeddings for 1,024"):
        refuse_outside(model, [[{"input_ids": [3, 1024], "labels": []}]], ref_of(folder))


def test_tokens_beyond_the_embeddings_matter_only_where_the_data_use_them(folder, tmp_path):
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens(["zzyzx"])
    tokenizer.save_pretrained(folder)
    data = tmp_path / "data.json"
    questions = {"questions": "almanac:new", "retention": None, "shots": 0, "scoring": "text"}
    for text, known in (("Say yes.", True), ("Say zzyzx.", False)):
        data.write_text(json.dumps([{"instruction": text, "input": "", "output": "yes"}]))
        changes = {"models": [f"path:{folder}"], "data": {"source": str(data)},
                   "evaluate": questions}  # fmt: skip
        profile = read_profile("smoke", changes)
        if known:
            check_models(profile)
        else:
            with pytest.raises(StudyError, match="gives token 1024"):
                check_models(profile)
