"""What is known without a device: model shapes, cards, and what an hour of a card costs.

Three plain files lie beside this module: shapes.json (published shapes and their parameter
totals), gpus.csv (memory, arithmetic and bandwidth of each card) and prices.csv (offers, each
with provider, date or the word undated, and source). A reader's own prices file has the same
columns and replaces the offers of every card that it names.

Not covered: building a model from a shape (studylib.modelling.skeleton), spot prices, and storage,
network or tax that a provider adds.
"""

from __future__ import annotations

import csv
import io
import json
import re
import statistics
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from studylib.core.errors import StudyError
from studylib.core.files import read_text
from studylib.core.places import PACKAGE
from studylib.schema.ranges import Range
from studylib.schema.settings import Frozen, nearest

GIB = 1024**3


class Shape(Frozen):
    """The numbers that fix a model's architecture, and the parameter total to check them by.

    hub: the repository whose model this is, for forecasts where that cannot be asked.
    """

    name: str
    hub: str | None = None
    family: Literal["llama", "qwen2", "qwen3", "olmo2", "gpt_neox"]
    hidden_size: int
    num_hidden_layers: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    tie_word_embeddings: bool
    attention_qkv_bias: bool
    qk_norm: Literal["full", "head"] | None
    max_position_embeddings: int
    rope_theta: float
    source: str
    total_params: int


class Gpu(Frozen):
    """One card. Memory is what PyTorch reports as its total, less than what the label says."""

    name: str
    label: str
    usable_gib: float = Field(gt=0)
    bf16_tflops: float = Field(gt=0)
    fp32_tflops: float = Field(gt=0)
    bandwidth_gb_s: float = Field(gt=0)
    spec_source: str
    memory_source: str

    @property
    def usable_bytes(self) -> int:
        return int(self.usable_gib * GIB)

    def flops_per_second(self, dtype: Literal["bf16", "fp32"] = "bf16") -> float:
        """Dense arithmetic of the datasheet: bf16 without sparsity, fp32 without TF32."""
        return (self.bf16_tflops if dtype == "bf16" else self.fp32_tflops) * 1e12

    @property
    def bytes_per_second(self) -> float:
        return self.bandwidth_gb_s * 1e9


class Offer(Frozen):
    """An hour of one card at one provider. `gpus` is how many cards the instance has."""

    gpu: str
    gpus: int = Field(ge=1)
    provider: str
    instance: str
    usd_per_gpu_hour: float = Field(gt=0)
    as_of: str = "undated"
    source: str


class PriceRange(Frozen):
    """The cheapest, the median and the dearest offer of one card, in dollars per card and hour."""

    cheapest: float
    median: float
    dearest: float
    offers: tuple[Offer, ...]

    @property
    def usd(self) -> Range:
        return Range(low=self.cheapest, mid=self.median, high=self.dearest)


@lru_cache(maxsize=1)
def load_shapes() -> dict[str, Shape]:
    """Every shape of shapes.json by its lower-case name."""
    content = json.loads((PACKAGE / "shapes.json").read_text(encoding="utf-8"))
    return {name.lower(): Shape(name=name, **numbers) for name, numbers in content.items()}


def find_shape(name: str) -> Shape:
    """The shape of a name, upper and lower case alike; an unknown name gets the nearest ones."""
    shapes = load_shapes()
    if name.lower() not in shapes:
        raise StudyError(f"shape:{name}", "there is no such shape", nearest(name, list(shapes)))
    return shapes[name.lower()]


def shape_of_hub(name: str) -> Shape | None:
    """The shape of a hub's model, ORGANISATION/NAME, where the catalog has it."""
    shapes = load_shapes().values()
    return next((s for s in shapes if s.hub and s.hub.lower() == name.lower()), None)


@lru_cache(maxsize=1)
def load_gpus() -> dict[str, Gpu]:
    """Every card of gpus.csv by name, in the order of the memory that is usable."""
    with (PACKAGE / "gpus.csv").open(encoding="utf-8", newline="") as file:
        gpus = [Gpu.model_validate(row) for row in csv.DictReader(file)]
    return {gpu.name: gpu for gpu in sorted(gpus, key=lambda g: (g.usable_gib, g.name))}


def find_gpu(name: str) -> Gpu:
    """The card of a name such as a100-80gb; an unknown name gets the nearest ones."""
    gpus = load_gpus()
    if name.lower() not in gpus:
        raise StudyError(name, "this card is not in the catalog", nearest(name, list(gpus)))
    return gpus[name.lower()]


def match_gpu(device: str) -> Gpu | None:
    """The catalog's card for a device name as torch gives it, or None.

    The model word must be the same ("A10" is not "A100"); memory and PCIe choose among its kinds.
    """
    words = set(re.findall(r"[A-Z0-9]+", device.upper()))
    if words & {"NVL", "MIG"}:  # another memory, or a slice: no offer is for it
        return None
    found = []
    for gpu in load_gpus().values():
        model, memory, *rest = [*gpu.name.upper().split("-"), ""]
        model = model.removeprefix("RTX")
        if model not in words:
            continue
        sizes = {word for word in words if re.fullmatch(r"\d+GB", word)}
        if sizes and memory not in sizes and len(kinds_of(model)) > 1:
            continue
        found.append((("PCIE" in rest) == ("PCIE" in words), gpu))
    exact = [gpu for fits, gpu in found if fits]
    candidates = exact or [gpu for _, gpu in found]
    return candidates[0] if candidates else None


def kinds_of(model: str) -> list[str]:
    """The names of all cards of a model word such as A100."""
    return [n for n in load_gpus() if n.upper().removeprefix("RTX").split("-")[0] == model]


def read_offers(path: Path) -> list[Offer]:
    """The offers of a file in the form of prices.csv; a fault names its line."""
    text = read_text(path, "the prices", "Check the path.")
    columns = f"The columns are {', '.join(Offer.model_fields)}."
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    if not rows:
        raise StudyError(path, "there are no offers in it", columns)
    if "gpu" not in rows[0]:
        raise StudyError(f"{path}, line 1", "the first line names no column gpu", columns)
    offers = []
    for line, row in enumerate(rows, 2):
        try:
            offers.append(Offer.model_validate({k: v for k, v in row.items() if v}))
        except ValidationError as error:
            fault = error.errors()[0]
            field = ".".join(str(part) for part in fault["loc"])
            given = row.get(field)
            raise StudyError(
                f"{path}, line {line}, {field}" + (f" = {given}" if given else ""),
                fault["msg"], columns,
            ) from None  # fmt: skip
    return offers


def load_prices(own: Path | None = None) -> list[Offer]:
    """All offers, cheapest first; those of a reader's own file replace the cards that it names."""
    offers = read_offers(PACKAGE / "prices.csv")
    if own is not None:
        mine = read_offers(own)
        for offer in mine:
            find_gpu(offer.gpu)
        named = {offer.gpu.lower() for offer in mine}
        offers = [offer for offer in offers if offer.gpu not in named] + [
            offer.model_copy(update={"gpu": offer.gpu.lower()}) for offer in mine
        ]
    return sorted(offers, key=lambda offer: (offer.gpu, offer.usd_per_gpu_hour, offer.provider))


def price_range(gpu: str, offers: Iterable[Offer]) -> PriceRange | None:
    """Cheapest, median and dearest hour of one card of this kind; None where nobody offers it."""
    fitting = tuple(offer for offer in offers if offer.gpu == gpu)
    if not fitting:
        return None
    hours = [offer.usd_per_gpu_hour for offer in fitting]
    return PriceRange(
        cheapest=min(hours), median=statistics.median(hours), dearest=max(hours), offers=fitting
    )
