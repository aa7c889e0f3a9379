"""What the README says that profiles take on rented cards is what the plan says now."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from studylib.forecasting.prospects import estimate_study
from studylib.schema.profile import read_profile
from studylib.schema.serving import serve_specs

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
ROWS = re.findall(
    r"^\| ([\w-]+) \| [^|]+ \| (\d) × ([\w-]+) \| ([^|]+) \| ([^|]+) \|$", README, re.M
)


def spell(span):
    """Two figures below 10, so that minutes and cents are not rounded to nothing."""
    low, mid, high = (
        f"{v:.{2 if v < 1 else 1 if v < 10 else 0}f}" for v in (span.low, span.mid, span.high)
    )
    return f"{mid} ({low}–{high})"


def test_every_profile_for_cards_has_its_row():
    assert {row[0] for row in ROWS} == {
        "systems", "article-memory", "full-13b", "gpu", "article",
    }  # fmt: skip


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_hours_and_dollars_are_the_plans(row):
    name, cards, gpu, hours, dollars = row
    profile = read_profile(name)
    serving = serve_specs(profile) if profile.serve else ()
    found = estimate_study(profile.runs(), gpu, int(cards), serving)
    assert (hours, dollars) == (spell(found.hours), spell(found.usd))
