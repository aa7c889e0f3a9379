"""The weights of a run: as they come to be trained, as they are scored, as they are kept.

Trained weights lie in the run's work folder (`trained`, with a marker written last), so that a
process that goes on after a kill need not train again. At the run's end they move to where they
stay (studylib.modelling.kept).

Not covered: loading a checkpoint (studylib.modelling.models), what a method trains
(studylib.modelling.methods).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from studylib.core.files import full_disk_said
from studylib.inputs.sources import is_whole
from studylib.modelling.added import settle_whole
from studylib.modelling.attention import choose_attention
from studylib.modelling.methods import DTYPES, attach
from studylib.modelling.models import Loaded, load_model, load_trained
from studylib.schema.kept import Place
from studylib.schema.records import write_atomically
from studylib.schema.settings import MethodSettings
from studylib.schema.spec import RunSpec

TRAINED, WHOLE, MOVED = "trained", "whole", "moved"
BEGINNING = "beginning"  # what a converted adapter was before its training


def find_trained(work: Path) -> Path | None:
    """Where the trained weights lie, whole, or None: in the work folder, or already where they stay
    if the run's end was broken off."""
    if (work / TRAINED / WHOLE).is_file() and all(
        map(is_whole, (work / TRAINED).glob("*.safetensors"))
    ):
        return work / TRAINED
    places = [work.parent / name for name in get_args(Place) if (work / MOVED).is_file()]
    return next((folder for folder in places if folder.is_dir()), None)


def multiply_in(tf32: bool) -> None:
    """Make a card's products of float32 matrices in TF32, or exactly.

    cuBLAS is named besides: what was set by its name stays whatever is set for all.
    """
    backends: Any = torch.backends
    for place in (backends, backends.cuda.matmul):
        place.fp32_precision = "tf32" if tf32 else "ieee"


def bring_in(spec: RunSpec, trained: Path | None) -> tuple[Loaded, nn.Module]:
    """(the base, the model to train on it) or, from `trained`, the model that was trained.

    Where several cards train it, each of their processes loads its own: this one stays on the
    host, to be counted.
    """
    if torch.cuda.is_available():  # for scoring as for training, and for the untrained model too
        multiply_in(spec.train.tf32)
    if trained is not None:
        loaded = load_model(spec.model_ref, spec.method, spec.train.dtype, spec.seed)
        config: Any = loaded.model.config
        used, reason = choose_attention(config, spec.train.attention)  # when it was trained
        loaded.attention, loaded.attention_reason = used, reason
        return loaded, load_trained(loaded.model, spec.method, trained)
    device = torch.device("cpu") if spec.gpus > 1 else None
    attention = spec.train.attention if spec.method.kind.trains else "sdpa"
    loaded = load_model(
        spec.model_ref, spec.method, spec.weights_dtype, spec.seed, attention, device
    )
    return loaded, attach(loaded.model, spec.method, spec.seed)


def settle_weights(spec: RunSpec, base: nn.Module, model: nn.Module) -> None:
    """From how a model is trained to how it is scored and served, in place."""
    recipe = spec.train
    if spec.weights_dtype != recipe.dtype:
        model.to(DTYPES[recipe.dtype])
    settle_whole(model)
    if recipe.attention != "sdpa":  # scoring shares prefixes, by masks of its own
        scored: Any = base
        scored.set_attn_implementation(choose_attention(scored.config, "sdpa")[0])


def keep_beginning(work: Path, method: MethodSettings, model: nn.Module) -> None:
    """Keep an adapter as it begins, where that is needed to fit what is trained to the original
    base: that of the first process, if several trained it."""
    if method.kind.converted and not (work / BEGINNING / WHOLE).is_file():
        with full_disk_said(work):
            model.save_pretrained(work / BEGINNING)  # type: ignore[operator]
        write_atomically(work / BEGINNING / WHOLE, b"")


def keep(work: Path, model: nn.Module | None) -> None:
    """Keep trained weights (None: they lie in `trained` already) and let checkpoints go.

    An adapter that began by changing the base is written as one on the original, of twice its rank:
    what was trained less what it began with. The marker comes last, so that half a folder never
    counts.
    """
    folder = work / TRAINED
    if model is not None:
        shutil.rmtree(folder, ignore_errors=True)
        converted = (work / BEGINNING / WHOLE).is_file()
        how = {"path_initial_model_for_weight_conversion": str(work / BEGINNING)}
        with full_disk_said(work):
            model.save_pretrained(folder, **(how if converted else {}))  # type: ignore[operator]
    write_atomically(folder / WHOLE, b"")
    for checkpoint in work.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
