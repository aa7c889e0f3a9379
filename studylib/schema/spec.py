"""One track of a study, and one run on it: its name, its folder, its learning rate.

Not covered: which runs a study has (studylib.schema.profile).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from studylib.schema.kept import Keep
from studylib.schema.settings import (
    BASE,
    DataSettings,
    EvaluateSettings,
    Frozen,
    Hardware,
    MethodSettings,
    ModelRef,
    TrainSettings,
)
from studylib.schema.tune_settings import TunedRate, TuneSettings

Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what numpy's generator takes


class Track(Frozen):
    """One data set with its questions, asked of some models by some methods.

    tune: the sweep for its learning rates. rates_from: a track whose sweep serves this one too.
    seeds_of: MODEL -> seeds, for models that get others than `seeds` (large ones, say, get one).
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.]*(-[a-z0-9.]+)*$")
    question: str = ""
    data: DataSettings
    evaluate: EvaluateSettings
    train: TrainSettings
    models: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[Seed, ...]
    seeds_of: dict[str, tuple[Seed, ...]] = Field(default_factory=dict)
    tune: TuneSettings | None = None
    rates_from: str | None = None

    @field_validator("models", "methods", "seeds")
    @classmethod
    def not_empty(cls, values: tuple) -> tuple:
        if not values:
            raise ValueError("the list is empty")
        if len(set(values)) != len(values):
            raise ValueError(f"an entry stands twice in {list(values)}")
        return values

    def seeds_for(self, model: str) -> tuple[int, ...]:
        return self.seeds_of.get(model, self.seeds)

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """Every seed that some model of the track gets, in order."""
        return tuple(sorted({seed for model in self.models for seed in self.seeds_for(model)}))


class RunSpec(Frozen):
    """One model, method, seed and learning rate on one track: what one notebook process does.

    keep: which trained weights stay; none in records from before there was a choice.
    """

    profile: str
    track: str
    model: str
    method: MethodSettings
    seed: int
    learning_rate: float
    learning_rate_source: str
    data: DataSettings
    train: TrainSettings
    evaluate: EvaluateSettings
    hardware: Hardware
    keep: Keep = "none"

    @property
    def model_ref(self) -> ModelRef:
        return ModelRef.parse(self.model)

    @property
    def gpus(self) -> int:
        """Cards of this run; an untrained model takes one at most."""
        if not self.method.kind.trains:
            return min(self.hardware.gpus, 1)
        return self.hardware.gpus_of.get(self.method.name, self.hardware.gpus)

    @property
    def weights_dtype(self) -> str:
        """In which precision weights are loaded and trained; quantized ones compute in it."""
        master = self.train.master_weights and self.method.kind.trains
        return "fp32" if master and not self.method.kind.adapter else self.train.dtype

    @property
    def optimizer(self) -> str:
        """What updates the weights: the method's own optimizer, else the recipe's."""
        return self.method.kind.optimizer or self.train.optimizer

    @property
    def run_id(self) -> str:
        parts = [self.model_ref.slug, self.method.slug]
        if self.track != "main":
            parts.append(self.track)
        if self.method.kind.trains:
            parts.append(f"s{self.seed}")
        return "--".join(parts)

    @property
    def base_run_id(self) -> str:
        """The untrained model's run on the same questions."""
        return self.model_copy(update={"method": BASE, "seed": 0}).run_id


def choose_learning_rate(
    track: Track, model: str, method: MethodSettings, tuned: dict[str, TunedRate]
) -> tuple[float, str]:
    """The rate for a model and method on a track, and where it comes from.

    The profile's own rates come first, the most specific key before the others ("MODEL
    METHOD-rRANK", "MODEL METHOD", "METHOD-rRANK", "METHOD"); then a sweep's choice; then the
    method's default.
    """
    if not method.kind.trains:
        return 0.0, "not trained"
    rates = track.train.learning_rates
    for key in (f"{model} {method.slug}", f"{model} {method.name}", method.slug, method.name):
        if key in rates:
            return rates[key], f"profile ({key})"
    found = tuned.get(f"{track.rates_from or track.name} {model} {method.slug}")
    if found:
        return found.learning_rate, found.source
    return method.kind.default_learning_rate, "the method's default, not tuned"
