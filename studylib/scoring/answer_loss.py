"""The log-likelihood of learned tokens: held-out loss by example, and the likeliest of labels.

Both go through the engine that scores questions (studylib.scoring.prefix_lm): no padding, prompts
computed once, float32 log-probabilities at the learned positions only.

Not covered: which examples (studylib.scoring.held_out), answers that are generated
(studylib.scoring.greedy).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np

from studylib.inputs.data import IGNORED, Tokenised

SEQUENCES_AT_ONCE = 16_384  # scored in one tree: bounds what Python holds of them
Span = tuple[int, int]
Choices = Sequence[tuple[list[int], list[int]]]


@dataclass(frozen=True)
class Loss:
    """Of one example: the sum of -log p in nats, and the tokens and UTF-8 bytes that it is of."""

    nats: float
    tokens: int
    bytes: int


def learned_spans(labels: Sequence[int]) -> list[Span]:
    """Runs [start, stop) of learned tokens that something comes before: the first has no context.

    A text's first token is given, not predicted, and counts neither as a token nor in bytes.
    """
    learned = np.array([label != IGNORED for label in labels])
    learned[:1] = False
    edges = np.flatnonzero(np.diff(np.concatenate([[False], learned, [False]]).astype(int)))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]


def measure_losses(lm: Any, tokenizer: Any, examples: Sequence[Tokenised]) -> list[Loss]:
    """The loss of each example by itself, whatever stands beside it in a pass."""
    spans = [learned_spans(example["labels"]) for example in examples]
    requests = (
        (None, example["input_ids"][:start], example["input_ids"][start:stop])
        for example, found in zip(examples, spans, strict=True)
        for start, stop in found
    )
    scores = iter(score_all(lm, requests))
    found = []
    for example, pieces in zip(examples, spans, strict=True):
        ids = example["input_ids"]
        nats = -sum(next(scores) for _ in pieces)
        tokens = sum(stop - start for start, stop in pieces)
        size = sum(count_text_bytes(tokenizer, ids, start, stop) for start, stop in pieces)
        found.append(Loss(nats, tokens, size))
    return found


def score_labels(lm: Any, examples: Iterator[Choices]) -> Iterator[list[float]]:
    """Log-likelihoods of each example's labels. examples: (prompt, label) tokens of every label,
    what ends the turn with the label."""
    while batch := list(take_sequences(examples)):
        requests = ((None, *choice) for choices in batch for choice in choices)
        scores = iter(score_all(lm, requests))
        yield from ([next(scores) for _ in choices] for choices in batch)


def take_sequences(examples: Iterator[Choices]) -> Iterator[Choices]:
    """Examples until their labels together are as many as one tree holds."""
    count = 0
    for choices in examples:
        yield choices
        count += len(choices)
        if count >= SEQUENCES_AT_ONCE:
            return


def score_all(lm: Any, requests: Iterator[Any]) -> Iterator[float]:
    """Sums of log-probabilities of requests (None, context, continuation), in their order."""
    while batch := list(islice(requests, SEQUENCES_AT_ONCE)):
        yield from (score for score, _ in lm._loglikelihood_tokens(batch, disable_tqdm=True))


def count_text_bytes(tokenizer: Any, ids: Sequence[int], start: int, stop: int) -> int:
    """UTF-8 bytes of tokens start to stop, those of special tokens left out.

    Exact for byte-level vocabularies, of which every character of a token is one byte; of others,
    by how much the text grows.
    """
    if is_byte_level(tokenizer):
        known = set(tokenizer.all_special_ids)
        kept = [i for i in ids[start:stop] if i not in known]
        return sum(len(token) for token in tokenizer.convert_ids_to_tokens(kept))
    before, after = (
        tokenizer.decode(ids[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for end in (start, stop)
    )
    return len(after.encode()) - len(before.encode())


@lru_cache(maxsize=8)
def is_byte_level(tokenizer: Any) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return "ByteLevel" in repr(getattr(backend, "decoder", None))
