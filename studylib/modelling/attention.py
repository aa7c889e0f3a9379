"""Which attention a model computes with: the kind that was asked for, or the one that it has.

Scaled dot-product attention is this study's default. Models with soft-capped scores, attention
sinks, positions added to the scores or no attention at all come without it; they compute in
transformers' plain ("eager") way, which holds all scores. So that nobody compares the memory of
the two unknowingly, what was used stands in the record, with the reason.

Not covered: whether packed examples stay apart in it.
"""

from __future__ import annotations

from typing import Any

from studylib.core.errors import StudyError

SUPPORT = {
    "sdpa": "_supports_sdpa",
    "by_example": "_supports_sdpa",
    "flex_attention": "_supports_flex_attn",
    "flash_attention_2": "_supports_flash_attn",
}

# With these, transformers keeps packed examples apart by a mask for each row.
MASKED = ("sdpa", "eager")


def causal_class(config: Any) -> Any:
    """The transformers class that makes a causal language model of a configuration.

    Raises StudyError where there is none.
    """
    from transformers import AutoModelForCausalLM

    kinds = AutoModelForCausalLM._model_mapping
    if type(config) not in kinds:
        raise StudyError(
            config.model_type,
            "transformers knows no causal language model of this type",
            "Choose a model that writes text, one token after the other.",
        )
    found: Any = kinds[type(config)]
    if not isinstance(found, (tuple, list)):
        return found
    named = config.architectures or []
    return next((kind for kind in found if kind.__name__ in named), found[0])


def choose_attention(config: Any, asked: str) -> tuple[str, str | None]:
    """(what a model of this configuration computes attention with, why it is not what was asked).

    sdpa, the default, gives way to eager; another kind that the model lacks is a StudyError.
    """
    if asked == "eager":
        return asked, None
    kind = causal_class(config)
    reason = f"{kind.__name__} does not support {asked}"
    if asked == "by_example" and looks_back_by_windows(config):
        reason = "this model's attention looks back over a window"
    elif getattr(kind, SUPPORT[asked]):
        if asked == "by_example":
            enter_by_example()
        return asked, None
    if asked != "sdpa":
        raise StudyError(
            f"train.attention = {asked}",
            reason,
            f"Use {'sdpa' if kind._supports_sdpa else 'eager'}.",
        )
    return "eager", reason


def looks_back_by_windows(config: Any) -> bool:
    """Whether any layer of a configuration sees less than all earlier tokens."""
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None) or []
    if kinds:
        return any(kind != "full_attention" for kind in kinds)
    return bool(getattr(text, "sliding_window", None))


def enter_by_example() -> None:
    """Let transformers know the attention by examples by its name; it needs no mask there."""
    from transformers import AttentionInterface

    from studylib.modelling.by_example import attend_by_example

    AttentionInterface.register("by_example", attend_by_example)
