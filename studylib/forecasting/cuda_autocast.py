"""What autocast does on a CUDA card and not on a CPU, on which steps are traced.

On both, products of matrices are taken in 16 bits. CUDA's also takes 16-bit inputs of some
functions in fp32 (PyTorch's page on automatic mixed precision, "CUDA Ops that can autocast to
float32"), whose results are then twice as large, and with them what is made of them; and it makes
attention 16-bit before a kernel is chosen.

Not covered: losses that language models do not have.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

T = torch.Tensor
# Inputs are cast.
CAST = {
    T.pow, T.__pow__, T.__rpow__, T.__rdiv__, T.rsqrt, T.exp, T.expm1, T.log, T.log10, T.log1p,
    T.log2, T.reciprocal, torch.pow, torch.rsqrt, torch.exp, torch.expm1, torch.log, torch.log10,
    torch.log1p, torch.log2, torch.reciprocal, functional.layer_norm, functional.group_norm,
    functional.softplus, functional.cross_entropy, functional.nll_loss, functional.mse_loss,
}  # fmt: skip
# These give fp32 unless another dtype is asked for, and read 16 bits.
WIDEN = {
    T.softmax, T.log_softmax, T.sum, T.prod, T.cumsum, T.cumprod, torch.softmax, torch.log_softmax,
    torch.sum, torch.prod, torch.cumsum, torch.cumprod, functional.softmax, functional.log_softmax,
}  # fmt: skip
HALVES = (torch.bfloat16, torch.float16)


class InFp32(TorchFunctionMode):
    """Does so to the functions that are called while autocast is on."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in CAST and is_on():
            args = [as_fp32(value) for value in args]
            kwargs = {name: as_fp32(value) for name, value in kwargs.items()}
        elif func in WIDEN and is_on() and is_half(args[0]) and kwargs.get("dtype") is None:
            kwargs = kwargs | {"dtype": torch.float32}
        return func(*args, **kwargs)


@contextmanager
def cuda_autocast() -> Iterator[None]:
    """Autocast as CUDA has it, where the CPU's is on; peft sees CUDA's flag."""
    torch.set_autocast_enabled("cuda", True)
    try:
        with InFp32():
            yield
    finally:
        torch.set_autocast_enabled("cuda", False)


def checkpoint_contexts() -> tuple[Any, Any]:
    """For a checkpointed layer's forward, and for its repetition: a backward, being one of the
    functions that a mode stands around, goes on without the mode."""
    return nullcontext(), InFp32()


def is_on() -> bool:
    """In the forward and where a checkpointed layer's is repeated; the rest of a backward has
    none."""
    return torch.is_autocast_enabled("cpu")


def as_autocast(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor as what autocasts to 16 bits reads it."""
    return tensor.to(torch.get_autocast_dtype("cpu")) if is_on() else tensor


def is_half(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype in HALVES


def as_fp32(value: Any) -> Any:
    return value.float() if is_half(value) else value
