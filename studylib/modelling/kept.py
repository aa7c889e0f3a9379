"""Weights that stay after a run: an adapter as peft saves it, a whole model as transformers does.

They are made for others: peft and vLLM load the adapter on the base that its configuration names,
transformers and vLLM load the whole model, and nothing of the study is needed for either. vLLM
reads adapter_config.json and adapter_model.safetensors; an adapter that has its own copy of the
embeddings (modules_to_save) it refuses, and that one is served merged.

Not covered: trained weights while their run is under way (studylib.modelling.weights), what a
record says of these (studylib.schema.kept).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, get_args

import torch

from studylib.core.errors import StudyError
from studylib.core.files import full_disk_said, write_atomically
from studylib.inputs.converted import ORIGIN
from studylib.inputs.sources import folder_sha256
from studylib.modelling.models import Loaded, load_model, merge_into_bf16
from studylib.modelling.serve import count_written
from studylib.modelling.weights import MOVED, WHOLE, bring_in
from studylib.schema.kept import MERGED, KeptWeights, Place, kept_folder, why_not_kept
from studylib.schema.records import Record
from studylib.schema.settings import BASE
from studylib.schema.spec import RunSpec

# Of a base's folder, what a whole model has of its own; all else (tokenizer, template) it shares.
OWN_FILES = ("config.json", "generation_config.json", ORIGIN)
SHARED_KINDS = (".json", ".model", ".txt", ".jinja")


def leave_weights(spec: RunSpec, loaded: Loaded, trained: Path | None, folder: Path) -> KeptWeights:
    """Move a run's trained weights to where they stay, in place of any that lie there.

    trained: where they are, by studylib.modelling.weights.find_trained; folder: the run's.
    """
    base, revision = name_base(spec, loaded)
    named = str(spec.model_ref.model_copy(update={"revision": None}))
    told = KeptWeights(base_model=named, base_revision=revision)
    reason = why_not_kept(spec.keep, spec.model_ref, spec.method)
    if reason is not None or trained is None:
        clear_weights(folder)
        return told.model_copy(update={"reason": reason})
    clear_weights(folder, but=trained)
    name = kept_folder(spec.method)
    goal = folder / name
    if trained != goal:
        (trained.parent / MOVED).touch()  # before the move: a run broken off here trains no more
        trained.replace(goal)
    (goal / WHOLE).unlink(missing_ok=True)
    with full_disk_said(folder):
        if spec.method.kind.adapter:
            complete_adapter(goal, base, revision)
        else:
            complete_model(goal, base_folder(loaded))
    files = [path for path in goal.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    found = {"folder": name, "file_bytes": size, "sha256": folder_sha256(goal)}
    return told.model_copy(update=found)


def clear_weights(folder: Path, but: Path | None = None) -> None:
    """Remove what an earlier run of this name left: it is not this one's."""
    for old in (folder / each for each in (*get_args(Place), MERGED)):
        if old != but:
            shutil.rmtree(old, ignore_errors=True)


def base_folder(loaded: Loaded) -> Path:
    return Path(loaded.tokenizer.name_or_path).absolute()


def name_base(spec: RunSpec, loaded: Loaded) -> tuple[str, str | None]:
    """(what a user loads the base by, its revision): a hub's id with the commit, else a folder."""
    if spec.model_ref.kind == "hub":
        return spec.model_ref.name, loaded.revision
    return str(base_folder(loaded)), None


def complete_adapter(folder: Path, base: str, revision: str | None) -> None:
    """Let an adapter name its base as one loads it elsewhere, and leave peft's own two files."""
    path = folder / "adapter_config.json"
    config = json.loads(path.read_bytes())
    config |= {"base_model_name_or_path": base, "revision": revision}
    write_atomically(path, json.dumps(config, indent=2, sort_keys=True).encode())
    (folder / "README.md").unlink(missing_ok=True)  # peft's card is a form that nobody filled in


def complete_model(folder: Path, base: Path) -> None:
    """Put the tokenizer of its base beside a whole model, and let it keep its base's cache: a model
    in training has none."""
    for path in base.iterdir():
        taken = path.suffix in SHARED_KINDS and path.name not in OWN_FILES
        if taken and path.is_file() and not path.name.endswith(".index.json"):
            shutil.copyfile(path, folder / path.name)
    config, known = (json.loads((place / "config.json").read_bytes()) for place in (folder, base))
    config["use_cache"] = known.get("use_cache", True)
    write_atomically(folder / "config.json", json.dumps(config, indent=2, sort_keys=True).encode())


def open_kept(record: Record, folder: Path) -> tuple[Loaded, Any]:
    """(the base, the trained model on it), as the run scored it.

    StudyError: nothing stayed, the weights are gone or changed, or the base is another one now.
    """
    place = find_kept(record, folder)
    loaded, model = bring_in(record.run, place)
    if record.load is not None and loaded.sha256 != record.load.model_sha256:
        raise StudyError(
            f"{record.run_id}: {record.run.model}",
            f"the base is not the one that the run was trained on ({loaded.sha256[:19]}, then "
            f"{record.load.model_sha256[:19]})",
            "Put the base of then in its place, or run the study on the new one.",
        )
    return loaded, model


def find_kept(record: Record, folder: Path) -> Path:
    """Where a run's weights stayed."""
    again = "Move its folder away and run it again"
    if not record.run.method.kind.trains:
        raise StudyError(record.run_id, "this run trains nothing", "Name a run of a method.")
    if not record.complete:
        words = f"the run ended without a model to try ({record.status})"
        raise StudyError(record.run_id, words, f"{again} once the cause is mended.")
    kept = record.kept
    if kept is None or kept.folder is None:
        why = kept.reason if kept and kept.reason else "its record is from before weights were kept"
        which = "all" if not record.run.method.kind.adapter else "adapters"
        raise StudyError(
            record.run_id, f"the run kept no weights: {why}", f"{again} with KEEP={which}."
        )
    place = folder / kept.folder
    if not place.is_dir():
        raise StudyError(
            place,
            "the weights are not here; published records carry none",
            f"Copy them back, or run it again: {again[0].lower()}{again[1:]}.",
        )
    if folder_sha256(place) != kept.sha256:
        raise StudyError(
            place, "the weights were changed after the record was written", "Copy them back."
        )
    return place


def merge_kept(record: Record, folder: Path) -> Path:
    """Write base and adapter as one checkpoint in bf16 into FOLDER/merged, with the tokenizer.

    The sum is held to what the adapter on its base answers. StudyError besides: MergeFailed, or
    too little room.
    """
    if not record.run.method.kind.adapter:
        raise StudyError(record.run_id, "this run has no adapter", "Its model is whole already.")
    loaded, model = open_kept(record, folder)
    spec, base = record.run, BASE
    plain = load_model(spec.model_ref, base, spec.train.dtype, spec.seed)
    merged: Any = merge_into_bf16(plain.model, model, folder / kept_folder(spec.method))
    merged = merged.to(torch.bfloat16)
    needed, free = count_written(merged), shutil.disk_usage(folder).free
    if needed > free:
        raise StudyError(
            folder / MERGED,
            f"the merged model takes {needed / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB",
            "Free some space.",
        )
    goal, unfinished = folder / MERGED, folder / f".{MERGED}.new"
    shutil.rmtree(unfinished, ignore_errors=True)
    with full_disk_said(folder):
        merged.save_pretrained(unfinished)
        complete_model(unfinished, base_folder(loaded))
    shutil.rmtree(goal, ignore_errors=True)
    unfinished.replace(goal)
    return goal
