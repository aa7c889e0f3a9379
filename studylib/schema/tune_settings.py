"""What a profile says of the sweep for learning rates: which rates, judged by how much, and when.

Not covered: the record of a sweep and the rate that it gives (studylib.schema.tuning).
"""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from studylib.core.errors import StudyError
from studylib.schema.settings import MethodSettings, Settings

FEWEST_RATES = 3  # of two, the better one always lies at an edge
HIGHEST_RATE = 1.0


class TuneSettings(Settings):
    """The sweep that gives each method its learning rate: as many rates for each of them.

    learning_rates: METHOD or METHOD-rRANK -> rates. factors: for a method without rates there,
    multiples of its own default rate. seed: one that no run of the study uses. limit: validation
    questions a subject, or held-out examples. extend: while the best rate lies at the grid's edge,
    up to so many beyond it. before_runs: `reproduce` sweeps first. stop_early: a rate that by half
    of its steps has clearly lost to a lower one goes no further (studylib.training.tune).
    """

    learning_rates: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    factors: tuple[float, ...] = ()
    seed: int = Field(default=1000, ge=0)
    limit: int | None = Field(default=None, ge=1)
    extend: int = Field(default=0, ge=0, le=10)
    before_runs: bool = False
    stop_early: bool = False

    @field_validator("learning_rates")
    @classmethod
    def in_reach(cls, grids: dict[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
        for name, rates in grids.items():
            if not all(0 < rate <= HIGHEST_RATE for rate in rates):
                raise ValueError(f"a learning rate of {name} is not in (0, 1]")
        return grids

    @model_validator(mode="after")
    def fair(self) -> TuneSettings:
        if not all(factor > 0 for factor in self.factors):
            raise ValueError("a factor is above 0")
        grids = self.learning_rates | ({"factors": self.factors} if self.factors else {})
        sizes = {name: len(set(rates)) for name, rates in grids.items()}
        if len(set(sizes.values())) != 1 or min(sizes.values()) < FEWEST_RATES:
            raise ValueError(f"every method gets as many different rates, 3 or more, not {sizes}")
        return self

    def grid(self, method: MethodSettings) -> tuple[float, ...]:
        """The rates of a method, the most specific key first; StudyError if it has none."""
        for key in (method.slug, method.name):
            if key in self.learning_rates:
                return self.learning_rates[key]
        if self.factors:
            rates = (factor * method.kind.default_learning_rate for factor in self.factors)
            return tuple(min(float(f"{rate:.3g}"), HIGHEST_RATE) for rate in rates)
        raise StudyError(
            method.slug,
            "tune.learning_rates has no grid for this method",
            f"Add {method.slug}: to it, with as many rates as the others have.",
        )


class TunedRate(Settings):
    """A rate that a sweep chose, and where that is written, in words."""

    learning_rate: float = Field(gt=0)
    source: str
