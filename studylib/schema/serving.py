"""What a serving run asks and what it found: settings and measures, without torch.

A serving run is one model with one method. It needs no trained weights: how long a token takes
and how many bytes a variant has does not depend on their values. A figure that is missing is
null, and `skipped` says why.

Not covered: how the figures are measured (latency, hot_swap, mixed_batch, serve), what follows
from them for N variants (footprint), the record on disk (serve_records).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from studylib.core.errors import StudyError
from studylib.schema.profile import Frozen, MethodSettings, ModelRef, Profile, parse_method
from studylib.schema.serve_settings import Decoding, Dtype, ServeSettings
from studylib.schema.settings import BASE, Hardware, nearest

CONTRAST = 3  # times a tolerance that two adapters' answers are apart, or equality proves nothing
HOT_SWAP_RULE = (
    "reproduced if a swap between requests gives the other adapter's answers sooner than loading "
    "the model would"
)

Engine = Literal["transformers", "vllm"]


class ServeSpec(Frozen):
    """One serving run: what one notebook process does."""

    profile: str
    model: str
    method: MethodSettings
    dtype: Dtype
    settings: ServeSettings
    hardware: Hardware
    engine: Engine = "transformers"

    @property
    def model_ref(self) -> ModelRef:
        return ModelRef.parse(self.model)

    @property
    def serve_id(self) -> str:
        engine = "" if self.engine == "transformers" else f"--{self.engine}"
        return f"{self.model_ref.slug}--{self.method.slug}{engine}"

    @property
    def adapter_dtype(self) -> Dtype:
        return self.settings.adapter_dtype or self.dtype

    def describe(self) -> str:
        """What is being asked, as Markdown."""
        asked = self.settings
        batches, prompts, decoding = (
            ", ".join(map(str, values))
            for values in (asked.batch_sizes, asked.prompt_tokens, asked.decoding)
        )
        lines = [
            f"**{self.serve_id}** of profile {self.profile}, in {self.dtype}, by {self.engine}",
            f"batches of {batches}, prompts of {prompts} tokens, {asked.new_tokens} new ones",
            f"decoding: {decoding}",
        ]
        if self.method.kind.adapter:
            lines.append(f"{asked.adapters} adapters at once")
        return "  \n".join(lines)


def serve_specs(
    profile: Profile, engine: Engine = "transformers", settings: ServeSettings | None = None
) -> list[ServeSpec]:
    """Every model of a profile with the base and each of its methods, each pair once.

    Not among them: methods whose row says that they are not served.
    """
    asked = settings or profile.serve or ServeSettings()
    found: dict[str, ServeSpec] = {}
    for track in profile.tracks:
        methods = [parse_method(name, profile.lora) for name in track.methods]
        for model in track.models:
            for method in [BASE, *(m for m in methods if m.kind.trains and m.kind.serve)]:
                spec = ServeSpec(
                    profile=profile.name,
                    model=model,
                    method=method,
                    dtype=asked.dtype or track.train.dtype,
                    settings=asked,
                    hardware=profile.hardware,
                    engine=engine,
                )
                found.setdefault(spec.serve_id, spec)
    return list(found.values())


def find_spec(profile: Profile, serve_id: str, settings: ServeSettings | None = None) -> ServeSpec:
    """The serving run of an id such as ladder-0.4m--lora-r16; an unknown id gets the nearest."""
    engine: Engine = "vllm" if serve_id.endswith("--vllm") else "transformers"
    specs = {spec.serve_id: spec for spec in serve_specs(profile, engine, settings)}
    if serve_id not in specs:
        rule = f"profile {profile.name} has no such serving run"
        raise StudyError(serve_id, rule, nearest(serve_id, list(specs)))
    return specs[serve_id]


class Timings(Frozen):
    """Seconds of `count` repeats. A percentile that so few cannot show is null."""

    count: int
    mean: float
    p50: float
    p95: float | None
    p99: float | None
    lowest: float
    highest: float


def summarise_seconds(seconds: Sequence[float]) -> Timings:
    """Percentiles with linear interpolation; p95 needs 20 timings and p99 needs 100."""
    values = np.asarray(seconds, dtype=np.float64)
    if not len(values):
        raise StudyError("no timings", "there is nothing to summarise", "Measure at least once.")
    p50, p95, p99 = (float(p) for p in np.percentile(values, [50, 95, 99]))
    return Timings(
        count=len(values),
        mean=float(values.mean()),
        p50=p50,
        p95=p95 if len(values) >= 20 else None,
        p99=p99 if len(values) >= 100 else None,
        lowest=float(values.min()),
        highest=float(values.max()),
    )


class PairedRatio(Frozen):
    """A variant's time over its base's, of neighbours in A B A B order, with 95 % interval."""

    value: float
    low: float
    high: float
    pairs: int


class FootprintRow(Frozen):
    """One thing to keep. measured: files written and tensors summed; counted: from its tensors.

    what: checkpoint, adapter, merged model, 4-bit base. Disk bytes are of the safetensors files,
    memory bytes of the tensors (parameters, buffers, quantization constants).
    """

    what: str
    dtype: str
    disk_bytes: int
    memory_bytes: int
    disk_how: Literal["measured", "counted"]


class VariantsRow(Frozen):
    """N variants kept ready in one way; the base, where one is needed, is in both sums."""

    variants: int
    way: str
    disk_bytes: int
    memory_bytes: int


class BreakEven(Frozen):
    """The fewest variants from which adapters on one base take less; null where they never do."""

    way: str
    disk_variants: int | None
    memory_variants: int | None


class LatencyRow(Frozen):
    """One variant at one batch size and prompt length, beside the base that it was paired with.

    first_token is the prompt's pass with its token, between_tokens each later one. Ratios are of
    medians of one round. tokens_per_second: of all rows, prompt pass included; decode_...: without.
    """

    variant: str
    against: str | None
    decoding: Decoding
    batch: int
    prompt_tokens: int
    new_tokens: int
    first_token_seconds: Timings
    between_tokens_seconds: Timings
    tokens_per_second: float
    decode_tokens_per_second: float
    first_token_ratio: PairedRatio | None
    between_tokens_ratio: PairedRatio | None
    whole_ratio: PairedRatio | None


class Equality(Frozen):
    """Two ways to the same answers: largest difference of logits, in their standard deviations.

    required: whether the study relies on it; other rows show what goes wrong elsewhere.
    """

    what: str
    dtype: str
    difference: float
    tolerance: float
    required: bool = True

    @property
    def holds(self) -> bool:
        return self.difference <= self.tolerance


class SwapMeasures(Frozen):
    """Changing variants on a running base. contrast: how far apart two adapters' answers are."""

    adapters: int
    switch_seconds: Timings
    load_adapter_seconds: Timings
    merge_seconds: Timings | None
    unmerge_seconds: Timings | None
    merge_way: str
    load_model_seconds: Timings | None
    contrast: float
    checks: tuple[Equality, ...]

    @property
    def proven(self) -> bool:
        """All required equalities hold, and the adapters differ by more than any tolerance."""
        required = [check for check in self.checks if check.required]
        apart = all(self.contrast > CONTRAST * check.tolerance for check in required)
        return bool(required) and apart and all(check.holds for check in required)

    @property
    def sooner(self) -> bool | None:
        """Whether the slowest switch took less than the fastest load of the model."""
        if self.load_model_seconds is None:
            return None
        return self.switch_seconds.highest < self.load_model_seconds.lowest


class MixedRow(Frozen):
    """One batch whose rows use different adapters, against other ways to serve the same rows.

    Ratios are mixed batch over the other way, so below 1 the mixed batch is faster.
    """

    batch: int
    adapters: int
    prompt_tokens: int
    new_tokens: int
    tokens_per_second: dict[str, float]
    ratio_to_one_adapter: PairedRatio
    ratio_to_merged_in_turn: PairedRatio | None
    ratio_to_swapped_in_turn: PairedRatio
    checks: tuple[Equality, ...]


class Skipped(Frozen):
    what: str
    reason: str


def fitting_cases(
    asked: ServeSettings, longest: int
) -> tuple[list[tuple[int, int]], list[Skipped]]:
    """(batch, prompt tokens) that fit into a model's positions, and the prompts that do not."""
    cases, skipped = [], []
    for tokens in asked.prompt_tokens:
        if tokens + asked.new_tokens <= longest:
            cases += [(batch, tokens) for batch in asked.batch_sizes]
            continue
        rule = f"it does not fit into the model's {longest} positions"
        reason = f"with {asked.new_tokens} new ones {rule}"
        skipped.append(Skipped(what=f"prompt of {tokens} tokens", reason=reason))
    return cases, skipped


class ServeMeasures(Frozen):
    """All that one serving run found."""

    engine: Engine
    footprint: tuple[FootprintRow, ...] = ()
    variants: tuple[VariantsRow, ...] = ()
    break_even: tuple[BreakEven, ...] = ()
    latency: tuple[LatencyRow, ...] = ()
    load_model_seconds: Timings | None = None
    swap: SwapMeasures | None = None
    mixed: tuple[MixedRow, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    notes: tuple[str, ...] = ()

    def overheads(self, variant: str, decoding: Decoding = "eager") -> list[LatencyRow]:
        """The rows of one variant that are paired with a base, by batch size and prompt length."""
        rows = [r for r in self.latency if r.variant == variant and r.decoding == decoding]
        return sorted((r for r in rows if r.against), key=lambda r: (r.batch, r.prompt_tokens))
