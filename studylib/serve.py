"""What a variant of a model costs to keep: bytes on disk.

Not covered yet: latency, hot-swap, many adapters at once.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from torch import nn

from studylib.profile import MethodSettings


def measure_footprint(model: nn.Module, method: MethodSettings, trained: Path | None) -> dict:
    """Bytes of the safetensors as really written: an adapter's, or a whole checkpoint's.

    An adapter needs its base beside it, once for all variants; the base's own run has its bytes.
    """
    if method.kind.adapter:
        assert trained is not None
        return {"adapter_bytes": weights_bytes(trained), "checkpoint_bytes": None}
    if trained is not None:
        return {"adapter_bytes": None, "checkpoint_bytes": weights_bytes(trained)}
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)  # type: ignore[operator]
        return {"adapter_bytes": None, "checkpoint_bytes": weights_bytes(Path(folder))}


def weights_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))
