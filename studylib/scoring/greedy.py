"""Greedy answers to held-out prompts, in batches with a cache of keys and values.

Prompts of like length stand in one batch, whose size follows from tokens and, on a card, from its
free memory. A model that padding could change (a recurrent state, positions that it counts itself)
gets prompts of one length at a time.

Not covered: whether an answer is right (studylib.scoring.held_out).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from tqdm import tqdm

from studylib.scoring.prefix_lm import find_unsupported

CPU_TOKENS, CARD_TOKENS = 4096, 131_072  # of a batch, prompts and answers at their longest
MOST_ROWS = 512
CACHE_SHARE = 0.3  # of a card's free memory


@dataclass(frozen=True)
class Answer:
    """What a model said, without the token that ended it. finished: it ended by itself."""

    text: str
    finished: bool


def answer_all(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    stops: set[int],
    most: int,
    seconds: float | None = None,
) -> list[Answer]:
    """The greedy answer to each prompt (token ids), at most `most` tokens long.

    stops: tokens that end an answer. seconds: after which a batch goes no further (None: never).
    """
    answers: list[Answer | None] = [None] * len(prompts)
    batches = list(cut_batches(model, [len(prompt) for prompt in prompts], most))
    with plain_greedy(model):
        for batch in tqdm(batches, desc="Answering", disable=not sys.stderr.isatty()):
            rows = generate(model, [prompts[i] for i in batch], stops, most, seconds)
            for i, ids in zip(batch, rows, strict=True):
                end = next((k for k, token in enumerate(ids) if token in stops), None)
                text = tokenizer.decode(
                    ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False
                )
                answers[i] = Answer(text, end is not None)
    return [answer for answer in answers if answer is not None]


def cut_batches(model: Any, lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Numbers of prompts in batches, the longest first, so that memory shows at once."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    budget = token_budget(model)
    alike = find_unsupported(model) is not None
    groups = [list(g) for _, g in groupby(order, key=lambda i: lengths[i] if alike else 0)]
    for group in groups:
        while group:
            rows = max(1, min(MOST_ROWS, budget // (lengths[group[0]] + most)))
            yield group[:rows]
            group = group[rows:]


def token_budget(model: Any) -> int:
    """Tokens of a batch: fewer where a card's free memory holds no more keys and values."""
    device = model.get_input_embeddings().weight.device
    if device.type != "cuda":
        return CPU_TOKENS
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token_bytes = 2 * 4 * config.num_hidden_layers * heads * width  # in fp32, at most
    free, _ = torch.cuda.mem_get_info(device)
    return max(1, min(CARD_TOKENS, int(CACHE_SHARE * free / token_bytes)))


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    stops: set[int],
    most: int,
    seconds: float | None = None,
) -> list[list[int]]:
    """New token ids of each prompt; filled up on the left, where the mask hides it."""
    device = model.get_input_embeddings().weight.device
    longest, fill = max(map(len, prompts)), min(stops)
    ids = torch.full((len(prompts), longest), fill)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    with torch.no_grad():
        out = model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            max_new_tokens=most,
            max_time=seconds,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            eos_token_id=sorted(stops),
            pad_token_id=fill,
        )
    return out[:, longest:].tolist()


@contextmanager
def plain_greedy(model: Any) -> Iterator[None]:
    """Without what a checkpoint adds to greedy search, such as a penalty on repetition."""
    from transformers import GenerationConfig

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = {part: part.generation_config for part in {id(m): m for m in (base, model)}.values()
           if getattr(part, "generation_config", None) is not None}  # fmt: skip
    try:
        for part in own:
            part.generation_config = GenerationConfig()
        model.eval()
        yield
    finally:
        for part, config in own.items():
            part.generation_config = config
