"""Exact counts agree with published totals and with models built on the meta device."""

import pytest

from studylib.core.errors import StudyError
from studylib.planning.catalog import find_shape, load_shapes
from studylib.planning.counts import (
    ATTENTION,
    LLAMA_LIKE,
    checkpoint_bytes,
    count_adapter,
    count_parameters,
)

SHAPES = [shape for shape in load_shapes().values() if shape.family in LLAMA_LIKE]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_arithmetic_gives_the_published_total(shape) -> None:
    assert count_parameters(shape) == shape.total_params


def test_llama_2_13b_is_counted_exactly() -> None:
    shape = find_shape("Llama-2-13B")
    assert count_parameters(shape) == 13_015_864_320
    assert count_adapter(shape, 16, ATTENTION) == 26_214_400
    assert count_adapter(shape, 16) == 62_586_880
    assert checkpoint_bytes(13_015_864_320, "fp16") == 26_031_728_640
    assert checkpoint_bytes(26_214_400, "fp32") == 104_857_600
    assert checkpoint_bytes(26_214_400, "bf16") == 52_428_800


@pytest.mark.parametrize("targets", [ATTENTION, None], ids=["attention", "all-linear"])
def test_adapter_count_agrees_with_peft_on_the_meta_device(targets: tuple[str, ...] | None) -> None:
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    shape = find_shape("Llama-2-13B")
    config = transformers.LlamaConfig(
        hidden_size=shape.hidden_size, num_hidden_layers=2, vocab_size=shape.vocab_size,
        intermediate_size=shape.intermediate_size, tie_word_embeddings=False,
        num_attention_heads=shape.num_attention_heads,
    )  # fmt: skip
    two = shape.model_copy(update={"num_hidden_layers": 2})
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
        assert sum(p.numel() for p in model.parameters()) == count_parameters(two)
        lora = peft.LoraConfig(r=16, target_modules=list(targets) if targets else "all-linear")
        adapted = peft.get_peft_model(model, lora)
    trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert trained == count_adapter(two, 16, targets)


def test_unknown_layers_and_families_are_named() -> None:
    with pytest.raises(StudyError, match=r"router.*not a linear layer"):
        count_adapter(find_shape("Llama-2-7B"), 16, ("router",))
    with pytest.raises(StudyError, match="gpt_neox"):
        count_parameters(find_shape("Pythia-70M"))
