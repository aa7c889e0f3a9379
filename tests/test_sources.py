"""What is wrong with a model's files or its hub is said before any work, in one message."""

from __future__ import annotations

import json
import shutil

import pytest

from studylib.core.errors import StudyError
from studylib.inputs.almanac import ladder_folder
from studylib.inputs.sources import (
    ask_model,
    fetch_model,
    folder_sha256,
    hub_errors,
    is_whole,
    model_folder,
)
from studylib.schema.profile import ModelRef


@pytest.fixture
def checkpoint(tmp_path):
    return shutil.copytree(ladder_folder("0.4m"), tmp_path / "model")


def refuse(folder, rule):
    with pytest.raises(StudyError, match=rule) as caught:
        model_folder(ModelRef.parse(f"path:{folder}"))
    assert str(folder) in caught.value.value
    assert caught.value.remedy


def test_whole_checkpoint_is_found_by_path_and_by_name(checkpoint):
    assert model_folder(ModelRef.parse(f"path:{checkpoint}")) == (checkpoint, None)
    assert model_folder(ModelRef.parse("ladder:0.4m")) == (ladder_folder("0.4m"), None)
    with pytest.raises(StudyError, match=r"ladder:0\.4m, ladder:1\.4m"):
        model_folder(ModelRef.parse("ladder:9m"))


def test_folder_without_its_parts_is_named(checkpoint, tmp_path):
    refuse(tmp_path / "none", "no such folder")
    (checkpoint / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    refuse(checkpoint, "no tokenizer")
    (checkpoint / "model.safetensors").rename(checkpoint / "pytorch_model.bin")
    refuse(checkpoint, "no weights")
    (checkpoint / "config.json").unlink()
    refuse(checkpoint, r"no config\.json")


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        ("config.json", b'{\n"model_type": ', "line 2: this is not JSON"),
        ("config.json", b"[1]", "not a JSON object"),
        ("config.json", b"{}", "names no model_type"),
        ("config.json", b"\xff", "not UTF-8"),
        ("tokenizer.json", b'{"a', "line 1: this is not JSON"),
        ("model.safetensors", b"", "broken off or damaged"),
        ("model.safetensors", b"\x00\x01", "broken off or damaged"),
        ("model.safetensors", b"\x02" + bytes(7) + b"[]", "broken off or damaged"),
        ("model.safetensors", b"\x02" + bytes(7) + b"{{", "broken off or damaged"),
    ],
)
def test_broken_file_of_a_checkpoint_is_named(checkpoint, name, content, rule):
    (checkpoint / name).write_bytes(content)
    refuse(checkpoint, rule)


@pytest.mark.parametrize("missing", [1, 1000, 800_000])
def test_truncated_weights_are_named(checkpoint, missing):
    path = checkpoint / "model.safetensors"
    assert is_whole(path)
    path.write_bytes(path.read_bytes()[:-missing])
    refuse(checkpoint, "broken off")


def test_missing_shard_is_named(checkpoint):
    weights = checkpoint / "model.safetensors"
    weights.rename(checkpoint / "model-1-of-2.safetensors")
    index = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    refuse(checkpoint, r"lack model-2-of-2\.safetensors")


def test_hash_of_a_checkpoint_follows_its_contents_and_not_its_place(checkpoint):
    assert folder_sha256(checkpoint) == folder_sha256(ladder_folder("0.4m"))
    (checkpoint / "README.md").write_text("notes")
    assert folder_sha256(checkpoint) == folder_sha256(ladder_folder("0.4m"))
    config = checkpoint / "config.json"
    config.write_text(config.read_text() + " ")
    assert folder_sha256(checkpoint) != folder_sha256(ladder_folder("0.4m"))


@pytest.mark.parametrize("ask", [fetch_model, ask_model])
def test_hub_that_cannot_be_reached_is_one_message(ask):
    with pytest.raises(StudyError, match="hub:org/name: the hub cannot be reached") as caught:
        ask(ModelRef.parse("hub:org/name"))
    assert "path:FOLDER" in caught.value.remedy


def test_name_that_no_hub_can_have_is_one_message():
    with pytest.raises(StudyError, match="no such repository or revision"):
        ask_model(ModelRef.parse("hub:a/b/c"))


def test_each_answer_of_a_hub_has_its_message_and_a_bug_stays_a_bug():
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub import errors

    def answer(kind):
        error = kind.__new__(kind)
        Exception.__init__(error, "said the hub")
        return error

    for kind, rule in (
        (errors.GatedRepoError, "registered readers only"),
        (errors.RepositoryNotFoundError, "no such repository"),
        (errors.RevisionNotFoundError, "no such repository"),
        (DatasetNotFoundError, "no such repository"),
        (errors.HfHubHTTPError, "cannot be reached"),
        (ConnectionError, "cannot be reached"),
        (TimeoutError, "cannot be reached"),
    ):
        with pytest.raises(StudyError, match=rule) as caught, hub_errors("X", "give a file"):
            raise answer(kind)
        assert caught.value.value == "X"
    with pytest.raises(KeyError), hub_errors("X"):
        raise KeyError("a bug")


def test_adapter_beside_the_weights_or_alone_is_told(checkpoint):
    (checkpoint / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    refuse(checkpoint, "an adapter lies beside the weights")
    (checkpoint / "model.safetensors").rename(checkpoint / "adapter_model.safetensors")
    refuse(checkpoint, "this is an adapter of org/base, not a model")
    (checkpoint / "config.json").unlink()
    refuse(checkpoint, "this is an adapter of org/base, not a model")


@pytest.mark.parametrize(
    "change",
    [
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        {"text_config": {"quantization_config": {"quant_method": "bitsandbytes"}}},
    ],
)
def test_quantized_checkpoint_is_told_by_its_configuration(checkpoint, change):
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refuse(checkpoint, r"quantized already \(bitsandbytes\)")


def test_quantized_checkpoint_is_told_by_its_tensors_and_other_integers_are_none(checkpoint):
    import torch
    from safetensors.torch import load_file, save_file

    path = checkpoint / "model.safetensors"
    tensors = load_file(path)
    whole = {"model.position_ids": torch.arange(9), "h.0.attn.bias": torch.ones(1, 1, 4, 4).bool()}
    save_file(tensors | whole, path)
    model_folder(ModelRef.parse(f"path:{checkpoint}"))
    name = "model.layers.0.mlp.up_proj.weight"
    for dtype in (torch.uint8, torch.float8_e4m3fn):
        save_file(tensors | {name: tensors[name].to(dtype)}, path)
        refuse(checkpoint, rf"quantized already \({name} is (U8|F8_E4M3)\)")
