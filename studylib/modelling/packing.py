"""Do a loaded model's packed rows keep their examples apart; where not, read them one by one.

Training lays examples side by side in a row and marks where each begins by positions that restart.
transformers turns that into a mask for attention, and into nothing for a recurrent state, a short
convolution, distances that a bias measures, or positions that a model counts itself: there the
second example sees the first, without an error. So each model is tried when it is loaded, on two
short examples. Where that fails, the forward of its body is replaced: a packed row is taken apart,
its examples are read as a batch, and the hidden states come back in packed layout, so that output
layer, loss and averages are the same code for all models.

Not covered: how examples are packed (studylib.training.collate); masks and caches of scoring
(studylib.scoring.prefix_lm), which pass through untouched.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from types import MethodType
from typing import Any

import torch
from torch import nn

from studylib.core.errors import StudyError
from studylib.core.launch import sharded

FIRST_TOKENS, SECOND_TOKENS = 16, 12
ORDINARY_IDS = 1000  # a vocabulary's first entries, short of what many reserve at its end
# Limits in standard deviations of the logits: (all products in 24 bits, in fewer). Without a leak
# another first example moves nothing but the rounding of experts' batches; read alone, each layer
# is rounded by another kernel. Leaks and wrong positions are 0.06 and more.
MOVED_LIMITS = (1e-3, 1e-2)
APART_LIMITS = (1e-3, 1e-1)
MOST_PADDING = 0.25  # of a group's own tokens: its memory stays near that of the packed row
CACHES = ("past_key_values", "cache_params", "state")
# What foreign code raises when it meets inputs that it does not know.
REFUSALS = (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError)


def probe_causal(model: Any) -> None:
    """Raise StudyError where a later token changes what the model says of earlier ones."""
    with as_trained(model):
        ids = draw_ids(model, SECOND_TOKENS + 1)
        one = model(input_ids=ids[:, :-1]).logits[0, :-1].float()
        other = model(input_ids=torch.cat([ids[:, :-2], ids[:, -1:]], 1)).logits[0, :-1].float()
    moved = logit_distance(one, other, one)
    if moved > limit_of(model, MOVED_LIMITS):
        raise StudyError(
            type(model).__name__,
            "this model is no causal language model: a later token moves the logits of earlier "
            f"ones by {moved:.2g} standard deviations",
            "Take a model that predicts each next token from those before it.",
        )


def probe_packing(model: Any) -> str | None:
    """Say why examples of one packed row do not stay apart in a model; None where they do.

    Modes, random states and the configuration stay as they were. A model whose logits are not
    numbers gives None: nothing can be told from them.
    """
    with as_trained(model):
        ids = draw_ids(model, 2 * FIRST_TOKENS + SECOND_TOKENS)
        one, other, second = ids.split([FIRST_TOKENS, FIRST_TOKENS, SECOND_TOKENS], dim=1)
        alone = model(input_ids=second).logits[0].float()
        try:
            after_one, after_other = (read_second(model, first, second) for first in (one, other))
        except torch.OutOfMemoryError:
            raise
        except REFUSALS as error:
            said = str(error).strip().partition("\n")[0]
            return f"its code refuses positions that restart ({type(error).__name__}: {said})"
    if not torch.isfinite(alone).all():
        return None
    moved, off = (
        logit_distance(after_one, after_other, alone),
        logit_distance(after_one, alone, alone),
    )
    if not moved <= limit_of(model, MOVED_LIMITS):
        return (
            "an example in a packed row sees the one before it, which moves its logits by "
            f"{moved:.2g} standard deviations"
        )
    if not off <= limit_of(model, APART_LIMITS):
        return f"an example's logits in a packed row are {off:.2g} standard deviations off"
    return None


def read_second(model: Any, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Logits [tokens, vocabulary] of an example that stands second in a packed row."""
    positions = [torch.arange(part.shape[1], device=part.device) for part in (first, second)]
    ids = torch.cat([first, second], dim=1)
    logits = model(input_ids=ids, position_ids=torch.cat(positions)[None]).logits
    return logits[0, first.shape[1] :].float()


def draw_ids(model: Any, count: int) -> torch.Tensor:
    """Token ids [1, count], always the same; none that the configuration names for a use."""
    config = model.config.get_text_config()
    special: set[int] = set()
    for settings in (model.config, config):
        named = [v for name, v in vars(settings).items() if name.endswith(("token_id", "index"))]
        special |= {i for v in named for i in (v if isinstance(v, list) else [v])}
    vocabulary = min(model.get_input_embeddings().weight.shape[0], ORDINARY_IDS)
    ordinary = torch.tensor([i for i in range(vocabulary) if i not in special])
    drawn = torch.randint(len(ordinary), (count,), generator=torch.Generator().manual_seed(0))
    return ordinary[drawn][None].to(model.get_input_embeddings().weight.device)


def logit_distance(one: torch.Tensor, other: torch.Tensor, scale: torch.Tensor) -> float:
    """Root mean square of the difference of logits, in standard deviations of `scale`."""
    return float((one - other).square().mean().sqrt() / scale.std().clamp_min(1e-30))


def limit_of(model: nn.Module, limits: tuple[float, float]) -> float:
    """The limit for how a model multiplies: in 24 bits, or in 16-bit, 4-bit or TF32 products."""
    backends: Any = torch.backends
    wide = all(p.dtype in (torch.float32, torch.float64) for p in model.parameters())
    rounded = torch.cuda.is_available() and backends.fp32_precision == "tf32"
    return limits[0] if wide and not rounded else limits[1]


@contextmanager
def as_trained(model: Any) -> Iterator[None]:
    """Let a model compute as in training, but for dropout and gradients, and leave no trace.

    Kernels of cards alone are stood in for by plain attention where the model is on the host.
    """
    device = model.get_input_embeddings().weight.device
    modes = {module: module.training for module in model.modules()}
    cached = getattr(model.config, "use_cache", None)
    attention = model.config.get_text_config()._attn_implementation
    on_cards_only = attention not in ("sdpa", "eager", None)
    swapped = on_cards_only and device.type == "cpu"
    flash = str(attention).startswith("flash") and not swapped
    model.eval()
    model.config.use_cache = False
    if swapped:
        model.set_attn_implementation("eager")
    try:
        with (
            torch.no_grad(),
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            torch.autocast(device.type, torch.bfloat16, enabled=flash),
        ):
            yield
    finally:
        if swapped:
            model.set_attn_implementation(attention)
        if cached is not None:
            model.config.use_cache = cached
        for module, training in modes.items():
            module.training = training


class Positions:
    """Where a model's outer forward leaves a packed row's positions for its body to find."""

    def __init__(self) -> None:
        self.waiting: torch.Tensor | None = None

    def take(self) -> torch.Tensor | None:
        found, self.waiting = self.waiting, None
        return found


def read_apart(model: Any) -> None:
    """Let a loaded model read the examples of packed rows one by one, in place.

    It then takes position_ids [rows, tokens] that restart at every example, whether its own code
    takes any or not, and gives each example what it gives it alone: to rounding, not to the bit.
    With an attention mask or a cache it computes as before.
    """
    positions = Positions()
    for body in bodies(model):
        replace_forward(body, positions, read_body)
    replace_forward(model, positions, hand_positions_on)


def bodies(model: Any) -> list[nn.Module]:
    """What may be called for hidden states: the body, and a decoder that is all there is in it."""
    body = model.base_model
    decoder = getattr(body, "decoder", None)
    return [body, decoder] if isinstance(decoder, nn.Module) else [body]


def replace_forward(module: Any, positions: Positions, forward: Any) -> None:
    """Give a module a forward that knows the one it had; a copy of the module gets its own."""
    module.forward_of_one, module.packed_positions = module.forward, positions

    def named(self: Any, *words: Any, **inputs: Any) -> Any:
        return forward(self, name_words(self, words) | inputs)

    own = inspect.signature(module.forward)  # what others inspect, to see what the model takes
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    named.__signature__ = own.replace(  # type: ignore[attr-defined]
        parameters=[itself, *own.parameters.values()]
    )
    module.forward = MethodType(named, module)


def name_words(module: Any, words: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(inspect.signature(module.forward_of_one).parameters, words, strict=False))


def hand_positions_on(model: Any, inputs: dict[str, Any]) -> Any:
    """The outer forward: positions go past it, since not every architecture takes them."""
    positions = inputs.get("position_ids")
    if not is_packed_row(inputs, positions):
        return model.forward_of_one(**inputs)
    model.packed_positions.waiting = positions
    try:
        return model.forward_of_one(**{k: v for k, v in inputs.items() if k != "position_ids"})
    finally:
        model.packed_positions.waiting = None


def is_packed_row(inputs: dict[str, Any], positions: Any) -> bool:
    """Whether nothing but positions says what sees what, each example's from 0 on."""
    others = [inputs.get(name) for name in ("attention_mask", *CACHES)]
    if positions is None or positions.dim() != 2 or any(other is not None for other in others):
        return False
    steps = positions.diff(dim=1)
    restarts = positions[:, 1:] == 0
    return bool((positions[:, 0] == 0).all() and ((steps == 1) | restarts).all())


def read_body(body: Any, inputs: dict[str, Any]) -> Any:
    """The body's forward: hidden states [rows, tokens, width], a packed row's by example."""
    positions = body.packed_positions.take()
    if positions is None and is_packed_row(inputs, inputs.get("position_ids")):
        positions = inputs["position_ids"]
    if positions is None:
        return body.forward_of_one(**inputs)
    inputs = {name: value for name, value in inputs.items() if name != "position_ids"}
    shape = positions.shape
    begins = [*(positions.flatten() == 0).nonzero().flatten().tolist(), positions.numel()]
    lengths = [end - start for start, end in pairwise(begins)]
    if len(lengths) == shape[0]:  # each row is one example already
        return body.forward_of_one(**inputs)
    found, place = [], torch.empty(positions.numel(), dtype=torch.int64)
    offset = 0
    for group in group_alike(lengths):
        index = gather_index([begins[i] for i in group], [lengths[i] for i in group])
        output = body.forward_of_one(**{k: select(v, k, index) for k, v in inputs.items()})
        found.append(output)
        width = index.shape[1]
        for number, i in enumerate(group):
            first = offset + number * width
            place[begins[i] : begins[i + 1]] = torch.arange(first, first + lengths[i])
        offset += index.numel()
    return put_together(found, place.to(positions.device), shape)


def group_alike(lengths: Sequence[int]) -> list[list[int]]:
    """Examples, by number, in groups of like lengths whose padding stays small.

    Several processes that divide a model must call it equally often: there all are one group, and
    padding may be several times their tokens.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    if sharded():
        return [order]
    groups: list[list[int]] = []
    own = 0
    for i in order:
        padded = lengths[groups[-1][0]] * (len(groups[-1]) + 1) if groups else 0
        if groups and padded <= (1 + MOST_PADDING) * (own + lengths[i]):
            groups[-1].append(i)
            own += lengths[i]
        else:
            groups.append([i])
            own = lengths[i]
    return groups


def gather_index(begins: Sequence[int], lengths: Sequence[int]) -> torch.Tensor:
    """Where in a flat row the tokens of examples are [examples, longest].

    What fills up a short one is its first token again: it comes last, where nothing sees it.
    """
    steps = torch.arange(max(lengths))[None]
    steps = torch.where(steps < torch.tensor(lengths)[:, None], steps, 0)
    return torch.tensor(begins)[:, None] + steps


def select(value: Any, name: str, index: torch.Tensor) -> Any:
    """An input by token, in the layout of `index`; any other as it is."""
    if name not in ("input_ids", "inputs_embeds") or value is None:
        return value
    return value.flatten(0, 1)[index.to(value.device)]


def put_together(outputs: list[Any], place: torch.Tensor, shape: torch.Size) -> Any:
    """Hidden states of the groups, and what routers said of each token, in packed layout."""

    def packed(parts: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat(parts)[place.to(parts[0].device)]

    hidden = packed([output.last_hidden_state.flatten(0, 1) for output in outputs])
    rest = {}
    if getattr(outputs[0], "router_logits", None) is not None:
        layers = zip(*(output.router_logits for output in outputs), strict=True)
        rest["router_logits"] = tuple(packed([p.flatten(0, -2) for p in parts]) for parts in layers)
    return type(outputs[0])(last_hidden_state=hidden.view(*shape, -1), **rest)


def keep_examples_apart(model: Any) -> str | None:
    """Try a model on a packed row and mend it where that fails; returns the reason in words.

    Raises StudyError where it is no causal model, or where reading one by one fails too.
    """
    probe_causal(model)
    reason = probe_packing(model)
    if reason is not None:
        read_apart(model)
        if (still := probe_packing(model)) is not None:
            raise StudyError(
                type(model).__name__,
                f"its examples cannot be kept apart ({still}), not even read one by one",
                "Take another model.",
            )
    return reason
