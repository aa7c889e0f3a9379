"""Packages that only some settings need: looked for before a study starts, named if missing.

Not covered: the packages that every study needs (pyproject.toml; tools/python sees to them).
"""

from __future__ import annotations

from importlib.util import find_spec

from studylib.core.errors import StudyError
from studylib.schema.spec import RunSpec

# (setting, value) -> (packages by the module that each brings, what does without them)
EXTRAS = {
    ("train.attention", "flash_attention_2"): ({"flash_attn": "flash-attn"}, "sdpa"),
    ("train.loss", "liger"): ({"liger_kernel": "liger-kernel", "triton": "triton"}, "chunked"),
    ("hardware.sharding", "zero3"): ({"deepspeed": "deepspeed"}, "fsdp"),
}
# What has kernels for cards alone, or on a CPU no backward -> what does without a card.
ON_CARDS_ONLY = {
    ("train.attention", "flash_attention_2"): "sdpa",
    ("train.attention", "flex_attention"): "sdpa",
    ("train.loss", "liger"): "chunked",
}


def check_extras(spec: RunSpec) -> None:
    """Raise where a run that trains asks for what is not installed, or for a card it has not."""
    if not spec.method.kind.trains:
        return
    chosen: dict[str, str] = {
        "train.attention": spec.train.attention,
        "train.loss": spec.train.loss,
    }
    if spec.gpus > 1:
        chosen["hardware.sharding"] = spec.hardware.sharding
    for setting, value in chosen.items():
        packages, instead = EXTRAS.get((setting, value), ({}, ""))
        for module, package in packages.items():
            if find_spec(module) is None:
                raise StudyError(
                    f"{setting} = {value}",
                    f"the package {package} is not installed",
                    f"Install it (pip install {package}), or write "
                    f"{setting.split('.')[1]}: {instead}.",
                )
    if spec.gpus == 0:
        refuse_without_card(spec)


def refuse_without_card(spec: RunSpec) -> None:
    """Raise where a run that trains asks for what computes on cards alone."""
    for (setting, value), instead in ON_CARDS_ONLY.items():
        key = setting.split(".")[1]
        if spec.method.kind.trains and getattr(spec.train, key) == value:
            raise StudyError(
                f"{setting} = {value}",
                "it trains on a card only, and there is none for this run",
                f"Write {key}: {instead}.",
            )
