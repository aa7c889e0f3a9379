"""Exact arithmetic on a model's shape: parameters, adapter parameters, bytes of files.

No model is built and no torch is needed, so that a laptop can check the article's C1 and C5. A
test holds these counts against models built on the meta device.

Not covered: memory in use (studylib.forecasting.forecast) and the few hundred bytes of a file's
header.
"""

from __future__ import annotations

from studylib.core.errors import StudyError
from studylib.planning.catalog import Shape

BYTES_OF = {"fp32": 4, "bf16": 2, "fp16": 2}
LLAMA_LIKE = ("llama", "qwen2", "qwen3", "olmo2")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def linear_layers(shape: Shape) -> dict[str, tuple[int, int]]:
    """The linear layers of one block as name -> (inputs, outputs); the head is not among them."""
    hidden, inner = shape.hidden_size, shape.intermediate_size
    queries = shape.num_attention_heads * shape.head_dim
    keys = shape.num_key_value_heads * shape.head_dim
    if shape.family not in LLAMA_LIKE:
        raise StudyError(
            shape.name,
            f"layers of family {shape.family} are not counted by arithmetic",
            f"Take a shape of {', '.join(LLAMA_LIKE)}.",
        )
    return {
        "q_proj": (hidden, queries),
        "k_proj": (hidden, keys),
        "v_proj": (hidden, keys),
        "o_proj": (queries, hidden),
        "gate_proj": (hidden, inner),
        "up_proj": (hidden, inner),
        "down_proj": (inner, hidden),
    }


def count_parameters(shape: Shape) -> int:
    """All parameters: embeddings, head unless tied, blocks with their biases and norms."""
    layers = linear_layers(shape)
    block = sum(inputs * outputs for inputs, outputs in layers.values())
    if shape.attention_qkv_bias:
        block += sum(layers[name][1] for name in ("q_proj", "k_proj", "v_proj"))
    block += 2 * shape.hidden_size  # two norms a block in every family here
    if shape.qk_norm == "head":
        block += 2 * shape.head_dim
    elif shape.qk_norm == "full":
        block += layers["q_proj"][1] + layers["k_proj"][1]
    tables = 1 if shape.tie_word_embeddings else 2
    total = tables * shape.vocab_size * shape.hidden_size + shape.hidden_size
    return total + shape.num_hidden_layers * block


def count_adapter(shape: Shape, rank: int, targets: tuple[str, ...] | None = None) -> int:
    """LoRA's parameters: rank × (inputs + outputs) for each target layer; None is all linear."""
    layers = linear_layers(shape)
    unknown = sorted(set(targets or ()) - layers.keys())
    if unknown:
        raise StudyError(unknown[0], "this is not a linear layer", f"Known: {', '.join(layers)}.")
    chosen = [layers[name] for name in targets or layers]
    return shape.num_hidden_layers * sum(rank * (i + o) for i, o in chosen)


def checkpoint_bytes(parameters: int, dtype: str) -> int:
    """Bytes of the tensors of a file: parameters × bytes each."""
    return parameters * BYTES_OF[dtype]
