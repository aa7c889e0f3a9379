"""Cross-entropy over slices of tokens, so that the logits of all tokens never exist at once.

The output layer is the largest thing that a step makes where vocabularies are large: 2,048 tokens
of a 100,000-word vocabulary are 0.8 GB in fp32, with their gradient as much again. Here a slice's
logits are made, used, and made again in the backward. On a processor only the learned tokens go
through it; a card would have to be waited for to know how many they are, and processes that divide
a model must take equally many slices.

Many architectures scale or cap their logits, or transform what the output layer reads. So one short
row is computed both ways before: where the output layer alone gives the model's own loss, slices go
through it; else through the model's own forward, its body standing still.

Not covered: fused kernels that do the same in one pass (Liger's, where its package is installed);
what a model adds to its cross-entropy, which no run trains by (studylib.modelling.token_loss).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.checkpoint import checkpoint

from studylib.core.errors import StudyError
from studylib.core.launch import sharded
from studylib.inputs.tokens import IGNORED
from studylib.modelling.packing import as_trained, bodies, draw_ids
from studylib.modelling.token_loss import gives_token_mean, loss_of_outputs

CHUNK_TOKENS = 1024
COMPARED_TOKENS = 24
SAME_LOSS, SAME_GRADIENT = 1e-5, 1e-4  # both ways take the same products, but for their shape


def install_chunked_loss(
    model: Any, head_alone: bool | None = None, learned: int | None = None
) -> None:
    """Replace a causal model's forward, under an adapter or not, by one that slices its loss.

    The forward then takes labels [rows, tokens] and returns a loss and no logits; without labels
    it is as before. num_items_in_batch: answer tokens over which the sum is averaged (default:
    those of this batch), as transformers' own loss takes it. head_alone: what `slices_head_alone`
    found, where this process cannot try (None: try). learned: how many tokens are, of a batch
    without values. Raises StudyError where slices cannot give the model's own loss.
    """
    base = causal_model(model)
    if head_alone is None:
        head_alone = slices_head_alone(base)
    body, plain = bodies(base)[0], base.forward

    def forward(
        self: Any, *words: Any, labels: torch.Tensor | None = None,
        num_items_in_batch: Any = None, **inputs: Any,
    ) -> Any:  # fmt: skip
        if labels is None:
            return plain(*words, **inputs)
        from transformers.modeling_outputs import CausalLMOutput

        output = body(*words, **inputs)
        head = self.get_output_embeddings() if head_alone else own_head(self, plain, output)
        hidden = output.last_hidden_state
        loss = chunked_cross_entropy(hidden, labels, head, num_items_in_batch, learned)
        return CausalLMOutput(loss=loss)

    base.forward = MethodType(forward, base)


def causal_model(model: Any) -> Any:
    """The model itself, under an adapter or not; raises StudyError if its parts are not apart."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if bodies(base)[0] is base or base.get_output_embeddings() is None:
        raise StudyError(
            "train.loss = chunked", "this model's output layer is not apart", "Use loss: full."
        )
    return base


def slices_head_alone(model: Any) -> bool:
    """Whether the output layer on slices gives the model's loss; False: its forward does.

    Loss and its gradient by hidden states are compared on one row, with the model's own loss where
    that is the mean over tokens. Tensors without values have none to compare: they give True.
    Raises StudyError where neither way gives the model's loss.
    """
    base = causal_model(model)
    weight = base.get_output_embeddings().weight
    if weight.is_meta or isinstance(weight, FakeTensor):
        return True
    is_mean = gives_token_mean(base)
    with as_trained(base):
        ids = draw_ids(base, COMPARED_TOKENS)
        output = body_output(base, ids)
        with torch.enable_grad():
            hidden = output.last_hidden_state.detach().requires_grad_()
            whole = type(output)(**{**output, "last_hidden_state": hidden})

            def own_loss() -> torch.Tensor:
                with body_gives(base, whole):
                    outputs = base.forward(input_ids=ids, labels=ids)
                return outputs.loss if is_mean else loss_of_outputs(outputs, ids)

            def sliced_loss(head: Any) -> torch.Tensor:
                return chunked_cross_entropy(hidden, ids, head)

            own = loss_and_gradient(own_loss, hidden)
            for alone in (True, False):
                head = own_head(base, base.forward, whole)
                if alone:
                    head = base.get_output_embeddings()
                sliced = loss_and_gradient(partial(sliced_loss, head), hidden)
                if is_same(sliced, own):
                    return alone
    raise StudyError(
        "train.loss = chunked",
        f"this model's output layer gives another loss over slices, {sliced[0]:.6g}, than whole, "
        f"{own[0]:.6g}",
        "Use loss: full.",
    )


def body_output(base: Any, ids: torch.Tensor) -> Any:
    """What a model's body hands to its outer forward."""
    found: list[Any] = []
    hooks = [
        body.register_forward_hook(lambda _module, _words, output: found.append(output))
        for body in bodies(base)
    ]
    try:
        base.forward(input_ids=ids)
    finally:
        for hook in hooks:
            hook.remove()
    return found[-1]


def loss_and_gradient(
    compute: Callable[[], torch.Tensor], hidden: torch.Tensor
) -> tuple[float, torch.Tensor]:
    loss = compute()
    (gradient,) = torch.autograd.grad(loss, hidden)
    return float(loss.detach()), gradient.float()


def is_same(one: tuple[float, torch.Tensor], other: tuple[float, torch.Tensor]) -> bool:
    """Whether loss and gradient are equal to rounding; where they are not numbers, they are."""
    loss, gradient = other
    off = abs(one[0] - loss) > SAME_LOSS * abs(loss)
    turned = (one[1] - gradient).norm() > SAME_GRADIENT * gradient.norm()
    return not off and not bool(turned)


@contextmanager
def body_gives(base: Any, output: Any) -> Iterator[None]:
    """Let a model's body give `output` whatever it is asked."""
    with ExitStack() as stack:
        for body in bodies(base):
            given = body.__dict__.get("forward")

            def put_back(body: Any = body, given: Any = given) -> None:
                if given is None:
                    del body.forward
                else:
                    body.forward = given

            stack.callback(put_back)
            body.forward = lambda *_words, **_inputs: output
        yield


def own_head(base: Any, plain: Any, output: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """hidden states [tokens, width] -> logits [tokens, vocabulary], as the model's forward does.

    output: one that the body gave, for its kind.
    """

    def logits_of(part: torch.Tensor) -> torch.Tensor:
        ids = torch.zeros(1, len(part), dtype=torch.int64, device=part.device)
        with body_gives(base, type(output)(last_hidden_state=part[None])):
            return plain(input_ids=ids).logits[0]

    return logits_of


def chunked_cross_entropy(
    hidden: torch.Tensor,
    labels: torch.Tensor,
    head: Callable[[torch.Tensor], torch.Tensor],
    items: Any = None,
    count: int | None = None,
) -> torch.Tensor:
    """Mean loss of predicting each next token. hidden: [rows, tokens, width], labels: [rows,
    tokens], -100 where nothing is learned; head: hidden states to logits; items: what the sum is
    divided by (default: the learned tokens); count: of these, where labels have no values."""
    targets = nn.functional.pad(labels, (0, 1), value=IGNORED)[:, 1:].flatten()
    rows = hidden.flatten(0, 1)
    learned = None if count is None else torch.arange(count, device=rows.device)
    if rows.device.type == "cpu" and not (sharded() or isinstance(rows, FakeTensor)):
        learned = (targets != IGNORED).nonzero().flatten()
    if learned is not None:
        rows, targets = rows.index_select(0, learned), targets[learned]

    def slice_loss(part: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(head(part).float(), wanted, reduction="sum")

    slices = zip(rows.split(CHUNK_TOKENS), targets.split(CHUNK_TOKENS), strict=True)
    losses = [checkpoint(slice_loss, *part, use_reentrant=False, preserve_rng_state=False)
              for part in slices]  # fmt: skip
    total = torch.stack(losses).sum()
    return total / (items if items is not None else (targets != IGNORED).sum())
