"""Seconds on a processor, counted: tokens by weights by operations, over a share of its speed."""

from __future__ import annotations

import json

import pytest

from studylib.forecasting import cpu_hours
from studylib.planning.estimate import measure_tokens, question_tokens
from studylib.schema.profile import read_profile

SPEED = 1e9  # operations by second
PARAMS = 1_000_000
TEXT = """
models: ["path:model"]
methods: [full, lora, qlora]
data: {source: DATA, template: plain}
train: {steps: 10, seq_len: 50, micro_batch: 2, accumulation: 3}
evaluate: {measures: [loss]}
tune: {learning_rates: {full: [1.0e-5, 1.0e-4, 1.0e-3], lora: [1.0e-5, 1.0e-4, 1.0e-3],
                        qlora: [1.0e-5, 1.0e-4, 1.0e-3]}, limit: 2}
"""


@pytest.fixture
def profile(tmp_path):
    """Six examples with two labels as the test part; as many others to train on."""
    rows = [{"instruction": f"ask {i}", "input": "", "output": "a" if i % 2 else "bcd"}
            for i in range(6)]  # fmt: skip
    for part, change in (("train", "learn"), ("test", "ask"), ("validation", "choose")):
        made = [row | {"instruction": row["instruction"].replace("ask", change)} for row in rows]
        (tmp_path / f"{part}.json").write_text(json.dumps(made))
    path = tmp_path / "mine.yaml"
    path.write_text(TEXT.replace("DATA", str(tmp_path)))
    return read_profile(str(path))


def speed(dtype):
    return SPEED


@pytest.mark.parametrize(("method", "passes"), [("full", 3), ("lora", 2), ("qlora", 3)])
def test_training_is_two_operations_a_weight_token_and_pass(profile, method, passes):
    spec = next(run for run in profile.runs() if run.method.name == method)
    found = cpu_hours.forecast_train_seconds(spec, PARAMS, speed)
    exact = 2 * PARAMS * passes * (10 * 50 * 2 * 3) / SPEED
    assert found.mid == pytest.approx(exact / cpu_hours.SHARE.mid)
    assert found.low == pytest.approx(exact / cpu_hours.SHARE.high)
    assert found.high == pytest.approx(exact / cpu_hours.SHARE.low)


def test_measures_count_their_examples_and_labels_each_label(profile):
    data, asked = profile.runs()[0].data, profile.runs()[0].evaluate
    characters = sum(len(f"ask {i}") + len("a" if i % 2 else "bcd") for i in range(6))
    assert measure_tokens(data, asked).mid == characters / 4
    more = asked.model_copy(update={"measures": ("loss", "labels"), "held_out_limit": 2})
    two = sum(len(f"ask {i}") + len("a" if i % 2 else "bcd") for i in range(2))
    assert measure_tokens(data, more).mid == (2 * two + 2 * len("abcd")) / 4


def test_questions_are_asked_of_a_quantized_model_twice(profile):
    asked = profile.runs()[0].evaluate.model_copy(
        update={"questions": "almanac:new", "measures": (), "facts": 4}
    )
    full, qlora = (
        next(run for run in profile.runs() if run.method.name == name) for name in ("full", "qlora")
    )
    once, twice = (cpu_hours.scoring_seconds(s, asked, PARAMS, speed) for s in (full, qlora))
    tokens = question_tokens(asked).mid
    assert once.mid == pytest.approx(2 * PARAMS * tokens / SPEED / cpu_hours.SHARE.mid)
    assert twice.mid == pytest.approx(2 * once.mid)


def test_sweeps_count_each_rate_that_is_not_known_yet(profile):
    trainings, total = cpu_hours.expect_sweeps(profile, {"path:model": PARAMS}, speed)
    assert trainings == 9
    one = cpu_hours.forecast_train_seconds(profile.sweeps()[0][0], PARAMS, speed).mid
    assert total.mid > 3 * one
    assert cpu_hours.expect_sweeps(profile, {}, speed)[0] == 0


def test_a_product_is_timed_here():
    assert cpu_hours.product_speed("fp32") > 1e8
