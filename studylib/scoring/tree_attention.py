"""Attention of a pass over a token tree, a block of tokens at a time, over the keys that it sees.

Under one mask every token of a pass meets all keys of the pass, of which most are other questions':
arithmetic that grows with the square of the pass. A block is a run of tokens between two branches;
it is attended by PyTorch's kernel with the keys that at least one of its tokens sees. So the work
grows with the tokens, and a pass may be as long as the projections like it.

Not covered: models that do not call transformers' attention functions by name, or add something to
the scores: they take the one mask of the whole pass, which says the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from studylib.scoring.token_tree import TokenTree, iterate_blocks

# What changes the scores besides the scale; a position's bias needs the whole pass's keys.
UNKNOWN = ("softcap", "position_bias", "s_aux", "sliding_window")


class QueryBlock(NamedTuple):
    """Queries start .. stop - 1 of a pass, the positions of the keys that they see, and which.

    keys: [seen]; mask: [stop - start, seen], True where a query sees a key.
    """

    start: int
    stop: int
    keys: torch.Tensor
    mask: torch.Tensor


class BlockMask(NamedTuple):
    """The blocks of a pass, and their masks as the kernel adds them, by (heads of a key, dtype)."""

    blocks: list[QueryBlock]
    added: dict[tuple[int, torch.dtype], list[torch.Tensor]]


def lay_out_blocks(
    tree: TokenTree, keys: np.ndarray, query_count: int, size: int, device: torch.device
) -> BlockMask:
    """The blocks of the last query_count of the key nodes, of at most `size` queries each."""
    first = int(keys[len(keys) - query_count])
    path = len(keys) - query_count
    blocks = []
    for start, stop in iterate_blocks(tree, first, first + query_count, size):
        before = np.flatnonzero(tree.ends[keys[:path]] > start)
        within = path + np.flatnonzero(tree.ends[first:stop] > start)
        seen = np.concatenate([before, within])
        nodes, queries = keys[seen], np.arange(start, stop)[:, None]
        mask = (nodes <= queries) & (queries < tree.ends[nodes])
        found = (torch.as_tensor(array, device=device) for array in (seen, mask))
        blocks.append(QueryBlock(start - first, stop - first, *found))
    return BlockMask(blocks, {})


@contextmanager
def attend_by_blocks() -> Iterator[None]:
    """While open, transformers' sdpa attention takes a mask with blocks block by block."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    whole = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def attend(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        **others: Any,
    ) -> tuple[torch.Tensor, Any]:
        # A model may have cut or changed the mask; it is then another tensor, without blocks.
        layout = getattr(attention_mask, "blocks", None)
        if layout is None or any(others.get(name) is not None for name in UNKNOWN):
            return whole(module, query, key, value, attention_mask, scaling=scaling, **others)
        return attend_blocks(query, key, value, layout, scaling), None

    ALL_ATTENTION_FUNCTIONS["sdpa"] = attend
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS["sdpa"]


def attend_blocks(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: BlockMask,
    scaling: float | None,
) -> torch.Tensor:
    """query [1, heads, queries, size], key and value [1, groups, keys, size], groups dividing
    heads; gives [1, queries, heads, size]. Heads that share a key are rows of one product."""
    groups = key.shape[1]
    share = query.shape[1] // groups
    queries = query[0].unflatten(0, (groups, share))
    masks = layout.added.get((share, query.dtype))
    if masks is None:  # made once for all layers of a pass
        masks = [additive(block.mask, share, query.dtype) for block in layout.blocks]
        layout.added[share, query.dtype] = masks
    found = []
    for block, mask in zip(layout.blocks, masks, strict=True):
        rows = queries[:, :, block.start : block.stop]
        attended = nn.functional.scaled_dot_product_attention(
            rows.flatten(1, 2)[None],
            key.index_select(2, block.keys),
            value.index_select(2, block.keys),
            attn_mask=mask,
            scale=scaling,
        )
        found.append(attended[0].unflatten(1, (share, -1)).flatten(0, 1).transpose(0, 1))
    return torch.cat(found)[None]


def additive(mask: torch.Tensor, share: int, dtype: torch.dtype) -> torch.Tensor:
    """0 where a query sees a key, else -inf, [1, 1, share x queries, keys]."""
    added = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return added.masked_fill_(~mask, -torch.inf).repeat(share, 1)[None, None]
