"""Merge token sequences that begin alike into one tree, and cut it into passes of bounded size.

Why: what several prompts share is then one run of nodes, to be computed once. Nodes are numbered
depth-first, so that "is an ancestor of" is a comparison of two numbers and a pass is a range; so
is a block, a part of a pass.
Not covered: what is done with the nodes; nothing here knows of a model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

CPU_TOKENS_PER_PASS = 1024
ACCELERATOR_TOKENS_PER_PASS = 4096
# Rows of logits that are turned into float32 log-probabilities at a time: bounds that copy's size.
LOGIT_ROWS_PER_BLOCK = 256


@dataclass(frozen=True)
class TokenTree:
    """Token sequences merged where they begin alike; nodes are numbered in depth-first order.

    tokens, depths, ends: [nodes]; the descendants of node n, itself included, are n .. ends[n] - 1.
    row_ends: the last node of each distinct sequence, ascending.
    asked: for each sequence, in the order given, the nodes of its last asked tokens.
    """

    tokens: np.ndarray
    depths: np.ndarray
    ends: np.ndarray
    row_ends: np.ndarray
    asked: list[np.ndarray]


def build_token_tree(sequences: Sequence[Sequence[int]], asked: Sequence[int]) -> TokenTree:
    """Merge common beginnings; asked[i] counts the last tokens of sequence i to score."""
    rows = [np.asarray(sequence, dtype=">u4") for sequence in sequences]
    order = sorted(range(len(rows)), key=lambda i: rows[i].tobytes())
    path = np.empty(max(map(len, rows), default=0), dtype=np.int64)
    tokens: list[np.ndarray] = []
    ends = np.empty(sum(map(len, rows)), dtype=np.int64)
    depths, row_ends = np.empty_like(ends), []
    asked_nodes: list[np.ndarray] = [path] * len(rows)
    node_count, previous = 0, np.empty(0, dtype=">u4")
    for i in order:
        row = rows[i]
        shared = common_prefix_length(previous, row)
        ends[path[shared : len(previous)]] = node_count
        stop = node_count + len(row) - shared
        path[shared : len(row)] = np.arange(node_count, stop)
        depths[node_count:stop] = np.arange(shared, len(row))
        tokens.append(row[shared:].astype(np.int64))
        asked_nodes[i] = path[len(row) - asked[i] : len(row)].copy()
        row_ends.append(path[len(row) - 1])
        node_count, previous = stop, row
    ends[path[: len(previous)]] = node_count
    all_tokens = np.concatenate(tokens) if tokens else np.empty(0, dtype=np.int64)
    distinct_row_ends = np.unique(np.asarray(row_ends, dtype=np.int64))
    return TokenTree(
        all_tokens, depths[:node_count], ends[:node_count], distinct_row_ends, asked_nodes
    )


def common_prefix_length(a: np.ndarray, b: np.ndarray) -> int:
    """Count the equal tokens at the beginning of two sequences."""
    length = min(len(a), len(b))
    differs = a[:length] != b[:length]
    return int(differs.argmax()) if differs.any() else length


def iterate_passes(
    tree: TokenTree, tokens_per_pass: int, max_rows: int | None
) -> Iterator[tuple[int, int]]:
    """Yield node ranges [start, stop) of at most the token budget and, if given, max_rows rows."""
    start = 0
    while start < len(tree.tokens):
        stop = min(start + tokens_per_pass, len(tree.tokens))
        if max_rows is not None:
            last = int(np.searchsorted(tree.row_ends, start)) + max_rows - 1
            if last < len(tree.row_ends):
                stop = min(stop, int(tree.row_ends[last]) + 1)
        yield start, stop
        start = stop


def iterate_blocks(tree: TokenTree, start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    """Cut the nodes [start, stop) where branches begin, into ranges of at most `size` nodes, and
    within a branch only if it is longer: what lies between two branches sees the same nodes."""
    begins = start + 1 + np.flatnonzero(np.diff(tree.depths[start:stop]) != 1)
    while stop - start > size:
        last = int(np.searchsorted(begins, start + size, side="right")) - 1
        end = int(begins[last]) if last >= 0 and begins[last] > start else start + size
        yield start, end
        start = end
    yield start, stop
