"""Run one training step without its tensors and write down what lives when.

The step of studylib.forecasting.step runs under FakeTensorMode. Every growth of live memory is an
event with its stage and layer, so that a trace of few layers can be continued to any depth
(studylib.forecasting.depth) and sharded (studylib.forecasting.sharding).

What is made and freed is kept too, in its order, for the allocator's model
(studylib.forecasting.replay).

Not covered: memory that is no tensor's (studylib.planning.cuda_terms).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from studylib.core.errors import StudyError, name_error
from studylib.core.uncollected import uncollected
from studylib.forecasting.fake_results import FakeResults
from studylib.forecasting.job import StepSettings
from studylib.forecasting.kernels import (
    bytes_of,
    choose_traced,
    flops_of,
    is_dequantization,
    scratch_buffers,
)  # fmt: skip
from studylib.forecasting.moves import Held, Ledger, Segment, SegmentMoves, Trained
from studylib.forecasting.step import make_batch, score_once, serve_once, train_once
from studylib.metering.live import LiveBytes, tensors_in
from studylib.modelling.added import added_tensors, named_state, settle_whole
from studylib.modelling.four_bit import constants, count_weights, quantization_constants
from studylib.modelling.methods import decoder_layers
from studylib.modelling.skeleton import build_meta, fakes_dequantized, materialise_fakes

PARTS = ("weights", "quantization_constants", "adapter", "gradients", "optimizer_states",
         "saved_activations", "logits_and_loss", "temporaries", "allocator")  # fmt: skip
# A layer's step takes some 2,000 operators, however many tokens; one that goes through its tokens
# one by one takes some for each. About ten seconds of tracing.
MOST_OPERATORS, MOST_OPERATORS_A_LAYER = 50_000, 8_000
answer = FakeResults()
DEVICE_OF, META = torch.ops.prim.device.default, torch.device("meta")


class EndlessTrace(Exception):
    """The step has more operators than a trace waits for."""


class ParamBytes(NamedTuple):
    """Bytes of some modules' parameters (4-bit ones as stored) and of their gradients."""

    parameters: int
    gradients: int


NO_BYTES = ParamBytes(0, 0)


@dataclass
class Trace:
    """What a step did. `events`: (segment, bytes of each of PARTS) wherever memory grew.

    `layer` and `rest`: one layer's parameters, and those outside the layers. saved_params: the
    numbers in an adapter's file. shared: whether layers share trained parameters, so that a deeper
    model has not more of them by the layer.

    `operators`: (stage, flops, bytes moved) -> how often. `held`, `runs`, `trained`: storages that
    are there before the passes, what the passes make and free, and what the optimizer updates.
    `replayed`: what their replays gave (studylib.forecasting.peaks), which take no other trace.
    """

    layers: int
    trainable_params: int = 0
    total_params: int = 0
    saved_params: int = 0
    shared: bool = False
    layer: ParamBytes = NO_BYTES
    rest: ParamBytes = NO_BYTES
    events: list[tuple[Segment, tuple[int, ...]]] = field(default_factory=list)
    operators: Counter[tuple[str, float, int]] = field(default_factory=Counter)
    dequantized_bytes: int = 0
    paged_bytes: int = 0
    held: list[Held] = field(default_factory=list)
    runs: list[SegmentMoves] = field(default_factory=list)
    trained: list[Trained] = field(default_factory=list)
    replayed: dict[Any, Any] = field(default_factory=dict)

    def peak(self) -> tuple[Segment, tuple[int, ...]]:
        return max(self.events, key=lambda event: sum(event[1]))


class StepTrace(LiveBytes):
    """LiveBytes that also keeps the timeline, the arithmetic and the traffic of a step."""

    def __init__(self, trace: Trace, cuda: bool) -> None:
        super().__init__(block_bytes=512 if cuda else 1)
        self.trace, self.cuda = trace, cuda
        self.segment: Segment = ("setup", -1)
        self.recording = False
        self.ledger = Ledger()
        self.last_operator: Any = "no operator"
        self.left = MOST_OPERATORS + trace.layers * MOST_OPERATORS_A_LAYER

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: nothing is compiled here, and every operator would pay for it."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is DEVICE_OF:  # two of three questions, for which the fake mode takes long
            fake = args[0]
            return META if fake.fake_mode.in_kernel_invocation else fake.fake_device
        kwargs = kwargs or {}
        self.last_operator = func
        out = answer(func, args, kwargs)
        if isinstance(out, torch.Tensor):  # what only asks (a device, a size) may not raise in C++
            self.left -= 1
            if self.left < 0:
                raise EndlessTrace(func)
        scratch = scratch_buffers(func, args) if self.cuda else ()
        if self.track(tensors_in(out)) or scratch:
            self.note_peak(sum(scratch))
        if scratch and self.writes:
            for number, count_bytes in enumerate(scratch):
                self.ledger.make(-1 - number, count_bytes, self.segment)
            for number in range(len(scratch)):
                self.ledger.free(-1 - number, self.segment)
        if self.recording:
            moved = bytes_of(func, args, out)
            if moved:
                flops = flops_of(func, args, kwargs, out)
                self.trace.operators[self.segment[0], flops, moved] += 1
            if is_dequantization(func):
                self.trace.dequantized_bytes += moved
        return out

    @property
    def writes(self) -> bool:
        """Whether this is a pass, whose moves are kept; the update's are traced apart."""
        return self.recording and self.segment[0] != "optimizer"

    def _add(self, storage: Any, key: int, category: str) -> None:
        super()._add(storage, key, category)
        if self.writes:
            self.ledger.make(key, storage.nbytes(), self.segment)

    def _free(self, key: int) -> None:
        super()._free(key)
        if self.writes:
            self.ledger.free(key, self.segment)

    def enter(self, stage: str, layer: int, category: str) -> None:
        self.segment, self.category = (stage, layer), category

    def note_peak(self, scratch_bytes: int) -> None:
        if self.recording:
            parts = [self.parts.get(name, 0) for name in PARTS]
            parts[PARTS.index("temporaries")] += scratch_bytes
            self.trace.events.append((self.segment, tuple(parts)))


def trace_step(config: Any, settings: StepSettings) -> Trace:
    """Trace a step of one configuration, the optimizer's states being there from an earlier one.

    Raises StudyError naming the operator where the architecture cannot be traced: its code is not
    ours, and without data it may raise anything.
    """
    attention = choose_traced(config, settings)
    model = build_meta(config, settings.method, settings.weights, attention)
    if settings.stage != "train":
        settle_whole(model)
    layers = decoder_layers(model)
    trace = Trace(layers=len(layers))
    trace.trainable_params, trace.total_params = count_base(model)
    trace.shared = shares_trained(layers)
    # A converted adapter is kept beside what it began with.
    trace.saved_params = count_saved(model) * (2 if settings.method.kind.converted else 1)
    live = StepTrace(trace, settings.kernels == "cuda")
    try:
        # What is alive must not depend on when circles are looked for.
        with quiet_fakes(), fakes_dequantized(), uncollected(), FakeTensorMode(), live:
            materialise_fakes(model)
            track_model(live, model)
            trace.layer = param_bytes(layers[-1].parameters())
            in_layers = {id(p) for layer in layers for p in layer.parameters()}
            trace.rest = param_bytes(p for p in model.parameters() if id(p) not in in_layers)
            watch_layers(live, layers)
            batch = make_batch(model, settings)
            numbers = {id(m): i for i, layer in enumerate(layers) for m in layer.modules()}
            trace.held = list(list_held(model, batch, numbers))
            if settings.stage == "train":
                trace.trained = list(list_trained(model, numbers))
                trace.paged_bytes = train_once(model, batch, settings, live)
            else:
                once = score_once if settings.stage == "score" else serve_once
                left = once(model, batch, live)  # noqa: F841 - alive until all is written down
            live.recording = False
            trace.runs = live.ledger.runs
    except EndlessTrace:
        raise StudyError(
            config.model_type,
            f"a step of {settings.seq_len} tokens is too long to trace, as of a model that goes "
            "through them one by one",
            "Its runs are started without a forecast; a shorter seq_len may have one.",
        ) from None
    except Exception as error:
        raise StudyError(
            config.model_type,
            f"this architecture cannot be traced: {live.last_operator} ({name_error(error)})",
            "Forecasts need operators that PyTorch can run without data.",
        ) from error
    return trace


@contextmanager
def quiet_fakes() -> Iterator[None]:
    """Keep torch from logging the traceback of an operator that fails: the message names it."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


def shares_trained(layers: list[nn.Module]) -> bool:
    """Whether two layers hold the same trained parameter (Lily's matrices)."""
    found = [id(p) for layer in layers for p in layer.parameters() if p.requires_grad]
    return len(found) > len(set(found))


def count_base(model: nn.Module) -> tuple[int, int]:
    """(trainable, total) parameters; the total is the base model's, without the adapter's."""
    added = added_tensors(model)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trainable, sum(count_weights(p) for p in model.parameters() if id(p) not in added)


def count_saved(model: Any) -> int:
    """Numbers in the adapter's file as peft writes it; 0 without an adapter.

    Some of them are no parameters: VeRA's shared matrices are drawn once and saved with it.
    """
    if not hasattr(model, "peft_config"):
        return 0
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, named_state(model))
    return sum(tensor.numel() for tensor in state.values())


def param_bytes(parameters: Iterable[nn.Parameter]) -> ParamBytes:
    sizes = [(p.numel() * p.element_size(), p.requires_grad) for p in parameters]
    return ParamBytes(sum(size for size, _ in sizes), sum(size for size, own in sizes if own))


def track_model(live: LiveBytes, model: nn.Module) -> None:
    """Count what exists before the first step, as the base's or the adapter's."""
    live.move(quantization_constants(model), "quantization_constants")
    added = added_tensors(model)
    for tensor in (*model.parameters(), *model.buffers()):
        live.move([tensor], "adapter" if id(tensor) in added else "weights")


def list_held(
    model: nn.Module, batch: dict[str, torch.Tensor], numbers: dict[int, int]
) -> Iterator[Held]:
    """The storages of weights and constants in the order of the modules, of an adapter, of a batch.

    numbers: id of a layer's module -> the layer's number.
    """
    seen: set[int] = set()

    def fresh(tensors: Iterable[torch.Tensor], layer: int, divided: bool) -> Iterator[Held]:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata not in seen:
                seen.add(storage._cdata)
                yield Held(layer, storage.nbytes(), divided)

    added = added_tensors(model)
    for adapters in (False, True):
        for module in model.modules():
            layer = numbers.get(id(module), -1)
            own: list[torch.Tensor] = [
                p for p in module.parameters(recurse=False) if (id(p) in added) == adapters
            ]
            if not adapters:
                own += constants(getattr(getattr(module, "weight", None), "quant_state", None))
                yield from fresh(own, layer, True)
                yield from fresh(module.buffers(recurse=False), layer, False)
            else:
                yield from fresh(own, layer, True)
    yield from fresh(batch.values(), -1, False)


def list_trained(model: nn.Module, numbers: dict[int, int]) -> Iterator[Trained]:
    """What an optimizer is given, in its order."""
    seen: set[int] = set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                yield Trained(
                    numbers.get(id(module), -1), tuple(parameter.shape), parameter.dtype,
                    isinstance(module, nn.Embedding),
                )  # fmt: skip


def watch_layers(live: StepTrace, layers: list[nn.Module]) -> None:
    """Let the trace know which layer's forward or backward is at work.

    What a checkpointed layer recomputes is temporary: some transformers call these hooks for the
    recomputation (5.17), others do not (5.23), and no figure may depend on it.
    """

    def before(index: int) -> Any:
        def hook(*_: Any) -> None:
            if live.segment[0] != "backward":
                live.enter("forward", index, "saved_activations")

        return hook

    def after(index: int) -> Any:
        def hook(_module: Any, _args: Any, out: Any) -> None:
            if live.segment[0] == "forward":
                if index == len(layers) - 1:
                    live.enter("loss", -1, "logits_and_loss")
                hidden = next(tensors_in(out))
                if hidden.requires_grad:
                    hidden.register_hook(lambda _: live.enter("backward", index, "temporaries"))

        return hook

    for index, layer in enumerate(layers):
        layer.register_forward_pre_hook(before(index))
        layer.register_forward_hook(after(index))
