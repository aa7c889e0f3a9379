"""What operators give on fake tensors, known after the first time.

FakeTensorMode remembers answers too, but asks much before it gives one, and keeps neither the view
that every linear layer ends with nor other packages' operators. A model's layers are alike, so most
operators of a trace come again with inputs of the same forms.

An answer depends on its inputs' forms (sizes, strides, dtype, storage) and on numbers. Kept is what
was seen: which outputs are inputs again or views of one, and the forms of the new ones.

Not covered: operators that read data, change an input's form or have no tensor among their inputs.
They are asked each time.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensor, in_kernel_invocation_manager

PLAIN = {int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout,
         torch.memory_format}  # fmt: skip
NOT_BY_FORM = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape,
               torch.Tag.inplace_view}  # fmt: skip
MOST_KNOWN = 20_000  # a trace has some 300; together they take some tens of megabytes


class NotByForm(Exception):
    """An input or output of which its form does not tell all."""


class Output(NamedTuple):
    """Of an operator, a new tensor or a view. source: the input that it is a view of; None: new."""

    source: int | None
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    device: torch.device
    state: dict[str, Any]  # what the constructor of FakeTensor set, one by one


Told = int | Output | None  # an output: which input it is, what it is, or nothing


class FakeResults:
    """Calls operators, or gives what they gave."""

    def __init__(self) -> None:
        self.known: dict[Any, tuple[type, list[Told]]] = {}

    def __call__(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        inputs: list[FakeTensor] = []
        try:
            key = (func, form_of(args, inputs), form_of(tuple(kwargs.items()), inputs))
        except NotByForm:
            return func(*args, **kwargs)
        if key not in self.known:
            out = func(*args, **kwargs)
            if inputs and NOT_BY_FORM.isdisjoint(func.tags):
                if len(self.known) >= MOST_KNOWN:
                    self.known.clear()
                with suppress(NotByForm):
                    self.known[key] = describe_all(out, inputs)
            return out
        kind, told = self.known[key]
        made = [make(one, inputs) for one in told]
        return kind(made) if kind in (tuple, list) else made[0]


def form_of(value: Any, inputs: list[FakeTensor]) -> Any:
    """What an answer depends on; tensors are added to `inputs`. NotByForm."""
    kind = type(value)
    if kind is FakeTensor and value.constant is None:
        inputs.append(value)
        return (value.shape, value.stride(), value.storage_offset(), value.dtype,
                value.fake_device, count_bytes(value))  # fmt: skip
    if kind is tuple or kind is list:
        return kind, *[form_of(one, inputs) for one in value]
    if kind in PLAIN:
        return kind, value
    raise NotByForm


def describe_all(out: Any, inputs: list[FakeTensor]) -> tuple[type, list[Told]]:
    """In what outputs come, and each. NotByForm where two share a new storage."""
    kind, outs = (type(out), out) if type(out) in (tuple, list) else (object, [out])
    told = [describe(one, inputs) for one in outs]
    new = [storage_of(one) for one, form in zip(outs, told, strict=True)
           if isinstance(form, Output) and form.source is None]  # fmt: skip
    if len(set(new)) < len(new):
        raise NotByForm
    return kind, told


def describe(out: Any, inputs: list[FakeTensor]) -> Told:
    """How an output came from the inputs, and its form. NotByForm."""
    if out is None:
        return None
    if type(out) is not FakeTensor:
        raise NotByForm
    for number, one in enumerate(inputs):
        if one is out:
            return number
    if out.constant is not None or out.requires_grad:
        raise NotByForm
    shared = [n for n, one in enumerate(inputs) if storage_of(one) == storage_of(out)]
    if len(shared) > 1:  # a view of which of them
        raise NotByForm
    state = {name: value for name, value in vars(out).items() if name != "fake_mode"}
    source = shared[0] if shared else None
    size, offset = tuple(map(int, out.shape)), int(out.storage_offset())
    form = Output(source, size, out.stride(), offset, out.dtype, out.fake_device, state)
    again = make(form, inputs)
    if again is None or count_bytes(again) != count_bytes(out):
        raise NotByForm
    return form


def storage_of(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def count_bytes(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().nbytes()


def make(told: Told, inputs: list[FakeTensor]) -> FakeTensor | None:
    """An output as it is told, made as FakeTensorMode makes it."""
    if not isinstance(told, Output):
        return None if told is None else inputs[told]
    mode = inputs[0].fake_mode
    with in_kernel_invocation_manager(mode):
        bare = torch.empty_strided(told.size, told.stride, dtype=told.dtype, device="meta")
        if told.source is not None:
            storage = inputs[told.source].untyped_storage()
            bare.set_(storage, told.offset, told.size, told.stride)
    made = torch.Tensor._make_subclass(
        FakeTensor, bare, False, dispatch_device=True, device_for_backend_keys=told.device
    )
    vars(made).update(told.state, fake_mode=mode)
    return made
