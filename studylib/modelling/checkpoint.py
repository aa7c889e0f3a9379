"""Whether a checkpoint holds the whole model: every tensor there, in its size, and none left over.

transformers fills what a checkpoint lacks with random numbers, other ones at each load, and says
so in a log alone. Methods of a study would then start from different weights. So its own loading
(which renames and fuses tensors) runs first on tensors without data, made from the headers of the
files: no weights are read, and it takes a second for a large model.

Left-over tensors are refused where they belong to layers that the configuration does not build,
or to modules that it builds without them: the model would run, as another one. Those of other
parts (vision towers, heads for several tokens, old causal masks) are let be.

Not covered: values (not a number, all zero), files that are broken off (studylib.inputs.sources).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from studylib.core.errors import StudyError, name_error
from studylib.inputs.sources import read_safetensors_header, weight_files
from studylib.modelling.attention import causal_class
from studylib.modelling.skeleton import load_config
from studylib.schema.settings import ModelRef

NAMED = 3  # so many tensors are named in a message
# What torch.compile and distributed wrappers put before every name.
WRAPPERS = ("_orig_mod.", "module.", "_fsdp_wrapped_module.")


def check_whole(folder: Path, ref: ModelRef) -> nn.Module:
    """The folder's model without its weights (meta device), if the checkpoint fills it.

    Raises StudyError that names missing, misfitting or left-over tensors and their likely cause.
    """
    config = load_config(folder, ref)
    kind = causal_class(config)
    if kind.config_class is not type(config):  # a text model out of a configuration of several
        config = config.get_text_config()
    shapes = read_shapes(folder)
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    try:
        model, info = kind.from_pretrained(
            None,
            config=config,
            state_dict=state,
            device_map={"": "meta"},
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError, TypeError) as error:
        raise StudyError(
            ref,
            f"config.json and the weights do not make a model ({name_error(error)})",
            "Save model and configuration together with save_pretrained.",
        ) from error
    refuse_holes(model, info, shapes, ref)
    refuse_encoder(model, ref)
    return model


def read_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The name and shape of every tensor that a load of this folder would read."""
    return {
        name: tuple(tensor["shape"])
        for path in weight_files(folder)
        for name, tensor in (read_safetensors_header(path) or {}).items()
    }


def refuse_holes(
    model: Any, info: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], ref: ModelRef
) -> None:
    """Raise where a load (`info`, by transformers) left holes in the model or tensors out of it."""
    missing = sorted(info["missing_keys"])
    if missing:
        every = sum(1 for _ in model.parameters())
        rule = f"the checkpoint lacks {len(missing)} of the model's {every} tensors"
        remedy = explain_missing(model, missing, info["unexpected_keys"])
        raise StudyError(ref, f"{rule}: {name_tensors(missing)}", remedy)
    misfits = sorted(info["mismatched_keys"], key=str)
    if misfits:
        said = [f"{name} {spell_shape(own)} where config.json wants {spell_shape(want)}"
                for name, own, want in misfits]  # fmt: skip
        raise StudyError(
            ref,
            f"{len(misfits)} tensors have other sizes than config.json says: {name_tensors(said)}",
            "Correct config.json, or save model and configuration together.",
        )
    extra = sorted(name for name in info["unexpected_keys"] if is_left_over(model, name, shapes))
    if extra:
        raise StudyError(
            ref,
            f"config.json builds a model that leaves {len(extra)} tensors of the checkpoint out: "
            f"{name_tensors(extra)}",
            "Correct config.json: its layers, biases or other switches are not this checkpoint's.",
        )


def explain_missing(model: Any, missing: list[str], unexpected: Iterable[str]) -> str:
    """What to do about it, as far as the names tell the cause."""
    unexpected = list(unexpected)
    for prefix in WRAPPERS:
        if unexpected and all(name.startswith(prefix) for name in unexpected):
            return f"Every name begins with {prefix} (a wrapper's): rename the tensors without it."
    head = model.get_output_embeddings()
    heads = [f"{name}." for name, module in model.named_modules() if module is head]
    if all(name.startswith(tuple(heads)) for name in missing):
        return (
            "The model was saved without its head: save it from the class for causal language "
            "models, or set tie_word_embeddings in config.json if the head is the embedding."
        )
    return "Each load would draw others at random: save or copy the whole model again."


def is_left_over(model: nn.Module, name: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a tensor belongs to what the model is built of, and not to a part beside it."""
    shape = shapes.get(name, (0,))
    if name.endswith("inv_freq") or not shape or (len(shape) == 4 and shape[:2] == (1, 1)):
        return False  # once saved with a model, now computed: frequencies, causal masks
    prefix = getattr(model, "base_model_prefix", "")
    known = dict(model.named_modules())
    for full in (name, f"{prefix}.{name}"):
        parts = full.split(".")
        depth = max(i for i in range(len(parts)) if not i or ".".join(parts[:i]) in known)
        if not depth:
            continue
        last = known[".".join(parts[:depth])]
        if isinstance(last, nn.ModuleList):  # a further layer of the stack
            following = getattr(model.config, "num_nextn_predict_layers", 0) or 0
            return not parts[depth].isdigit() or int(parts[depth]) >= len(last) + following
        in_stack = re.search(r"\.\d+(\.|$)", ".".join(parts[:depth])) is not None
        if in_stack or next(last.parameters(recurse=False), None) is not None:
            return True
    return False


def refuse_encoder(model: Any, ref: ModelRef) -> None:
    """Raise for BERT and its kin, which transformers also opens as causal models but which look
    at the tokens to come.

    Their classes ask is_decoder of their configuration when they are made; decoders that ask it
    too have set it themselves by then.
    """
    asks = "is_decoder" in type(model).__init__.__code__.co_names
    if asks and getattr(model.config, "is_decoder", None) is False:
        raise StudyError(
            ref,
            f"{type(model).__name__} is an encoder here: its tokens see those that follow them",
            "Choose a model that was trained to write one token after the other.",
        )


def name_tensors(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def spell_shape(shape: Iterable[int]) -> str:
    return "×".join(map(str, shape))
