"""Attention of packed rows on a processor: each example by itself, in batches of like lengths.

A mask over a row makes every token meet all others of the row, of which most are other examples':
at 20 tokens an example and 512 a row, 25 times the arithmetic that is needed, and PyTorch's kernel
for processors takes longer for it than all projections. Here the tokens of the examples are
gathered, attended and put back. Short examples take two plain products, long ones the kernel.

Kernels of cards that read where examples begin (FlashAttention, flex_attention) do the same there.

Not covered: models whose attention is more than causal (studylib.modelling.attention refuses them),
masks and caches, with which nothing is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import nn

from studylib.modelling.packing import gather_index, group_alike

# Up to here the plain products are faster than the kernel and what they keep for the backward,
# tokens x length x heads, is less than the projections keep.
SHORT_TOKENS = 128
UNKNOWN = ("softcap", "sliding_window", "position_bias", "s_aux")


class Layout(NamedTuple):
    """Where the tokens of flat rows lie in batches of examples, and back.

    gather: [slots] token of each slot; place: [tokens] slot of each token; real: [slots, 1], 0 for
    a slot that fills up a short example; batches: (examples, longest) of each.
    """

    gather: torch.Tensor
    place: torch.Tensor
    real: torch.Tensor
    batches: list[tuple[int, int]]


def find_lengths(positions: torch.Tensor) -> list[int]:
    """Tokens of each example of positions [rows, tokens], which are 0 where one begins."""
    flat = positions.flatten()
    begins = [*(flat == 0).nonzero().flatten().tolist(), flat.numel()]
    return [end - start for start, end in pairwise(begins)]


def lay_out(lengths: Sequence[int], device: torch.device) -> Layout:
    """The layout for examples of so many tokens, one after the other."""
    begins = [*accumulate(lengths, initial=0)]
    parts, batches = [], []
    place, slots = torch.empty(begins[-1], dtype=torch.int64), 0
    for group in group_alike(lengths):
        index = gather_index([begins[i] for i in group], [lengths[i] for i in group])
        for number, i in enumerate(group):
            first = slots + number * index.shape[1]
            place[begins[i] : begins[i + 1]] = torch.arange(first, first + lengths[i])
        parts.append(index.flatten())
        batches.append((len(group), index.shape[1]))
        slots += index.numel()
    real = torch.zeros(slots, 1)
    real[place] = 1
    return Layout(torch.cat(parts).to(device), place.to(device), real.to(device), batches)


def give_layout(position_ids: torch.Tensor, lengths: Sequence[int]) -> Layout:
    """The layout that attention then takes with these positions, of examples of so many tokens."""
    layout = lay_out(lengths, position_ids.device)
    position_ids.example_layout = layout  # type: ignore[attr-defined]
    return layout


class Gather(torch.autograd.Function):
    """[tokens, width] -> [slots, width]. What fills up is seen by no real token: it has no
    gradient, so that each token's comes from one slot and nothing is summed."""

    @staticmethod
    def forward(ctx: Any, tokens: torch.Tensor, layout: Layout) -> torch.Tensor:
        ctx.place = layout.place
        return tokens.index_select(0, layout.gather)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0].index_select(0, ctx.place), None


class Put(torch.autograd.Function):
    """[slots, width] -> [tokens, width]."""

    @staticmethod
    def forward(ctx: Any, slots: torch.Tensor, layout: Layout) -> torch.Tensor:
        ctx.layout = layout
        return slots.index_select(0, layout.place)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        found = gradients[0].index_select(0, ctx.layout.gather)
        return found.mul_(ctx.layout.real.to(found.dtype)), None


def attend_by_example(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    position_ids: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention function: query [rows, heads, tokens, size], key and value the same
    with as many heads or fewer; gives [rows, tokens, heads, size].

    ValueError for what is not causal attention over whole rows.
    """
    rows, heads, length, size = query.shape
    more = [name for name in UNKNOWN if others.get(name) is not None]
    if attention_mask is not None or key.shape[2] != length or position_ids is None or more:
        raise ValueError(f"by_example: not causal attention over packed rows ({more})")
    layout = getattr(position_ids, "example_layout", None)
    if layout is None:  # kept with the positions: all layers of a pass have the same
        layout = give_layout(position_ids, find_lengths(position_ids.expand(rows, -1)))
    kind = query.device.type
    if torch.is_autocast_enabled(kind):
        query, key, value = (x.to(torch.get_autocast_dtype(kind)) for x in (query, key, value))
    scale = size**-0.5 if scaling is None else scaling
    q, k, v = (Gather.apply(x.transpose(1, 2).flatten(0, 1).flatten(1), layout)
               for x in (query, key, value))  # fmt: skip
    found, start = [], 0
    for count, longest in layout.batches:
        part = slice(start, start + count * longest)
        one, two, three = (
            x[part].unflatten(1, (n, -1)).unflatten(0, (count, longest)).transpose(1, 2)
            for x, n in ((q, heads), (k, key.shape[1]), (v, value.shape[1]))
        )
        attend = attend_short if longest <= SHORT_TOKENS else attend_long
        attended = attend(one, two, three, scale, dropout)
        found.append(attended.transpose(1, 2).flatten(2).flatten(0, 1))
        start = part.stop
    output = Put.apply(torch.cat(found) if len(found) > 1 else found[0], layout)
    return output.view(rows, length, heads, -1), None


def attend_long(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, dropout: float
) -> torch.Tensor:
    return nn.functional.scaled_dot_product_attention(
        q, k, v, dropout_p=dropout, is_causal=True, scale=scale, enable_gqa=True
    )


def attend_short(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, dropout: float
) -> torch.Tensor:
    """The same as two products. Heads that share a key are rows of one product."""
    count, heads, length, _ = q.shape
    groups = k.shape[1]
    queries = q.reshape(count * groups, heads // groups * length, -1)
    keys, values = (x.reshape(count * groups, length, -1) for x in (k, v))
    scores = torch.baddbmm(
        queries.new_zeros(()), queries, keys.transpose(1, 2), beta=0, alpha=scale
    )
    later = torch.ones(length, length, dtype=torch.bool, device=q.device).triu(1)
    later = later.repeat(heads // groups, 1)
    weights = scores.masked_fill(later, -torch.inf).softmax(-1).to(values.dtype)
    if dropout:
        weights = nn.functional.dropout(weights, dropout)
    return torch.bmm(weights, values).view(count, heads, length, -1)
