"""A model under examination: its loads, made-up examples, and what they should give.

The references are computed on a model that transformers opened by itself, with eager attention,
each example alone, so that nothing of the study's own path vouches for itself.

Not covered: what is compared (studylib.checking.training_columns, adapter_columns).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from studylib.inputs.data import IGNORED, TrainingData
from studylib.inputs.sources import model_folder
from studylib.modelling.models import Loaded, load_model
from studylib.schema.methods import UNTRAINED
from studylib.schema.model_report import Cell
from studylib.schema.settings import (
    DataSettings,
    EvaluateSettings,
    Hardware,
    LoraSettings,
    MethodSettings,
    ModelRef,
    TrainSettings,
    parse_method,
)
from studylib.schema.spec import RunSpec

RANK = 4
LORA = LoraSettings(rank=RANK, alpha=2 * RANK)
# Examples of unequal length in unequal rows; together longer than the small models' windows. The
# longest row comes in the second step, whose memory is counted, and holds several examples.
ROW_LENGTHS = ((70,), (21, 19, 9), (40, 33), (25, 50))
FIRST_TOKEN, LAST_TOKEN = 10, 1000
SMALL = 20_000_000  # parameters up to which every matrix is read in full
EXACT = 1e-4  # what float32 may differ by, relative
Example = dict[str, list[int]]


class Subject:
    """A checkpoint under examination. What a column changes it loads anew (`load`), so that it
    reaches no other; columns that only read share one model (`opened`)."""

    def __init__(self, ref: ModelRef):
        self.ref = ref
        self._opened: dict[str, Loaded] = {}
        self.folder: Path = model_folder(ref)[0]

    def load(self, method: str = UNTRAINED) -> Loaded:
        """The study's own load, in fp32, without dropout, ready to read rows."""
        loaded = load_model(self.ref, parse_tried_method(method), "fp32")
        silence(loaded.model)
        loaded.model.config.use_cache = False  # type: ignore[union-attr]
        return loaded

    def opened(self, method: str = UNTRAINED) -> Loaded:
        """A load in evaluation mode that stays as it is: to be read, not changed."""
        if method not in self._opened:
            self._opened[method] = self.load(method)
        self._opened[method].model.eval()
        return self._opened[method]

    @functools.cached_property
    def reference(self) -> tuple[Any, dict[str, Any]]:
        """(the model as transformers opens it alone, what it says of the loading)."""
        return open_reference(self.folder)

    @functools.cached_property
    def rows(self) -> list[list[Example]]:
        """Made-up rows of examples; the first third of each is a prompt, the rest an answer."""
        size = min(LAST_TOKEN, self.reference[0].get_input_embeddings().weight.shape[0])
        draw = torch.Generator().manual_seed(0)
        return [[make_example(length, size, draw) for length in row] for row in ROW_LENGTHS]

    @property
    def examples(self) -> list[Example]:
        return [example for row in self.rows for example in row]

    @property
    def data(self) -> TrainingData:
        count = len(self.examples)
        return TrainingData(self.rows, count, "made up", "made up", drawn=count)

    @property
    def small(self) -> bool:
        return sum(p.numel() for p in self.reference[0].parameters()) <= SMALL


def parse_tried_method(method: str) -> MethodSettings:
    return parse_method(method, LORA)


def make_example(length: int, vocabulary: int, draw: torch.Generator) -> Example:
    ids = torch.randint(FIRST_TOKEN, vocabulary, (length,), generator=draw).tolist()
    prompt = length // 3
    return {"input_ids": ids, "labels": [IGNORED] * prompt + ids[prompt:]}


def open_reference(folder: Path) -> tuple[Any, dict[str, Any]]:
    """transformers' own load with eager attention, or with the one that the model prefers."""
    from transformers import AutoModelForCausalLM

    words: dict[str, Any] = {
        "dtype": torch.float32,
        "output_loading_info": True,
        "use_safetensors": True,
        "trust_remote_code": False,
    }
    load: Any = AutoModelForCausalLM.from_pretrained
    try:
        model, info = load(folder, attn_implementation="eager", **words)
    except ValueError:  # no eager attention: few kinds have one of their own alone
        model, info = load(folder, **words)
    silence(model)
    model.config.use_cache = False
    return model.eval(), info


def silence(model: nn.Module) -> None:
    """Take every chance event out of a model's training mode: dropout, layers left out, jitter."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and ("drop" in name or "jitter" in name):
                setattr(module, name, 0.0)
    silence_settings(model.config)


def silence_settings(config: Any) -> None:
    """The same for what a model reads from its configuration while it runs."""
    for part in (config, config.get_text_config(decoder=True)):
        for name, value in vars(part).items():
            if isinstance(value, float) and ("drop" in name or "jitter" in name):
                setattr(part, name, 0.0)


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def alone(model: Any, ids: list[int]) -> torch.Tensor:
    """Logits [tokens, vocabulary] in float32 of one example by itself, no positions given."""
    return model(input_ids=torch.tensor([ids], device=device_of(model))).logits[0].float()


def hand_loss(model: Any, examples: list[Example]) -> torch.Tensor:
    """Mean over the answer tokens of all examples of -log softmax, in float64; differentiable."""
    total: Any = torch.zeros((), dtype=torch.float64, device=device_of(model))
    count = 0
    for example in examples:
        logits = alone(model, example["input_ids"])[:-1].double()
        wanted = torch.tensor(example["labels"][1:], device=logits.device)
        asked = wanted != IGNORED
        logits, wanted = logits[asked], wanted[asked]
        picked = logits.gather(-1, wanted[:, None])[:, 0]
        total = total + (torch.logsumexp(logits, -1) - picked).sum()
        count += int(asked.sum())
    return total / count


def hand_gradients(model: Any, examples: list[Example]) -> dict[str, torch.Tensor]:
    """The gradient of hand_loss by name of parameter, for those that have one."""
    model.zero_grad()
    hand_loss(model, examples).backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """How far one tensor is from another, relative to the other's norm."""
    found, wanted = found.double(), wanted.double().to(found.device)
    scale = wanted.norm().item()
    return or_endless((found - wanted).norm().item() / scale if scale else found.norm().item())


def apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference of two models' logits in standard deviations of the second's."""
    wanted = wanted.to(found.device)
    return or_endless(((found - wanted).abs().max() / wanted.std()).item())


def relative_off(found: float, wanted: float) -> float:
    """How far one figure is from another, relative to it."""
    return or_endless(abs(found / wanted - 1))


def or_endless(value: float) -> float:
    """Infinite where it is not a number: `max` would leave that out, and a limit let it pass."""
    return value if value == value else math.inf


@contextmanager
def training_mode(model: nn.Module) -> Iterator[None]:
    model.train()
    try:
        yield
    finally:
        model.eval()


def judged_cell(
    holds: bool,
    text: str,
    figures: Mapping[str, float | None],
    fault: str,
    wrong: str | None = None,
    note: str | None = None,
) -> Cell:
    """The cell of a comparison: `text`, or where it does not hold `wrong` with the fault below."""
    if holds:
        return Cell(text=text, note=note, figures=dict(figures))
    return Cell(text=wrong or text, note=fault, figures=dict(figures), fault=fault)


def checked_spec(
    model: str, method: MethodSettings, train: TrainSettings, rate: float, source: str, **data: Any
) -> RunSpec:
    """A short training on the almanac, of which no figure goes into a study."""
    return RunSpec(
        profile=source, track="main", model=model, seed=0, learning_rate=rate, method=method,
        learning_rate_source=source, train=train, hardware=Hardware(),
        data=DataSettings(source="almanac:new", template="plain", **data),
        evaluate=EvaluateSettings(questions="almanac:new"),
    )  # fmt: skip
