"""Hours of a run besides its training steps, before anything was measured: assumptions with ranges.

A run starts a process, reads weights, trains, asks its questions, and a serving run times its
cases. Training is forecast by a traced step (studylib.forecasting.prospects); the rest is reckoned
here from what a plan knows: bytes of the weights, characters of the questions, settings of the
timing. Each constant below is an assumption: the best case, the expected one and the worst.

Not covered: waiting for a machine, setting it up, saving checkpoints, the sweep of learning rates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from studylib.core.errors import StudyError
from studylib.inputs.almanac import build_almanac, questions
from studylib.inputs.examples import parse_almanac
from studylib.inputs.parts import read_part, remembered
from studylib.inputs.questions import Question, group_by_subject, read_question_folder
from studylib.planning.answers import read_labels
from studylib.planning.catalog import Gpu, load_prices, price_range
from studylib.planning.roofline import ASSUMED, Efficiency
from studylib.schema.ranges import NOTHING, Range, exactly
from studylib.schema.serving import ServeSpec
from studylib.schema.settings import DataSettings, EvaluateSettings, Frozen, ModelRef
from studylib.schema.spec import RunSpec

# A notebook's process and imports: 3 to 5 s from the end of one run to the next one's begin, of
# eight on an NVIDIA H200 (results/reference/h200).
PROCESS_SECONDS = Range(low=3, mid=4, high=10)
# What a run does besides its stages (tokenising, packing, trying the model, writing the record):
# 1 to 4 s with the drawing of 13B weights there, 2 to 10 s of each of ten runs at a time
# (results/reference/real, 50,000 examples at most).
OWN_SECONDS = Range(low=0.5, mid=2, high=10)
# From a hub to the disk, once for each model; and from the disk to the card, once for each load.
DOWNLOAD_BYTES_PER_SECOND = Range(low=30e6, mid=150e6, high=600e6)
READ_BYTES_PER_SECOND = Range(low=0.3e9, mid=1e9, high=3e9)
# Random weights are drawn where they lie: 26 GB in 1.1 to 2.6 s on that H200.
DRAW_BYTES_PER_SECOND = Range(low=5e9, mid=15e9, high=25e9)
# Share of the datasheet's bf16 arithmetic that packed scoring passes of 4,096 tokens reach; the
# lowest one is that of 4-bit weights, which are dequantized at every pass.
SCORING_SHARE = Range(low=0.1, mid=0.3, high=0.6)
CHARACTERS_PER_TOKEN = Range(low=3.5, mid=4.0, high=4.5)
# Loads of a serving run: its base and variants, then fresh ones to compare a swap with.
SERVING_LOADS = Range(low=4, mid=7, high=12)
TIMING_SHARE = Range(low=1.0, mid=2.0, high=4.0)  # of the budget: warm-ups, and 3 pairs at least
COMPILE_SECONDS = Range(low=10, mid=30, high=90)  # a model, decoding and case

# MMLU by `length` below, counted on 2026-11-24 over re-exports of hendrycks/test: the test split
# and the 5 dev questions of each subject. The hub's cais/mmlu has the same questions.
MMLU_QUESTIONS, MMLU_SUBJECTS, MMLU_SHOTS = 14_042, 57, 5
MMLU_CHARACTERS, MMLU_SHOT_CHARACTERS = 6_545_414, 116_841
# What tasks:A,B ask is known to lm-eval alone, and may have to be fetched.
TASK_QUESTIONS, TASK_CHARACTERS = Range(low=1_000, mid=5_000, high=20_000), 400
GREEDY_TOKENS, GREEDY_COST = 64, 8  # a generated answer, and its tokens by those of a prompt


class RunHours(Frozen):
    """Hours of one run by part; gpus: cards that it takes."""

    gpus: int
    start: Range = NOTHING
    train: Range = NOTHING
    evaluate: Range = NOTHING
    measured: Range | None = None

    @property
    def total(self) -> Range:
        """What like runs took where they were measured, else the sum of the parts."""
        return self.measured or self.start + self.train + self.evaluate


class StudyEstimate(Frozen):
    """What is left of a study on a machine of `cards` cards that runs one run after the other.

    hours: the machine is held. usd: all its cards for that time, (low) fastest at the cheapest
    offer, (mid) expected at the median one, (high) slowest at the dearest; None where no offer
    names the card. misfits: run id -> why it is recorded and not started. unknown: runs that could
    not be forecast; they are in no sum. training: the share of the roofline's speed that was taken.
    """

    gpu: str | None
    cards: int
    hours: Range
    usd: Range | None
    runs: dict[str, RunHours]
    misfits: dict[str, str]
    unknown: tuple[str, ...]
    training: Efficiency = ASSUMED

    @property
    def assumptions(self) -> str:
        """How the hours are known, in words."""
        share = self.training
        return (
            f"training: a traced step over {share.low:.2g} to {share.high:.2g} of the roofline's "
            f"speed ({share.source}); downloads, loading, scoring and serving: assumed "
            "(studylib.planning.estimate)"
        )

    @property
    def known(self) -> bool:
        return self.usd is not None and not self.unknown


def hours(seconds: Range) -> Range:
    return seconds * (1 / 3600)


def price(machine_hours: Range, gpu: str | None, cards: int) -> Range | None:
    """Dollars of a machine's hours; None where no offer names the card."""
    offers = price_range(gpu, load_prices()) if gpu else None
    return machine_hours * cards * offers.usd if offers else None


def download_hours(specs: Iterable[RunSpec], params: dict[str, int]) -> Range:
    """Each hub model once, in 16 bits."""
    models = {spec.model for spec in specs if spec.model_ref.kind == "hub"}
    amount = exactly(sum(2 * params.get(model, 0) for model in models))
    return hours(amount / DOWNLOAD_BYTES_PER_SECOND)


def start_hours(spec: RunSpec, params: int) -> Range:
    """All before and around the stages: the process, what it does there, its weights."""
    return hours(PROCESS_SECONDS) + load_hours(spec, params)


def load_hours(spec: RunSpec, params: int) -> Range:
    """The same without the process. Weights are read once; of a quantized run again to merge."""
    drawn = spec.model_ref.kind == "shape"
    loads = 2 if spec.method.kind.quantized and not drawn else 1
    size = loads * params * (4 if spec.train.dtype == "fp32" else 2)
    return hours(OWN_SECONDS + weights_seconds(spec.model_ref, size))


def weights_seconds(model: ModelRef, count_bytes: int) -> Range:
    """Of so many bytes of a model's weights, until they lie on the card."""
    speed = DRAW_BYTES_PER_SECOND if model.kind == "shape" else READ_BYTES_PER_SECOND
    return exactly(count_bytes) / speed


def scoring_hours(spec: RunSpec, params: int, gpu: Gpu) -> Range:
    """Two operations a weight and token; a quantized run asks twice, of other weights."""
    if spec.model_ref.kind == "shape":
        return NOTHING  # random weights are not asked
    tokens = asked_tokens(spec.data, spec.evaluate)
    asked = 2 if spec.method.kind.quantized else 1
    rate = gpu.flops_per_second("fp32" if spec.train.dtype == "fp32" else "bf16")
    return hours(tokens * (2.0 * params * asked / rate) / SCORING_SHARE)


def serving_hours(spec: ServeSpec, params: int) -> Range:
    asked, adapter = spec.settings, spec.method.kind.adapter
    size = params * (4 if spec.dtype == "fp32" else 2)
    loads = SERVING_LOADS * weights_seconds(spec.model_ref, size)
    # The base and whole copies of it share a graph; an adapter and a 4-bit base have their own.
    graphs = (1 + adapter + spec.method.kind.quantized) * ("compiled" in asked.decoding)
    cases = len(asked.batch_sizes) * len(asked.prompt_tokens) * graphs
    timing = TIMING_SHARE * asked.budget_seconds
    return hours(PROCESS_SECONDS + OWN_SECONDS + loads + timing + COMPILE_SECONDS * cases)


def asked_tokens(data: DataSettings, asked: EvaluateSettings) -> Range:
    """Tokens that a model reads to be scored: questions, and examples of measures."""
    return remembered(
        ("tokens", data, asked), lambda: question_tokens(asked) + measure_tokens(data, asked)
    )


def question_tokens(asked: EvaluateSettings) -> Range:
    """Tokens that a model reads for all questions, every shared prefix once."""
    sources = [source for source in (asked.questions, asked.retention) if source]
    characters = sum((count_characters(asked, source) for source in sources), NOTHING)
    return characters / CHARACTERS_PER_TOKEN


def count_characters(asked: EvaluateSettings, source: str) -> Range:
    """Characters of one source's prompts; the hub's MMLU is known, not fetched."""
    if source.startswith("tasks:"):
        most = asked.limit or math.inf
        numbers = {name: min(n, most) for name, n in TASK_QUESTIONS.model_dump().items()}
        return Range(**numbers) * TASK_CHARACTERS
    if source == "hub":
        asked_questions = min((asked.limit or math.inf) * MMLU_SUBJECTS, MMLU_QUESTIONS)
        text = MMLU_CHARACTERS * asked_questions / MMLU_QUESTIONS
        found = text + MMLU_SHOT_CHARACTERS * asked.shots / MMLU_SHOTS
    else:
        found = read_characters(source, asked.shots, asked.facts, asked.limit)
    return exactly(found)


@lru_cache(maxsize=16)
def read_characters(source: str, shots: int, facts: int | None, limit: int | None) -> int:
    """The same, counted in a folder's or the almanac's questions; none where it is not here."""
    if source.startswith("almanac:"):
        half, language = parse_almanac(source)
        test: list[Question] = questions(build_almanac(), half, facts, language, None)
        dev: list[Question] = []
    else:
        try:
            test, dev = read_question_folder(Path(source).expanduser(), shots)
        except StudyError:
            return 0
    groups = group_by_subject(test).values()
    return sum(length(doc) for docs in [*(g[:limit] for g in groups), dev] for doc in docs)


def length(doc: Question) -> int:
    """Characters of MMLU's own prompt of a question: four lines of letters, then "Answer:"."""
    return len(doc["question"]) + sum(len(choice) + 4 for choice in doc["choices"]) + 8


def measure_tokens(data: DataSettings, asked: EvaluateSettings) -> Range:
    """Tokens that all measures read on their examples."""
    if not asked.measures:
        return NOTHING
    part: Any = "validation" if asked.part == "validation" else "test"
    characters, found = 0.0, limited(data, part, asked)
    for measure in asked.measures:
        characters += sum(map(sum_characters, found))
        if measure == "labels":
            labels = read_labels(data)
            characters += len(found) * sum(map(len, labels))
        elif measure != "loss":
            characters += 4.0 * len(found) * GREEDY_TOKENS * GREEDY_COST
    if asked.retention_data is not None:
        kept = limited(DataSettings(source=asked.retention_data), "train", asked)
        characters += sum(map(sum_characters, kept))
    return exactly(characters) / CHARACTERS_PER_TOKEN


def limited(data: DataSettings, part: Any, asked: EvaluateSettings) -> list[Any]:
    """The first examples of a part, as many as are measured: which ones hardly matters here."""
    return list(read_part(data, part))[: asked.held_out_limit]


def sum_characters(example: Any) -> int:
    """All text of an example."""
    if "messages" in example:
        return sum(len(str(message["content"])) for message in example["messages"])
    return sum(len(value) for value in example.values() if isinstance(value, str))
