"""Time to the first token and between tokens, and what a variant adds, in pairs taken in turn.

A greedy loop of our own with a key-value cache, a fixed number of tokens and no end of sequence:
generate() adds work that differs between models and hides in every token. Two absolute times are
never compared: a variant and its base are timed in turn (A B A B ...), and the ratio of neighbours
has an interval (studylib.core.stats). The first round of each is a warm-up and not counted.

The two take turns after each prompt pass, and after every few steps; the value of such a round is
its median step, so that one interruption by the machine does not decide it.

Two equal models may differ by several per cent all through a process, by where their Python
objects happen to lie in memory (Mytkowicz et al., 2009, ASPLOS XIV); the more so where one is a
copy and the other is not. So the rounds go round several copies of the modules on the same weights,
and what the place in memory does becomes part of the interval (as in Curtsinger & Berger, 2013,
ASPLOS XVIII). A compiled step has no Python in it and needs no copies.

Not covered: servers, queues and batches that change as requests come and go.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from statistics import median
from typing import Any

import torch
from torch import nn

from studylib.core.stats import compare_timings
from studylib.core.uncollected import uncollected
from studylib.modelling.variants import share_weights
from studylib.schema.serve_settings import FEWEST_PAIRS, Decoding
from studylib.schema.serving import LatencyRow, PairedRatio, summarise_seconds
from studylib.serving.pair_timings import list_pairs

FIRST_SHARE = 0.5  # of a pair's time for prompt passes; the rest is for steps
STEPS_A_ROUND = 5  # tokens after which the other one has its turn
FEWEST_STEP_ROUNDS = 6
LAYOUTS = 5  # copies of a variant's modules


@dataclass
class Served:
    """A model as it is served. `step` is its forward, compiled where that was asked for.

    extra: keyword arguments of each forward, such as peft's adapter_names.
    """

    name: str
    model: nn.Module
    decoding: Decoding = "eager"
    extra: dict[str, Any] = field(default_factory=dict)
    step: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        self.model.eval()
        if self.decoding == "compiled" and self.step is None:
            self.step = torch.compile(self.model, dynamic=False)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @cached_property
    def copies(self) -> list[Served]:
        """The same on copies of the modules, made once; one that is compiled stays alone."""
        if self.decoding == "compiled":
            return [self]
        return [
            Served(self.name, share_weights(self.model), self.decoding, self.extra)
            for _ in range(LAYOUTS)
        ]


def make_prompt(vocabulary: int, batch: int, tokens: int, seed: int = 0) -> torch.Tensor:
    """Seeded token ids [batch, tokens]; what they say has no part in how long they take."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, vocabulary, (batch, tokens), generator=generator)


def new_cache(served: Served, length: int) -> Any:
    from transformers import DynamicCache, StaticCache

    config: Any = served.model.config
    if served.decoding == "eager":
        return DynamicCache(config=config)
    return StaticCache(config=config, max_cache_len=length)


@torch.inference_mode()
def pass_prompt(served: Served, prompt: torch.Tensor, length: int) -> tuple[Any, torch.Tensor]:
    """The cache after the prompt, and the first token of each row [batch, 1]."""
    cache = new_cache(served, length)
    output = served.model(
        input_ids=prompt, past_key_values=cache, use_cache=True, logits_to_keep=1, **served.extra
    )
    return cache, output.logits[:, -1].argmax(-1, keepdim=True)


@torch.inference_mode()
def take_steps(
    served: Served, cache: Any, token: torch.Tensor, steps: int
) -> tuple[list[torch.Tensor], list[float]]:
    """`steps` more tokens of each row, and the seconds until each was there to be sent."""
    forward = served.model if served.step is None else served.step
    tokens, seconds = [], []
    for _ in range(steps):
        start = time.perf_counter()
        output = forward(
            input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1,
            **served.extra,
        )  # fmt: skip
        token = output.logits[:, -1].argmax(-1, keepdim=True)
        wait_for(served.device)
        seconds.append(time.perf_counter() - start)
        tokens.append(token)
    return tokens, seconds


def decode(served: Served, prompt: torch.Tensor, new_tokens: int) -> torch.Tensor:
    """A whole reply of `new_tokens` tokens to each row: [batch, tokens]."""
    prompt = prompt.to(served.device)
    cache, token = pass_prompt(served, prompt, prompt.shape[1] + new_tokens)
    tokens, _ = take_steps(served, cache, token, new_tokens - 1)
    return torch.cat([token, *tokens], 1)


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def undisturbed(collect: bool = True) -> Iterator[None]:
    """No garbage collection inside: it would fall on one of the two at random.

    collect: whether to collect before (a third of a second where there are many objects).
    """
    if collect:
        gc.collect()
    with uncollected():
        yield


@dataclass
class Series:
    """Seconds of one variant: each prompt pass, and the few steps of each round."""

    first: list[float] = field(default_factory=list)
    rounds: list[list[float]] = field(default_factory=list)

    @property
    def steps(self) -> list[float]:
        return [seconds for one in self.rounds for seconds in one]

    @property
    def medians(self) -> list[float]:
        return [median(one) for one in self.rounds]


class Conversation:
    """One variant with one prompt: can be asked for its first token, or for steps, again."""

    def __init__(self, served: Served, prompt: torch.Tensor, new_tokens: int):
        self.whole = self.served = served
        self.new_tokens = new_tokens
        self.prompt = prompt.to(served.device)
        self.series = Series()
        self._cache: Any = None
        self._token = self.prompt
        self._taken = self._rounds = 0

    def _move(self) -> None:
        """The next round is on the next copy."""
        copies = self.whole.copies
        self.served = copies[self._rounds % len(copies)]
        self._rounds += 1

    def first(self) -> None:
        self._move()
        start = time.perf_counter()
        self._pass_prompt()
        self.series.first.append(time.perf_counter() - start)

    def _pass_prompt(self) -> None:
        length = self.prompt.shape[1] + self.new_tokens
        self._cache = None  # or two of them would lie on the card, beside the other variant's
        self._cache, self._token = pass_prompt(self.served, self.prompt, length)
        self._taken = 0
        wait_for(self.served.device)

    def steps(self) -> None:
        """The next few steps of the reply, which starts again where it would be too long."""
        count = min(STEPS_A_ROUND, self.new_tokens - 1)
        if self._taken + count > self.new_tokens - 1:
            self._rewind()
        self._move()
        tokens, seconds = take_steps(self.served, self._cache, self._token, count)
        self._token = tokens[-1]
        self._taken += count
        self.series.rounds.append(seconds)

    def _rewind(self) -> None:
        """Back to the end of the prompt; a cache of fixed size needs the prompt again."""
        if self.served.decoding == "eager":
            self._cache.crop(-self._taken)
            self._taken = 0
        else:
            self._pass_prompt()

    def warm_up(self) -> None:
        """Once through all lengths of the reply: cuDNN plans its attention anew for each, which
        takes as long as a step and would fall on the variant that is there first."""
        self.first()
        for _ in range(max(1, (self.new_tokens - 1) // STEPS_A_ROUND)):
            self.steps()
        self._rewind()
        self.series = Series()


def time_pair(
    base: Served,
    other: Served,
    prompt: torch.Tensor,
    new_tokens: int,
    rounds: int,
    budget_seconds: float,
) -> tuple[Series, Series]:
    """Both in turn: 3 prompt passes and 6 rounds of steps at least, then as time allows."""
    pair = [Conversation(served, prompt, new_tokens) for served in (base, other)]
    for one in pair:
        one.warm_up()
    with undisturbed():
        take_turns([one.first for one in pair], FEWEST_PAIRS, rounds, FIRST_SHARE * budget_seconds)
        most = rounds * -(-(new_tokens - 1) // STEPS_A_ROUND)  # as many replies as prompt passes
        left = (1 - FIRST_SHARE) * budget_seconds
        take_turns([one.steps for one in pair], FEWEST_STEP_ROUNDS + 1, most + 1, left)
    for one in pair:
        del one.series.rounds[0]  # the prompt passes before it leave the caches in another state
    return pair[0].series, pair[1].series


def take_turns(
    turns: Sequence[Callable[[], Any]], fewest: int, most: int, budget_seconds: float
) -> int:
    """Call all in turn, again and again, until the time or `most` rounds are used up."""
    end = time.perf_counter() + budget_seconds
    done = 0
    while done < fewest or (done < most and time.perf_counter() < end):
        for turn in turns:
            turn()
        done += 1
    return done


def paired_ratio(base_seconds: list[float], other_seconds: list[float]) -> PairedRatio:
    ratio = compare_timings(base_seconds, other_seconds)
    return PairedRatio(value=ratio.value, low=ratio.low, high=ratio.high, pairs=len(base_seconds))


def latency_row(
    variant: str,
    series: Series,
    decoding: Decoding,
    prompt: torch.Tensor,
    new_tokens: int,
    base: tuple[str, Series] | None = None,
) -> LatencyRow:
    """One variant's figures; `base` is the name and the series that it was paired with.

    The whole reply's ratio takes the prompt pass and the steps of one round's number together.
    """
    batch, prompt_tokens = prompt.shape
    first, steps = summarise_seconds(series.first), summarise_seconds(series.steps)
    ratios: list[PairedRatio | None] = [None] * 3
    if base is not None:
        ours, theirs = (
            (one.first, one.medians, whole_seconds(one, new_tokens)) for one in (base[1], series)
        )
        ratios = [paired_ratio(*pair) for pair in zip(ours, theirs, strict=True)]
    return LatencyRow(
        variant=variant,
        against=base[0] if base else None,
        decoding=decoding,
        batch=batch,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        first_token_seconds=first,
        between_tokens_seconds=steps,
        tokens_per_second=batch * new_tokens / (first.mean + (new_tokens - 1) * steps.mean),
        decode_tokens_per_second=batch / steps.mean,
        first_token_ratio=ratios[0],
        between_tokens_ratio=ratios[1],
        whole_ratio=ratios[2],
    )


def whole_seconds(series: Series, new_tokens: int) -> list[float]:
    """A reply's seconds by round: its prompt pass and `new_tokens - 1` median steps."""
    return [
        first + (new_tokens - 1) * step
        for first, step in zip(series.first, series.medians, strict=False)
    ]


def time_case(
    pairs: list[tuple[Served, Served]],
    prompt: torch.Tensor,
    new_tokens: int,
    rounds: int,
    budget_seconds: float,
) -> tuple[list[LatencyRow], list[dict[str, Any]]]:
    """Each base's row over all its pairs and each variant's with its ratio; the pairs' timings.

    pairs: (base, variant); budget_seconds is for each pair.
    """
    bases: dict[str, tuple[Served, Series]] = {}
    rows, timings = [], []
    if any(served.decoding == "compiled" for pair in pairs for served in pair):
        # All cases compile the same function anew, and after 8 times dynamo would run it as it is.
        torch._dynamo.reset()
    for base, other in pairs:
        ours, theirs = time_pair(base, other, prompt, new_tokens, rounds, budget_seconds)
        pool = bases.setdefault(base.name, (base, Series()))[1]
        pool.first.extend(ours.first)
        pool.rounds.extend(ours.rounds)
        form = (other.decoding, prompt, new_tokens)
        rows.append(latency_row(other.name, theirs, *form, (base.name, ours)))
        timings += list_pairs(rows[-1], ours, theirs)
    whole = (latency_row(b.name, s, b.decoding, prompt, new_tokens) for b, s in bases.values())
    return [*whole, *rows], timings
