"""Bytes of variants: by hand for 13B, against real files and tensors, and what N of them need."""

from __future__ import annotations

import errno
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MixtralConfig

from studylib.core.errors import StudyError
from studylib.modelling.models import load_model
from studylib.modelling.serve import (
    adapter_rows,
    count_written,
    measure_footprint,
    model_row,
    written_bytes,
)
from studylib.modelling.variants import add_adapters, share_weights, tensor_bytes
from studylib.modelling.weights import find_trained, keep
from studylib.planning.catalog import find_gpu, find_shape
from studylib.planning.footprint import (
    WayToKeep,
    count_cards,
    count_footprint,
    find_break_even,
    four_bit_bytes,
    monthly_usd,
    shape_ways,
    tabulate_variants,
)
from studylib.schema.profile import LoraSettings, ModelRef, parse_method


def test_footprint_of_13b_equals_hand_arithmetic():
    rows = {
        (row.what, row.dtype): row.size_bytes for row in count_footprint(find_shape("Llama-2-13B"))
    }
    layer = 4 * 5120 * 5120 + 3 * 5120 * 13824
    total = 40 * (layer + 2 * 5120) + 2 * 32000 * 5120 + 5120
    assert rows["checkpoint", "bf16"] == 2 * total == 26_031_728_640
    attention = 40 * 4 * 16 * (5120 + 5120)
    assert attention == 26_214_400
    assert rows["adapter r=16 on q,k,v,o", "bf16"] == 2 * attention
    assert rows["adapter r=16 on q,k,v,o", "fp32"] == 4 * attention == 104_857_600
    every = attention + 40 * 3 * 16 * (5120 + 13824)
    assert rows["adapter r=16 on all linear layers", "bf16"] == 2 * every
    assert rows["adapter r=16 on all linear layers", "fp32"] == 4 * every == 250_347_520
    # NF4: half a byte a weight, a byte for 64, four bytes for 256 of those, 1,092 bytes a layer.
    weights = 40 * layer
    constants = weights // 64 + 4 * (weights // 64 // 256) + 280 * 1092
    assert rows["4-bit base", "nf4"] == weights // 2 + constants + 2 * (total - weights)


def ladder(method: str):
    settings = parse_method(method, LoraSettings())
    return load_model(ModelRef.parse("ladder:0.4m"), settings, "fp32").model, settings


def test_four_bit_count_equals_the_tensors_of_a_quantized_model():
    model, _ = ladder("qlora")
    config = model.config
    shape = find_shape("Llama-2-7B").model_copy(
        update={
            "hidden_size": config.hidden_size,
            "num_hidden_layers": config.num_hidden_layers,
            "intermediate_size": config.intermediate_size,
            "num_attention_heads": config.num_attention_heads,
            "num_key_value_heads": config.num_key_value_heads,
            "head_dim": config.head_dim,
            "vocab_size": config.vocab_size,
            "tie_word_embeddings": config.tie_word_embeddings,
        }
    )
    buffers = sum(buffer.nbytes for buffer in model.buffers())  # rotary frequencies, not on disk
    assert tensor_bytes(model) - four_bit_bytes(shape, "fp32") == buffers < 1000


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_adapters_on_one_base_take_the_base_and_their_own_bytes_no_more(method):
    base, settings = ladder(method)
    model = add_adapters(share_weights(base), settings, 3, "bf16")
    rows = {row.dtype: row for row in adapter_rows(model)}
    assert tensor_bytes(model) == tensor_bytes(base) + 3 * rows["bf16"].memory_bytes
    assert rows["fp32"].memory_bytes == 2 * rows["bf16"].memory_bytes
    header = rows["bf16"].disk_bytes - rows["bf16"].memory_bytes
    assert 0 < header < 20_000


def test_large_models_are_counted_and_not_written():
    base, _ = ladder("base")
    written, counted = (model_row("checkpoint", base, "fp32", limit) for limit in (10**9, 0))
    assert (written.disk_how, counted.disk_how) == ("measured", "counted")
    assert written.disk_bytes == pytest.approx(counted.disk_bytes, rel=0.01)


CHECKPOINTS = WayToKeep("checkpoints", 0, 0, 100, 100)


def test_n_variants_by_hand():
    rows = tabulate_variants([CHECKPOINTS, WayToKeep("adapters", 100, 40, 3, 5)], (10, 1))
    assert [(r.way, r.variants, r.disk_bytes, r.memory_bytes) for r in rows] == [
        ("checkpoints", 1, 100, 100),
        ("checkpoints", 10, 1000, 1000),
        ("adapters", 1, 103, 45),
        ("adapters", 10, 130, 90),
    ]


def test_adapters_pay_from_two_variants_from_one_on_a_small_base_and_never_when_as_large():
    even = find_break_even(WayToKeep("adapters", 100, 40, 3, 5), CHECKPOINTS)
    assert (even.disk_variants, even.memory_variants) == (2, 1)
    even = find_break_even(WayToKeep("adapters", 100, 100, 50, 100), CHECKPOINTS)
    assert even.disk_variants == 3  # with 2: 100 + 2 * 50 = 200, no less than 200
    assert even.memory_variants is None


def test_cards_and_dollars_by_hand():
    card = find_gpu("a100-80gb")
    room = int(card.usable_bytes * 0.8)
    assert count_cards(WayToKeep("half a card", 0, 0, 0, room // 2), 5, card) == 3
    assert count_cards(WayToKeep("two cards each", 0, 0, 0, room + 1), 3, card) == 6
    assert count_cards(WayToKeep("adapters", 0, room // 2, 0, room // 4), 4, card) == 2
    assert count_cards(WayToKeep("large base", 0, 2 * room, 0, 1), 10, card) == 3
    whole, adapters, _ = shape_ways(find_shape("Llama-2-13B"))
    assert monthly_usd(whole, 100, card, 2.0) == 50 * 2.0 * 730
    assert monthly_usd(adapters, 100, card, 2.0) == 2.0 * 730


def random_model(kind: str) -> Any:
    """A model whose file has tied, plain or fused tensors."""
    small = {"vocab_size": 1000, "bos_token_id": None, "eos_token_id": 0}
    layers = {"num_hidden_layers": 3, "num_attention_heads": 4, "hidden_size": 64}
    grouped = {"num_key_value_heads": 2, "intermediate_size": 96}
    config = {
        "tied": LlamaConfig(**small, **layers, **grouped, tie_word_embeddings=True),
        "untied": LlamaConfig(**small, **layers, **grouped),
        "fused": MixtralConfig(**small, **layers, **grouped, num_local_experts=4),
        "gpt2": GPT2Config(**small, n_embd=64, n_layer=2, n_head=4),
    }[kind]
    return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("kind", ["tied", "untied", "fused", "gpt2"])
def test_a_checkpoint_is_counted_to_the_byte_of_its_file(kind):
    model = random_model(kind)
    assert count_written(model) == written_bytes(model)
    model.to(torch.bfloat16)
    for parameter in list(model.parameters())[::3]:  # of several types in one file
        parameter.data = parameter.data.float()
    assert count_written(model) == written_bytes(model)


def test_a_four_bit_checkpoint_is_counted_with_its_constants():
    model, _ = ladder("qlora")
    assert count_written(model) == written_bytes(model)


def test_counting_writes_nothing(monkeypatch):
    model = random_model("tied")
    monkeypatch.setattr(type(model), "save_pretrained", None)
    settings = parse_method("base", LoraSettings())
    assert measure_footprint(model, settings, None)["checkpoint_bytes"] == count_written(model)


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (SafetensorError("I/O error: No space left on device (os error 28)"), True),
        (RuntimeError("PytorchStreamWriter failed writing file data/7: file write failed"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (RuntimeError("os error 280"), False),
    ],
)
def test_full_disk_while_weights_are_kept_is_one_message_and_other_faults_stay(
    tmp_path, monkeypatch, error, full
):
    def fail(*_):
        raise error

    model = random_model("tied")
    monkeypatch.setattr(type(model), "save_pretrained", fail)
    with pytest.raises(StudyError if full else type(error)) as caught:
        keep(tmp_path, model)
    assert ("the disk is full" in str(caught.value)) == full
    assert find_trained(tmp_path) is None
