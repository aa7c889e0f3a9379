"""Where a model's files are: a hub's snapshot, a folder, the ladder. Errors before any work.

No torch here, so that a plan can check its inputs in a moment.

Not covered: loading weights (studylib.models).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from studylib.almanac import ladder_folder
from studylib.errors import StudyError
from studylib.profile import ModelRef
from studylib.records import canonical, file_sha256


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
    if not list(folder.glob("*.safetensors")):
        raise StudyError(
            ref,
            "the folder has no weights (*.safetensors)",
            "Save the model with save_pretrained; pickles are not read.",
        )
    return folder, None


def fetch_model(ref: ModelRef) -> tuple[Path, str]:
    """A hub model's snapshot on disk and the commit that its revision stands for."""
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.model", "*.txt"]
    with hub_errors(ref):
        folder = Path(snapshot_download(ref.name, revision=ref.revision, allow_patterns=patterns))
    if not list(folder.glob("*.safetensors")):
        raise StudyError(ref, "the repository has no safetensors", "Choose one that has.")
    return folder, folder.name


class hub_errors:
    """Turn what a hub may answer into one message each: unreachable, gated, unknown."""

    def __init__(self, ref: object):
        self.ref = ref

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        import httpx
        from huggingface_hub import errors

        if isinstance(error, errors.GatedRepoError):
            raise StudyError(
                self.ref,
                "this model is gated",
                "Accept its licence on its page and set HF_TOKEN to a token of that account.",
            ) from None
        if isinstance(error, errors.RepositoryNotFoundError | errors.RevisionNotFoundError):
            raise StudyError(
                self.ref,
                "the hub has no such repository or revision",
                "Check the name; a private one needs HF_TOKEN.",
            ) from None
        unreachable = (
            errors.LocalEntryNotFoundError,
            errors.OfflineModeIsEnabled,
            errors.HfHubHTTPError,
            httpx.HTTPError,
            ConnectionError,
            TimeoutError,
        )
        if isinstance(error, unreachable):
            raise StudyError(
                self.ref,
                "the hub cannot be reached",
                "Check the network and HF_ENDPOINT, or use path:FOLDER or ladder:NAME.",
            ) from error
        return False


def folder_sha256(folder: Path) -> str:
    """One hash of a checkpoint: its config, tokenizer and weights, by name and content."""
    names = ("config.json", "tokenizer.json", "tokenizer.model")
    files = sorted(p for p in folder.iterdir() if p.suffix == ".safetensors" or p.name in names)
    return hashlib.sha256(canonical([[p.name, file_sha256(p)] for p in files])).hexdigest()
