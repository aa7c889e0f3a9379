"""Where a model's files are: a hub's snapshot, a folder, the ladder. Errors before any work.

No torch here, so that a plan can check its inputs in a moment.

Not covered: loading weights (studylib.models).
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from studylib.almanac import ladder_folder
from studylib.errors import StudyError
from studylib.files import read_text
from studylib.profile import ModelRef
from studylib.records import canonical, file_sha256

MODEL_FILES = ["*.json", "*.safetensors", "*.model", "*.txt"]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")
HUB_TIMEOUT_SECONDS = 10.0


def model_folder(ref: ModelRef) -> tuple[Path, str | None]:
    """(folder with config and weights, hub commit or None), or one message on what is missing."""
    if ref.kind == "hub":
        return fetch_model(ref)
    folder = ladder_folder(ref.name) if ref.kind == "ladder" else Path(ref.name).expanduser()
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
    """A hub model's snapshot on disk and the commit that its revision stands for."""
    from huggingface_hub import snapshot_download

    with hub_errors(ref):
        folder = Path(
            snapshot_download(ref.name, revision=ref.revision, allow_patterns=MODEL_FILES)
        )
    if not list(folder.glob("*.safetensors")):
        raise StudyError(ref, "the repository has no safetensors", "Choose one that has.")
    return folder, folder.name


def ask_model(ref: ModelRef) -> None:
    """Raise unless the hub, or its cache here, has this model. Downloads no weights."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    with hub_errors(ref):
        try:
            snapshot_download(
                ref.name, revision=ref.revision, allow_patterns=MODEL_FILES, local_files_only=True
            )
        except LocalEntryNotFoundError:
            HfApi().model_info(ref.name, revision=ref.revision, timeout=HUB_TIMEOUT_SECONDS)


def ask_dataset(name: str, config: str | None, ref: object, instead: str) -> None:
    """Raise unless the hub, or its cache here, has this data set. Downloads no rows."""
    from datasets import load_dataset_builder

    with hub_errors(ref, instead):
        load_dataset_builder(name, config)


class hub_errors:
    """Turn what a hub may answer into one message each: unreachable, gated, unknown."""

    def __init__(self, ref: object, instead: str = "use path:FOLDER or ladder:NAME"):
        self.ref, self.instead = ref, instead

    def __enter__(self) -> None:
        # Five retries are announced one by one; the message at the end says it all.
        logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        from datasets.exceptions import DatasetNotFoundError
        from huggingface_hub import errors

        unknown = (
            errors.RepositoryNotFoundError,
            errors.RevisionNotFoundError,
            errors.HFValidationError,
            DatasetNotFoundError,
        )
        unreachable = (
            errors.LocalEntryNotFoundError,
            errors.OfflineModeIsEnabled,
            errors.HfHubHTTPError,
            errors.HTTPError,  # of the HTTP package that this version of the hub's client uses
            ConnectionError,
            TimeoutError,
        )
        if isinstance(error, errors.GatedRepoError):
            raise StudyError(
                self.ref,
                "the hub gives this to registered readers only",
                "Accept its licence on its page and set HF_TOKEN to a token of that account.",
            ) from None
        if isinstance(error, unknown):
            raise StudyError(
                self.ref,
                "the hub has no such repository or revision",
                "Check the name, ORGANISATION/NAME; a private one needs HF_TOKEN.",
            ) from None
        if isinstance(error, unreachable):
            raise StudyError(
                self.ref,
                "the hub cannot be reached",
                f"Check the network and HF_ENDPOINT, or {self.instead}.",
            ) from error


def folder_sha256(folder: Path) -> str:
    """One hash of a checkpoint: its config, tokenizer and weights, by name and content."""
    names = ("config.json", "tokenizer.json", "tokenizer.model")
    files = sorted(p for p in folder.iterdir() if p.suffix == ".safetensors" or p.name in names)
    return hashlib.sha256(canonical([[p.name, file_sha256(p)] for p in files])).hexdigest()
