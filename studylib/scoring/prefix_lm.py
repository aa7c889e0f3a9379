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
from typing import Any

import numpy as np
import torch
from lm_eval.models.huggingface import HFLM
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm
from transformers import DynamicCache

from studylib.core.errors import StudyError
from studylib.scoring.token_tree import (
    ACCELERATOR_TOKENS_PER_PASS,
    CPU_TOKENS_PER_PASS,
    LOGIT_ROWS_PER_BLOCK,
    TokenTree,
    build_token_tree,
    iterate_passes,
)
from studylib.scoring.tree_attention import attend_by_blocks, lay_out_blocks

logger = logging.getLogger(__name__)

Request = tuple[tuple[str, str] | None, list[int], list[int]]
Answer = tuple[float, bool]
# A block's attention is one call of a kernel: short, little is masked; long, few calls are made.
CPU_TOKENS_PER_BLOCK = 96
ACCELERATOR_TOKENS_PER_BLOCK = 512
# All but cuDNN's, PyTorch's first choice in 16 bits on Hopper: it makes a plan for every new
# length, and here each pass has its own.
KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
# Errors that a foreign model's code raises when it meets a mask or a cache it does not know.
PROBE_ERRORS = (
    AttributeError,
    IndexError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)


def find_partial_attention(config: Any) -> str | None:
    """Say what, by a model's configuration, its tokens depend on besides all tokens before them."""
    # getattr: these fields exist on some architectures' configurations only.
    layer_types = {*(getattr(config, "layer_types", None) or ()), "full_attention"}
    layer_types |= set(getattr(config, "attention_layers", None) or ())
    if partial := layer_types - {"full_attention", "global"}:
        return f"it has layers of type {', '.join(sorted(partial))}"
    window = getattr(config, "sliding_window", None)
    if window is not None and getattr(config, "use_sliding_window", True):
        return f"it attends through a sliding window of {window} tokens"
    rope = getattr(config, "rope_parameters", None) or {}
    rotations = {rope.get("rope_type")}
    rotations |= {part.get("rope_type") for part in rope.values() if isinstance(part, dict)}
    if changing := rotations & {"dynamic", "longrope"}:
        return f"its position encoding ({changing.pop()}) changes with the batch's longest prompt"
    return None


def find_unsupported(model: Any) -> str | None:
    """Say why a causal model cannot share prefixes by a masked, packed row; None if it may."""
    if any(config.is_prompt_learning for config in getattr(model, "peft_config", {}).values()):
        return "its adapter adds virtual tokens to the prompt"
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = base.config.get_text_config()
    if (reason := find_partial_attention(config)) is not None:
        return reason
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
    prompts_cut: requests so far whose prompt was cut from the left to fit the model's context.
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
        self.prompts_cut = 0
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
        if override_bs is None:
            longest = self.max_length + 1
            self.prompts_cut += sum(len(a) + len(b) > longest for _, a, b in requests)
        if override_bs is None and not self._is_checked:
            self._check_model(requests)
        if override_bs is not None or self.fallback_reason is not None:
            return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
        answers = self._score(
            requests, self.tokens_per_pass, show_progress=not disable_tqdm and self.rank == 0
        )
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
        shared = pool[:8]
        probe: list[Request] = [(None, shared, pool[8:12]), (None, shared, pool[12:16])]
        probe.append((None, pool[16:], shared))
        length = self.max_length + 1
        probe = [(None, a[: max(1, length - len(b))], b[: length - 1]) for _, a, b in probe]
        stock = np.array([answer[0] for answer in super()._loglikelihood_tokens(probe, True, 3)])
        try:
            ours = np.array(
                [answer[0] for answer in self._score(probe, budget=5, show_progress=False)]
            )
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

    def _score(self, requests: list[Request], budget: int, show_progress: bool) -> list[Answer]:
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
        log_probs, is_top = self._score_tree(tree, nodes, targets, budget, show_progress)
        starts = np.concatenate([[0], lengths.cumsum()[:-1]])
        sums, greedy = np.add.reduceat(log_probs, starts), np.logical_and.reduceat(is_top, starts)
        return [(float(a), bool(b)) for a, b in zip(sums, greedy, strict=True)]

    def _score_tree(
        self,
        tree: TokenTree,
        nodes: np.ndarray,
        targets: np.ndarray,
        budget: int,
        show_progress: bool,
    ) -> tuple[np.ndarray, np.ndarray]:
        """For pairs of node and target token: log-probability, and whether it is the top one."""
        order = np.argsort(nodes, kind="stable")
        ordered_nodes = nodes[order]
        log_probs = np.empty(len(nodes))
        is_top = np.empty(len(nodes), dtype=bool)
        path = np.empty(0, dtype=np.int64)
        cache = DynamicCache()
        progress = tqdm(
            total=len(tree.tokens), desc="Scoring distinct tokens", disable=not show_progress
        )
        for start, stop in iterate_passes(tree, budget, self.max_rows):
            bounds = np.searchsorted(ordered_nodes, [start, stop])
            pairs = order[bounds[0] : bounds[1]]
            positions, rows = np.unique(nodes[pairs] - start, return_inverse=True)
            keys = np.concatenate([path, np.arange(start, stop)])
            logits = self._forward(tree, keys, stop - start, positions, cache)
            if len(pairs):
                log_probs[pairs], is_top[pairs] = pick_log_probs(logits, rows, targets[pairs])
            kept = np.flatnonzero(tree.ends[keys] > stop)
            path = keys[kept]
            cache = keep_cache_positions(cache, kept)
            progress.update(stop - start)
        progress.close()
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
        if self.config.get_text_config()._attn_implementation == "sdpa":
            on_cpu = self.device.type == "cpu"
            size = CPU_TOKENS_PER_BLOCK if on_cpu else ACCELERATOR_TOKENS_PER_BLOCK
            layout = lay_out_blocks(tree, keys, query_count, size, self.device)
            mask.blocks = layout  # type: ignore[attr-defined]
        asked = torch.as_tensor(positions, device=self.device)
        base = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        picks = "logits_to_keep" in inspect.signature(base.forward).parameters
        with (
            torch.no_grad(),
            sdpa_kernel(KERNELS),
            attend_by_blocks(),
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
