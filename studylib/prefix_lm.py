"""Score multiple-choice tasks exactly, computing every shared context once.

lm-eval's Hugging Face model reads each subject's few-shot prefix again for every question and
takes a log-softmax over the whole vocabulary at every position. Here all requests of a call become
one token tree: a token that follows the same tokens in several requests is one node. The tree is
read in depth-first order, a token budget at a time, as one packed row whose attention mask lets a
token see its ancestors only; its position id is its depth. Between two passes only the keys and
values of the nodes that later ones descend from are kept. So each distinct context token goes
through the model once, without padding, and logits are made at the asked positions only.

Not covered: rolling log-likelihoods, generation and encoder-decoder models, which are lm-eval's own
code, and models with sliding windows, recurrent state or no cache, which fall back to it with a
notice. A short probe compares both ways on the first call and falls back as well if they disagree.
"""

import inspect
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lm_eval.models.huggingface import HFLM
from transformers import DynamicCache

from studylib.errors import StudyError

logger = logging.getLogger(__name__)

Request = tuple[tuple[str, str] | None, list[int], list[int]]
Answer = tuple[float, bool]
CPU_TOKENS_PER_PASS = 256
ACCELERATOR_TOKENS_PER_PASS = 4096
# Rows of logits that are turned into float32 log-probabilities at a time: bounds that copy's size.
LOGIT_ROWS_PER_BLOCK = 256
# Errors that a foreign model's code raises when it meets a mask or a cache it does not know.
PROBE_ERRORS = (
    AttributeError,
    IndexError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)


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


def find_unsupported(model: Any) -> str | None:
    """Say why a causal model cannot share prefixes by a masked, packed row; None if it may."""
    if any(config.is_prompt_learning for config in getattr(model, "peft_config", {}).values()):
        return "its adapter adds virtual tokens to the prompt"
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = base.config.get_text_config()
    # getattr: these fields exist on some architectures' configurations only.
    layer_types = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if layer_types:
        return f"it has layers of type {', '.join(sorted(layer_types))}"
    window = getattr(config, "sliding_window", None)
    if window is not None and getattr(config, "use_sliding_window", True):
        return f"it attends through a sliding window of {window} tokens"
    if getattr(base, "_is_stateful", False):
        return "it carries a recurrent state"
    needed = {"attention_mask", "position_ids", "past_key_values", "use_cache"}
    missing = needed - set(inspect.signature(base.forward).parameters)
    if missing:
        return f"its forward pass takes no {', '.join(sorted(missing))}"
    if config._attn_implementation not in ("sdpa", "eager"):
        return f"its attention ({config._attn_implementation}) takes no mask of our own; use sdpa"
    return None


class PrefixLM(HFLM):
    """lm-eval's HFLM with shared prefixes computed once; takes all of HFLM's arguments.

    tokens_per_pass: token budget of one forward pass, 256 on a CPU and 4096 elsewhere by default.
    max_rows: optional cap on the rows (distinct prompts) of a pass. HFLM's batch_size rules only
    what is left to HFLM: rolling log-likelihoods, generation, and models that fall back.
    fallback_reason: after the first call, why lm-eval's own path is used, or None.
    """

    def __init__(
        self,
        *args: Any,
        tokens_per_pass: int | None = None,
        max_rows: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        default = CPU_TOKENS_PER_PASS if self.device.type == "cpu" else ACCELERATOR_TOKENS_PER_PASS
        self.tokens_per_pass = int(default if tokens_per_pass is None else tokens_per_pass)
        self.max_rows = None if max_rows is None else int(max_rows)
        for name, value in (("tokens_per_pass", self.tokens_per_pass), ("max_rows", self.max_rows)):
            if value is not None and value < 1:
                raise StudyError(
                    f"{name}={value}", "must be 1 or more", "Leave it out for the default."
                )
        self.fallback_reason: str | None = None
        self._is_checked = False

    def _loglikelihood_tokens(
        self,
        requests: list[Request],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[Answer]:
        """Score tokenised requests, in their order; override_bs marks lm-eval's rolling windows."""
        if not requests:
            return []
        if override_bs is None and not self._is_checked:
            self._check_model(requests)
        if override_bs is not None or self.fallback_reason is not None:
            return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
        answers = self._score(requests)
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def _check_model(self, requests: list[Request]) -> None:
        """Choose between the shared and lm-eval's path, and say so if it is the latter."""
        self._is_checked = True
        reason = (
            "it is no decoder-only model"
            if self.backend != "causal"
            else find_unsupported(self.model) or self._probe(requests)
        )
        if reason is not None:
            self.fallback_reason = reason
            logger.warning(
                "%s: scored by lm-eval's own slower path: %s", self._model_name(), reason
            )

    def _model_name(self) -> str:
        return str(getattr(self.config, "name_or_path", "") or type(self.model).__name__)

    def _probe(self, requests: list[Request]) -> str | None:
        """Score a small tree both ways, cache used; say how they disagree, None if they agree."""
        pool = np.resize([token for _, a, b in requests[:8] for token in a + b], 24).tolist()
        shared, rest = pool[:8], (pool[8:12], pool[12:16], pool[16:24])
        probe: list[Request] = [(None, shared + rest[0][:2], rest[0][2:])]
        probe += [(None, shared, rest[1]), (None, rest[2], shared)]
        length = self.max_length + 1
        probe = [(None, a[: max(1, length - len(b))], b[: length - 1]) for _, a, b in probe]
        stock = np.array([answer[0] for answer in super()._loglikelihood_tokens(probe, True, 3)])
        try:
            ours = np.array([answer[0] for answer in self._score(probe, tokens_per_pass=5)])
        except torch.OutOfMemoryError:
            raise
        except PROBE_ERRORS as error:
            return f"its code refuses a packed row ({type(error).__name__}: {error})"
        difference = np.abs(ours - stock)
        if (difference <= self._probe_tolerance() * (10 + np.abs(stock))).all():
            return None
        return f"a packed row changes its log-likelihoods by up to {difference.max():.2g}"

    def _probe_tolerance(self) -> float:
        """Relative tolerance of the probe: 1e-5 if all is computed in float32, else 2 %."""
        wide = (torch.float32, torch.float64)
        is_wide = all(parameter.dtype in wide for parameter in self.model.parameters())
        return 1e-5 if is_wide and self.mixed_precision_dtype is None else 0.02

    def _score(self, requests: list[Request], tokens_per_pass: int | None = None) -> list[Answer]:
        """Log-likelihood and greediness of each request's continuation, by one token tree."""
        lengths = np.array([len(continuation) for _, _, continuation in requests])
        if (lengths < 1).any() or (lengths > self.max_length).any():
            raise StudyError(
                f"continuations of {lengths.min()} to {lengths.max()} tokens",
                f"each must have 1 to {self.max_length} tokens, the model's context",
                "Drop such items or give a larger max_length.",
            )
        # As lm-eval does: the last max_length + 1 tokens, less the last, which is only predicted.
        keep = self.max_length + 1
        inputs = [(context + continuation)[-keep:][:-1] for _, context, continuation in requests]
        cut = sum(len(a) + len(b) > keep for _, a, b in requests)
        if cut:
            logger.warning("%d of %d prompts cut from the left to fit", cut, len(requests))
        tree = build_token_tree(inputs, lengths.tolist())
        nodes = np.concatenate(tree.asked)
        targets = np.concatenate([np.asarray(continuation) for _, _, continuation in requests])
        log_probs, is_top = self._score_tree(tree, nodes, targets, tokens_per_pass)
        starts = np.concatenate([[0], lengths.cumsum()[:-1]])
        sums, greedy = np.add.reduceat(log_probs, starts), np.logical_and.reduceat(is_top, starts)
        return [(float(a), bool(b)) for a, b in zip(sums, greedy, strict=True)]

    def _score_tree(
        self, tree: TokenTree, nodes: np.ndarray, targets: np.ndarray, tokens_per_pass: int | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """For pairs of node and target token: log-probability, and whether it is the top one."""
        order = np.argsort(nodes, kind="stable")
        log_probs = np.empty(len(nodes))
        is_top = np.empty(len(nodes), dtype=bool)
        path = np.empty(0, dtype=np.int64)
        cache = DynamicCache()
        budget = tokens_per_pass or self.tokens_per_pass
        for start, stop in iterate_passes(tree, budget, self.max_rows):
            bounds = np.searchsorted(nodes[order], [start, stop])
            pairs = order[bounds[0] : bounds[1]]
            positions, rows = np.unique(nodes[pairs] - start, return_inverse=True)
            keys = np.concatenate([path, np.arange(start, stop)])
            logits = self._forward(tree, keys, stop - start, positions, cache)
            if len(pairs):
                log_probs[pairs], is_top[pairs] = pick_log_probs(logits, rows, targets[pairs])
            kept = np.flatnonzero(tree.ends[keys] > stop)
            path = keys[kept]
            cache = keep_cache_positions(cache, kept)
        return log_probs, is_top

    def _forward(
        self,
        tree: TokenTree,
        keys: np.ndarray,
        query_count: int,
        positions: np.ndarray,
        cache: DynamicCache,
    ) -> torch.Tensor:
        """Logits [positions, vocabulary] of the last query_count key nodes; fills the cache."""
        key = torch.as_tensor(keys, device=self.device)
        end = torch.as_tensor(tree.ends[keys], device=self.device)
        query = key[len(keys) - query_count :, None]
        # A node sees those that come no later and whose descendants it is among: its ancestors.
        mask = ((key <= query) & (query < end))[None, None]
        if self.config.get_text_config()._attn_implementation == "eager":
            mask = torch.where(mask, 0.0, torch.finfo(self.model.dtype).min).to(self.model.dtype)
        queries = keys[len(keys) - query_count :]
        asked = torch.as_tensor(positions, device=self.device)
        base = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        picks = "logits_to_keep" in inspect.signature(base.forward).parameters
        with (
            torch.inference_mode(),
            torch.autocast(
                device_type=self.device.type,
                dtype=self.mixed_precision_dtype,
                enabled=self.mixed_precision_dtype is not None,
            ),
        ):
            logits = self.model(
                input_ids=torch.as_tensor(tree.tokens[queries], device=self.device)[None],
                position_ids=torch.as_tensor(tree.depths[queries], device=self.device)[None],
                attention_mask=mask,
                past_key_values=cache,
                use_cache=True,
                **({"logits_to_keep": asked} if picks else {}),
            ).logits[0]
        return logits if picks else logits[asked.to(logits.device)]


def keep_cache_positions(cache: DynamicCache, kept: np.ndarray) -> DynamicCache:
    """Keep the given positions of every layer's keys and values; none: an empty cache."""
    if not len(kept):
        return DynamicCache()
    layers: Any = cache.layers
    for layer in layers:
        index = torch.as_tensor(kept, device=layer.keys.device)
        layer.keys = layer.keys.index_select(-2, index)
        layer.values = layer.values.index_select(-2, index)
    return cache


def pick_log_probs(
    logits: torch.Tensor, rows: np.ndarray, targets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Float32 log-probabilities of targets, and whether they are the top tokens.

    logits: [rows, vocabulary]; rows (ascending) and targets: [pairs].
    """
    log_probs, is_top = [], []
    for first in range(0, len(logits), LOGIT_ROWS_PER_BLOCK):
        bounds = np.searchsorted(rows, [first, first + LOGIT_ROWS_PER_BLOCK])
        row = torch.as_tensor(rows[bounds[0] : bounds[1]] - first, device=logits.device)
        target = torch.as_tensor(targets[bounds[0] : bounds[1]], device=logits.device)
        block = logits[first : first + LOGIT_ROWS_PER_BLOCK].float().log_softmax(-1)
        log_probs.append(block[row, target])
        is_top.append(block.argmax(-1)[row] == target)
    return torch.cat(log_probs).cpu().numpy(), torch.cat(is_top).cpu().numpy()
