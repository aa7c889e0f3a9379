"""Figures are rounded the same everywhere, and a missing one is a word."""

import pytest

from studylib.core.metrics import METRICS, MISSING, byte_size, plain_number, points


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0, 3, "0"),
        (1234.56, 3, "1,235"),
        (0.000123456, 2, "0.00012"),
        (9.996, 3, "10.0"),
        (-2.5, 2, "−2.5"),
        (123456789, 2, "123,456,789"),
    ],
)
def test_numbers_have_significant_figures_and_no_exponent(value, digits, text) -> None:
    assert plain_number(value, digits) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(26_031_728_640, "26.0 GB"), (379_000, "379 kB"), (999_900, "1.00 MB"), (12, "12.0 bytes")],
)
def test_bytes_take_the_decimal_unit_that_fits(count: int, text: str) -> None:
    assert byte_size(count) == text


def test_points_have_a_sign_and_no_minus_zero() -> None:
    assert [points(x) for x in (0.0123, -0.0123, -0.0001)] == ["+1.2", "−1.2", "0.0"]


def test_missing_is_a_word() -> None:
    assert all(metric.number(None) == MISSING for metric in METRICS.values())


def test_every_metric_says_its_meaning_and_direction() -> None:
    assert all(m.meaning and m.key == key for key, m in METRICS.items())
    assert METRICS["accuracy"].header == "Accuracy (%) ↑"
    assert METRICS["train_peak_bytes"].header == "Train peak ↓"
