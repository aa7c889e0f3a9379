"""What a variant of a model costs to keep: bytes of its files, bytes of its tensors.

A run's own checkpoint is counted by the arithmetic of its file, to the byte: a file written only
to be weighed would need as much disk as the weights. In a serving run's table files are written
and measured where they are small enough, else their size is the sum of their tensors ("counted";
a file's header is a few kilobytes more). Memory is the sum of the tensors as loaded: weights,
buffers and quantization constants, tied ones once.

Not covered: the arithmetic of N variants (studylib.planning.footprint), latency
(studylib.serving.latency).
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from studylib.modelling.methods import DTYPES
from studylib.modelling.variants import tensor_bytes
from studylib.planning.footprint import WayToKeep, find_break_even, tabulate_variants
from studylib.schema.profile import MethodSettings
from studylib.schema.serving import FootprintRow, ServeSpec

# dtype -> (place in the order of the format's types, its name there).
FILE_TYPES = {
    torch.bool: (0, "BOOL"), torch.uint8: (1, "U8"), torch.int8: (2, "I8"),
    torch.int16: (3, "I16"), torch.float16: (4, "F16"), torch.bfloat16: (5, "BF16"),
    torch.int32: (6, "I32"), torch.float32: (7, "F32"), torch.float64: (8, "F64"),
    torch.int64: (9, "I64"),
}  # fmt: skip


def measure_footprint(model: nn.Module, method: MethodSettings, trained: Path | None) -> dict:
    """Bytes of the safetensors, written or as they would be: an adapter's, or a whole checkpoint's.

    An adapter needs its base beside it, once for all variants; the base's own run has its bytes.
    """
    if method.kind.adapter:
        assert trained is not None
        return {"adapter_bytes": weights_bytes(trained), "checkpoint_bytes": None}
    if trained is not None:
        return {"adapter_bytes": None, "checkpoint_bytes": weights_bytes(trained)}
    return {"adapter_bytes": None, "checkpoint_bytes": count_written(model)}


def weights_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def count_written(model: Any) -> int:
    """Bytes of the safetensors that the model's save_pretrained would write; writes nothing.

    Names and shapes are those of the file: tied tensors once, fused ones taken apart again.
    """
    from huggingface_hub import split_torch_state_dict_into_shards
    from transformers.core_model_loading import revert_weight_conversion
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    left_out = model._keys_to_ignore_on_save or ()
    state = {name: t for name, t in model.state_dict().items() if name not in left_out}
    state = remove_tied_weights_from_state_dict(state, model)
    empty = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
    state = revert_weight_conversion(model, empty)
    shards = split_torch_state_dict_into_shards(
        state, filename_pattern="model{suffix}.safetensors", max_shard_size="50GB"
    )
    return sum(
        file_bytes({name: state[name] for name in names})
        for names in shards.filename_to_tensors.values()
    )


def file_bytes(tensors: dict[str, torch.Tensor]) -> int:
    """Bytes of a safetensors file of transformers: length, header (filled up to eights), tensors.

    The format's writer orders tensors by type, the widest first, then by name.
    """
    names = sorted(tensors, key=lambda name: (-FILE_TYPES[tensors[name].dtype][0], name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        start, end = end, end + nbytes(tensors[name])
        header[name] = {
            "dtype": FILE_TYPES[tensors[name].dtype][1],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
    length = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + length + -length % 8 + end


def written_bytes(model: Any) -> int:
    """Bytes of the model's safetensors, written to a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return weights_bytes(Path(folder))


def model_row(what: str, model: nn.Module, dtype: str, write_limit_bytes: int) -> FootprintRow:
    """A whole model: its file (written if it is small enough) and its tensors."""
    memory_bytes = tensor_bytes(model)
    small = memory_bytes <= write_limit_bytes
    return FootprintRow(
        what=what,
        dtype=dtype,
        disk_bytes=written_bytes(model) if small else memory_bytes,
        memory_bytes=memory_bytes,
        disk_how="measured" if small else "counted",
    )


def adapter_rows(model: nn.Module) -> list[FootprintRow]:
    """One adapter in float32 and in bf16, written as its file."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    state = get_peft_model_state_dict(model)
    rows = []
    for dtype in ("fp32", "bf16"):
        cast = {key: tensor.to("cpu", DTYPES[dtype]) for key, tensor in state.items()}
        with tempfile.TemporaryDirectory() as folder:
            save_file(cast, Path(folder) / "adapter_model.safetensors")
            disk_bytes = weights_bytes(Path(folder))
        rows.append(
            FootprintRow(
                what="adapter",
                dtype=dtype,
                disk_bytes=disk_bytes,
                memory_bytes=sum(map(nbytes, cast.values())),
                disk_how="measured",
            )
        )
    return rows


def nbytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def measure_variants(
    spec: ServeSpec, base: Any, four_bit: Any, dynamic: Any, merged: Any
) -> tuple[dict[str, Any], str | None]:
    """The footprint fields of ServeMeasures, and a note on adapters that are loaded together.

    A model that a method has not is None; `dynamic` holds all adapters, the first of which counts.
    """
    limit = spec.settings.write_limit_bytes
    whole = model_row("checkpoint", base, spec.dtype, limit)
    rows, note = [whole], None
    ways = [WayToKeep("checkpoints", 0, 0, whole.disk_bytes, whole.memory_bytes)]
    if dynamic is not None:
        under = whole
        if four_bit is not None:
            under = model_row("4-bit base", four_bit, "nf4", limit)
            rows.append(under)
        adapters = adapter_rows(dynamic)
        rows += adapters
        if merged is not None:
            rows.append(model_row("merged model", merged, spec.dtype, limit))
        ways += [adapter_way(adapter, under) for adapter in adapters]
        note = note_sum(spec, dynamic, under, adapters)
    found = {
        "footprint": tuple(rows),
        "variants": tabulate_variants(ways, spec.settings.variants),
        "break_even": tuple(find_break_even(way, ways[0]) for way in ways[1:]),
    }
    return found, note


def adapter_way(adapter: FootprintRow, base: FootprintRow) -> WayToKeep:
    """Adapters of one dtype on one base."""
    return WayToKeep(
        f"{adapter.dtype} adapters on one {base.what}",
        base.disk_bytes,
        base.memory_bytes,
        adapter.disk_bytes,
        adapter.memory_bytes,
    )


def note_sum(
    spec: ServeSpec, dynamic: Any, base: FootprintRow, adapters: list[FootprintRow]
) -> str:
    """Adapters loaded together on one base beside the table's arithmetic."""
    one = next(row for row in adapters if row.dtype == spec.adapter_dtype)
    count = len(dynamic.peft_config)
    return (
        f"{count} adapters loaded on one base take {tensor_bytes(dynamic):,} bytes; base and "
        f"{count} times one adapter are {base.memory_bytes + count * one.memory_bytes:,}"
    )
