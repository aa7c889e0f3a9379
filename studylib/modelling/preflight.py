"""What is told of a study's models before any of its runs starts, without reading their weights.

Not covered: files that are missing or broken (studylib.inputs.sources), and what only a loaded
model shows (its values, whether packed examples stay apart in it).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from studylib.core.errors import StudyError
from studylib.inputs.data import Row, prepare_data
from studylib.inputs.parts import read_part
from studylib.inputs.questions import read_question_folder
from studylib.inputs.sources import find_snapshot, model_folder
from studylib.inputs.tokens import tell_lengths
from studylib.modelling.attention import choose_attention
from studylib.modelling.checkpoint import check_whole
from studylib.modelling.models import load_tokenizer
from studylib.schema.profile import Profile, Track
from studylib.schema.settings import EvaluateSettings, ModelRef


def check_models(profile: Profile) -> list[str]:
    """Raise StudyError where a checkpoint of a profile is not whole, or does not take its data.

    Checkpoints in folders, GGUF files and wheels, and those of a hub that are here already; others
    are checked by their run. Those of the ladder are made with this code, and shapes have none.
    Returns a line for each model and track: what its tokenizer makes of the examples.
    """
    told = dict[str, None]()
    seen: dict[str, nn.Module] = {}
    for track in profile.tracks:
        for model in track.models:
            ref = ModelRef.parse(model)
            folder = folder_here(ref)
            if folder is None:
                continue
            if model not in seen:
                seen[model] = check_whole(folder, ref)
            told[check_track(track, ref, folder, seen[model])] = None
    return list(told)


def folder_here(ref: ModelRef) -> Path | None:
    """The checkpoint's folder, if it is on this machine and not the project's own."""
    if ref.kind in ("path", "gguf", "pypi"):
        return model_folder(ref)[0]
    if ref.kind != "hub":
        return None
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return find_snapshot(ref)
    except LocalEntryNotFoundError:
        return None


def check_track(track: Track, ref: ModelRef, folder: Path, model: Any) -> str:
    """Whether a model computes the attention asked for, and has a row for every token and place.

    Returns what its tokenizer makes of the examples, in words."""
    choose_attention(model.config, track.train.attention)
    tokenizer = load_tokenizer(folder)
    tight = is_tight(model, tokenizer, track.train.seq_len)
    recipe = track.train if tight else track.train.model_copy(update={"steps": 1})
    data = prepare_data(track.data, recipe, tokenizer, 0)  # does any answer begin within a row
    if tight:
        refuse_outside(model, data.rows, ref)
        refuse_unknown_words(model, tokenizer, track.evaluate, ref)
    examples = read_part(track.data, "train")
    return f"{ref}: {tell_lengths(examples, track.data.template, tokenizer, track.train.seq_len)}"


def is_tight(model: Any, tokenizer: Any, seq_len: int) -> bool:
    """Whether some token or position could lie outside what the model has: seldom so."""
    positions = model_positions(model)
    long = positions is not None and seq_len > positions
    return long or len(tokenizer) > model.get_input_embeddings().weight.shape[0]


def refuse_outside(model: Any, rows: Sequence[Row], ref: ModelRef) -> None:
    """Raise where an example has a token without an embedding or more tokens than positions.

    Positions begin anew at every example, so that a row may be longer.
    """
    words = model.get_input_embeddings().weight.shape[0]
    positions = model_positions(model)
    examples = [example["input_ids"] for row in rows for example in row]
    refuse_token(max((max(ids) for ids in examples), default=0), words, ref)
    longest = max(map(len, examples), default=0)
    if positions is not None and longest > positions:
        raise StudyError(
            ref,
            f"the longest example has {longest} tokens, the model has {positions} positions",
            f"Cut examples with train.seq_len of at most {positions}.",
        )


def refuse_token(highest: int, words: int, ref: ModelRef) -> None:
    if highest >= words:
        raise StudyError(
            ref,
            f"the tokenizer gives token {highest}, the model has embeddings for {words:,}",
            "Use the tokenizer that the model was trained with, or enlarge the model first "
            "(resize_token_embeddings).",
        )


def refuse_unknown_words(
    model: Any, tokenizer: Any, asked: EvaluateSettings, ref: ModelRef
) -> None:
    """The same for the questions in a folder; lm-eval's are not at hand before their run."""
    words = model.get_input_embeddings().weight.shape[0]
    for source in (asked.questions, asked.retention):
        if source is None or source == "hub" or source.startswith(("almanac:", "tasks:")):
            continue
        for part in read_question_folder(Path(source).expanduser(), asked.shots):
            texts = [text for doc in part for text in (doc["question"], *doc["choices"])]
            found = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
            refuse_token(max((max(ids) for ids in found if ids), default=0), words, ref)


def model_positions(model: Any) -> int | None:
    """Positions of the language model; None where it has no limit."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)
