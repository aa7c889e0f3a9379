"""Which engine serves: transformers everywhere, vLLM where it is installed and a card is there.

vLLM is the engine that people really use for adapters; it has kernels for batches of mixed
adapters, which peft has not. It is asked through its offline interface: one call answers a whole
batch. A token's own time is not visible there, so time between tokens is the difference between a
long and a one-token call, divided by the tokens between: one value a round.

Not covered: vLLM's server, its queueing, several cards, and adapters on a 4-bit base.
"""

from __future__ import annotations

import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from studylib.core.errors import StudyError
from studylib.schema.method_names import METHODS_TABLE
from studylib.schema.serve_settings import FEWEST_PAIRS
from studylib.schema.serving import LatencyRow, ServeSpec, Skipped, fitting_cases
from studylib.serving.latency import Series, latency_row, make_prompt, take_turns, undisturbed

MEMORY_SHARE = 0.85  # of the card for vLLM: weights, adapters and its key-value cache
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # those that vLLM makes room for


def missing_reason(engine: str) -> str | None:
    """Why an engine cannot serve here, or None."""
    if engine == "transformers":
        return None
    if engine != "vllm":
        raise StudyError(engine, "there is no such engine", "Use transformers or vllm.")
    if not torch.cuda.is_available():
        return "vLLM is measured on a CUDA card, and there is none"
    if find_spec("vllm") is None:
        return "vLLM is not installed (pip install 'studylib[vllm]')"
    return None


def unfit_reason(spec: ServeSpec) -> str | None:
    """Why this method is not measured with vLLM, or None."""
    if spec.method.kind.quantized:
        return "adapters on a 4-bit base are not measured with vLLM: serve them merged"
    if spec.method.kind.adapter and "vllm" not in spec.method.kind.serve:
        return f"vLLM does not serve {spec.method.kind.label} (its row in {METHODS_TABLE.name})"
    if spec.method.rank and spec.method.rank > RANKS[-1]:
        return f"vLLM serves ranks up to {RANKS[-1]}"
    return None


def open_vllm(folder: Path, spec: ServeSpec, longest: int) -> Any:
    """An engine on a checkpoint folder, with room for the spec's adapters where it has any."""
    import vllm

    extra: dict[str, Any] = {}
    if spec.method.kind.adapter:
        rank = next(r for r in RANKS if r >= (spec.method.rank or 1))
        count = min(spec.settings.adapters, 32)
        extra = {"enable_lora": True, "max_loras": count, "max_lora_rank": rank}
    return vllm.LLM(
        model=str(folder),
        dtype={"fp32": "float32", "bf16": "bfloat16"}[spec.dtype],
        max_model_len=longest,
        gpu_memory_utilization=MEMORY_SHARE,
        enable_prefix_caching=False,  # the same prompt comes again: its pass must be paid again
        seed=0,
        **extra,
    )


def lora_requests(folders: dict[str, Path]) -> list[Any]:
    """vLLM's handles of the adapters on disk, numbered from 1."""
    from vllm.lora.request import LoRARequest

    return [LoRARequest(n, index, str(f)) for index, (n, f) in enumerate(folders.items(), 1)]


class VllmClock:
    """Seconds of vLLM's answers to one batch: of one token, and of each later one."""

    def __init__(self, engine: Any, prompt: torch.Tensor, new_tokens: int):
        import vllm

        self.engine, self.new_tokens = engine, new_tokens
        self.prompts = [{"prompt_token_ids": row} for row in prompt.tolist()]
        self.short, self.long = (
            vllm.SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True)
            for count in (1, new_tokens)
        )

    def ask(self, params: Any, adapters: list[Any] | None) -> float:
        start = time.perf_counter()
        self.engine.generate(self.prompts, params, lora_request=adapters, use_tqdm=False)
        return time.perf_counter() - start

    def first(self, adapters: list[Any] | None) -> float:
        return self.ask(self.short, adapters)

    def step(self, adapters: list[Any] | None) -> float:
        """Seconds between tokens, over one reply; the prompt's own pass is taken off."""
        whole, first = self.ask(self.long, adapters), self.ask(self.short, adapters)
        return max(whole - first, 1e-9) / (self.new_tokens - 1)


def measure_vllm(
    engine: Any, spec: ServeSpec, requests: list[Any], vocabulary: int, longest: int
) -> tuple[list[LatencyRow], list[Skipped]]:
    """Rows of base, one adapter and mixed adapters, each paired with the base of the same engine.

    That base has room for adapters set aside, as a service that takes them has.
    """
    asked = spec.settings
    rows: list[LatencyRow] = []
    ways = {"dynamic": requests[:1], "mixed": requests} if requests else {"again": []}
    cases, skipped = fitting_cases(asked, longest)
    share = asked.budget_seconds / max(1, len(cases)) / len(ways)
    for batch, prompt_tokens in cases:
        prompt = make_prompt(vocabulary, batch, prompt_tokens)
        clock = VllmClock(engine, prompt, asked.new_tokens)
        for number, (way, adapters) in enumerate(ways.items()):
            chosen = [adapters[i % len(adapters)] for i in range(batch)] if adapters else None
            base, other = time_vllm(clock, chosen, asked.rounds, share)
            # vLLM's own default: compiled, in CUDA graphs.
            row = partial(
                latency_row, decoding="compiled", prompt=prompt, new_tokens=asked.new_tokens
            )
            rows += [] if number else [row("base", base)]
            rows.append(row(way, other, base=("base", base)))
    return rows, skipped


def time_vllm(
    clock: VllmClock, adapters: list[Any] | None, rounds: int, budget_seconds: float
) -> tuple[Series, Series]:
    """The base and a way to answer with adapters, timed in turn after a warm-up."""
    sides = [(None, Series()), (adapters, Series())]
    for chosen, _ in sides:
        clock.step(chosen)

    def ask_first(chosen: list[Any] | None, series: Series) -> None:
        series.first.append(clock.first(chosen))

    def ask_step(chosen: list[Any] | None, series: Series) -> None:
        series.rounds.append([clock.step(chosen)])

    with undisturbed():
        for ask in (ask_first, ask_step):
            turns = [partial(ask, *side) for side in sides]
            take_turns(turns, FEWEST_PAIRS, rounds, budget_seconds / 2)
    return sides[0][1], sides[1][1]
