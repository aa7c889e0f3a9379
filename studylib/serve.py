"""What a variant of a model costs to keep: bytes of its files, bytes of its tensors.

Files are written and measured where they are small enough, else their size is the sum of their
tensors ("counted"; a file's header is a few kilobytes more). Memory is the sum of the tensors as
loaded: weights, buffers and quantization constants, tied ones once.

Not covered: what follows for N variants (studylib.footprint), latency (studylib.latency).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from studylib.methods import DTYPES
from studylib.profile import MethodSettings
from studylib.serving import FootprintRow
from studylib.variants import tensor_bytes


def measure_footprint(model: nn.Module, method: MethodSettings, trained: Path | None) -> dict:
    """Bytes of the safetensors as really written: an adapter's, or a whole checkpoint's.

    An adapter needs its base beside it, once for all variants; the base's own run has its bytes.
    """
    if method.kind.adapter:
        assert trained is not None
        return {"adapter_bytes": weights_bytes(trained), "checkpoint_bytes": None}
    if trained is not None:
        return {"adapter_bytes": None, "checkpoint_bytes": weights_bytes(trained)}
    return {"adapter_bytes": None, "checkpoint_bytes": written_bytes(model)}


def weights_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


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


def adapter_rows(model: nn.Module, name: str = "default") -> list[FootprintRow]:
    """One adapter in float32 and in bf16, written as its file."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    state = get_peft_model_state_dict(model, adapter_name=name)
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
