"""Packages that only some settings need: looked for before a study starts, named if missing.

Not covered: the packages that every study needs (pyproject.toml; tools/python sees to them).
"""

from __future__ import annotations

from importlib.util import find_spec

from studylib.core.errors import StudyError
from studylib.schema.spec import RunSpec

# (setting, value) -> (module, what to install, what does without it)
EXTRAS = {
    ("train.attention", "flash_attention_2"): ("flash_attn", "flash-attn", "sdpa"),
    ("train.loss", "liger"): ("liger_kernel", "liger-kernel", "chunked"),
    ("hardware.sharding", "zero3"): ("deepspeed", "deepspeed", "fsdp"),
}


def check_extras(spec: RunSpec) -> None:
    """Raise where a run that trains asks for what is not installed."""
    if not spec.method.kind.trains:
        return
    chosen: dict[str, str] = {
        "train.attention": spec.train.attention,
        "train.loss": spec.train.loss,
    }
    if spec.gpus > 1:
        chosen["hardware.sharding"] = spec.hardware.sharding
    for setting, value in chosen.items():
        module, package, instead = EXTRAS.get((setting, value), (None, "", ""))
        if module is not None and find_spec(module) is None:
            raise StudyError(
                f"{setting} = {value}",
                f"the package {package} is not installed",
                f"Install it (pip install {package}), or write {setting.split('.')[1]}: {instead}.",
            )
