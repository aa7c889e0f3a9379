"""From seconds to dollars: which price belongs to a run's device, and what the run cost.

Cards are priced by the catalog's offers (cheapest, median, dearest). Where no offer names the
device, the profile's `usd_per_hour` for the whole machine counts, shared by the runs that it
carried at the same time. Without either there is no price, and a word says so.

Not covered: storage, network, taxes, and the hours that people spend.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from studylib.planning.catalog import Offer, load_prices, match_gpu, price_range
from studylib.schema.records import Record
from studylib.schema.shared_card import runs_on_card


@dataclass(frozen=True)
class Price:
    """Dollars for an hour of what one run occupied, and where the figure comes from."""

    cheapest: float
    median: float
    dearest: float
    note: str

    @property
    def single(self) -> bool:
        return self.cheapest == self.dearest


@lru_cache(maxsize=1)
def shipped_offers() -> tuple[Offer, ...]:
    return tuple(load_prices())


def price_of(record: Record, offers: tuple[Offer, ...] | None = None) -> Price | None:
    """What an hour of this run cost, or None where nothing states a price."""
    hardware = record.run.hardware
    if runs_on_card(record) > 1:
        return None  # a share of a card has no price
    gpu = match_gpu(record.environment.device)
    prices = price_range(gpu.name, shipped_offers() if offers is None else offers) if gpu else None
    if gpu and prices:
        cards = max(record.run.gpus, 1)
        dated = sorted({offer.as_of for offer in prices.offers})
        return Price(
            prices.cheapest * cards,
            prices.median * cards,
            prices.dearest * cards,
            f"{cards} × {gpu.label}: {len(prices.offers)} offers, ${prices.cheapest:.2f} to "
            f"${prices.dearest:.2f} an hour, median ${prices.median:.2f} ({', '.join(dated)})",
        )
    if hardware.usd_per_hour is None:
        return None
    sharing = 1 if hardware.gpus else max(record.environment.concurrent_runs, 1)
    shared = f", shared by {sharing} runs at a time" if sharing > 1 else ""
    note = f" ({hardware.usd_note})" if hardware.usd_note else ""
    hour = hardware.usd_per_hour / sharing
    return Price(hour, hour, hour, f"${hardware.usd_per_hour:g} a machine hour{note}{shared}")


def dollars(seconds: float, hourly: float) -> float:
    return seconds / 3600 * hourly
