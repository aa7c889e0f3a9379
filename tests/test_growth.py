"""Growth is fitted to what it is, kept point by point, and fails where a rule does."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
growth = importlib.import_module("growth")
sys.path.pop(0)

SIZES = (10, 100, 1000, 3000, 10_000)


def points(exponent, start=2.0, noise=0.0):
    rng = np.random.default_rng(0)
    return [
        growth.Point(n, (start + 1e-3 * n**exponent) * (1 + noise * rng.normal()), 1.0, 1e8)
        for n in SIZES
    ]


@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.3, 2.0])
def test_an_exponent_is_found_above_a_fixed_start(exponent):
    fit = growth.fit_growth(points(exponent))
    assert fit.exponent == pytest.approx(exponent, abs=0.01)
    assert fit.start == pytest.approx(2.0, rel=0.02)
    assert fit.at(10_000) == pytest.approx(2.0 + 1e-3 * 10_000**exponent, rel=0.02)
    noisy = growth.fit_growth(points(exponent, noise=0.02))
    assert noisy.low < exponent < noisy.high


def test_too_few_points_have_no_exponent():
    assert growth.fit_growth(points(1.0)[:3]) is None


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """The command on two curves whose costs are given; what was measured, in order."""
    asked = []

    def cost(name, seconds):
        def measure(size, folder):
            asked.append((name, size))
            return growth.Spent(seconds(size), 100.0 if name == "nodes" else 1.0, 2 * 10**8)

        return measure

    [plan] = [curve for curve in growth.CURVES if curve.name == "plan"]
    made = (
        replace(plan, name="line", measure=cost("line", lambda n: 1 + n / 1e4), sizes=SIZES),
        replace(plan, name="square", measure=cost("square", lambda n: 1 + n**2 / 1e6), sizes=SIZES),
        growth.Curve("nodes", "nodes", (1, 2), cost("nodes", lambda n: 1.0), spread=True),
    )
    monkeypatch.setattr(growth, "CURVES", made)
    kept = tmp_path / "growth.txt"

    def command(*words):
        asked.clear()
        code = growth.main(["--kept", str(kept), *words])
        return code, list(asked), capsys.readouterr().out

    return command, kept


def test_what_is_kept_is_not_measured_again_and_the_picture_lies_beside_it(run, monkeypatch):
    command, kept = run
    code, asked, said = command("--rows", "line", "--sizes", "10,100,1000,10000")
    warmth = ("line", 10)
    assert code == 0 and asked == [warmth, *(("line", size) for size in (10, 100, 1000, 10_000))]
    assert "exponent 1.00" in said and "2.00 s of a processor at 10,000; at most 5 s" in said
    assert kept.with_suffix(".svg").read_text().startswith("<?xml")
    monkeypatch.setattr(growth, "draw", lambda found: b"")
    assert command("--rows", "line")[1] == [warmth, ("line", 3000)]
    assert command("--rows", "line")[1] == []
    assert len(command("--rows", "line", "--again")[1]) == 1 + len(SIZES)


def test_a_square_fails_by_its_exponent_and_seconds_and_nodes_by_efficiency(run, monkeypatch):
    monkeypatch.setattr(growth, "draw", lambda found: b"")
    command, _ = run
    code, _, said = command("--rows", "square")
    assert code == 1 and said.count("FAILS") == 2 and "exponent 2.00" in said
    code, asked, said = command("--rows", "nodes")
    assert asked == [("nodes", 1), ("nodes", 2)] and "efficiency 0.80 at 1, 0.80 at 2" in said
    assert said.count("FAILS") == 3
