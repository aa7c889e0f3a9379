"""A processor's step learns a part of its tokens, and its forecast counts that part."""

from __future__ import annotations

import json

import pytest
import torch

from studylib.checking.check_study import forecast_recipe, measure_training
from studylib.core.errors import StudyError
from studylib.forecasting.fullest import find_fullest
from studylib.forecasting.job_forecast import Machine, job_settings, trace_once
from studylib.schema.settings import DataSettings

HERE = Machine(gpu=None, cards=0, memory_bytes=0)
MODEL = "ladder:0.4m"


@pytest.fixture
def make(tmp_path):
    """A run on rows of questions that are alike, so that each micro-batch has as many learned
    tokens."""
    file = tmp_path / "train.jsonl"
    rows = ({"prompt": f"{n:03} " + "the river of the north " * 3, "completion": "the north"}
            for n in range(100))  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def spec(method="lora", **changes):
        made = forecast_recipe(method, MODEL, seq_len=256, dtype="bf16")
        recipe = {"steps": 2, "micro_batch": 2, "loss": "chunked"} | changes
        train = made.train.model_copy(update=recipe)
        return made.model_copy(
            update={"data": DataSettings(source=str(file), template="plain"), "train": train}
        )

    return spec


@pytest.mark.parametrize("attention", ["sdpa", "by_example"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_peak_is_that_of_the_learned_tokens_alone(make, method, attention):
    spec = make(method, attention=attention)
    settings = job_settings(spec, HERE, sure=True)
    seen = measure_training(spec, torch.device("cpu"))["peaks"]["live tensors"]
    assert trace_once(settings, here=True).peak_bytes == pytest.approx(seen, rel=0.02)
    without = settings.model_copy(update={"fullest": None, "attention": "sdpa"})
    assert trace_once(without, here=True).peak_bytes > 1.1 * seen, "the part is not all"


def test_the_fullest_micro_batch_is_counted(make):
    found = find_fullest(make(attention="by_example"))
    assert sum(found.example_tokens) == 2 * found.row_tokens <= 2 * 256
    examples = len([length for length in found.example_tokens if length == found.example_tokens[0]])
    assert found.learned_tokens % examples == 0 and found.learned_tokens // examples < 8


def test_a_card_and_a_loss_in_full_take_all_tokens(make):
    card = Machine(gpu="h100-80gb", cards=1, memory_bytes=0)
    assert job_settings(make(), card, sure=True).fullest is None
    assert job_settings(make(loss="full"), HERE, sure=True).fullest is None


def test_what_cannot_be_counted_is_all_tokens_or_an_error(make):
    spec = make().model_copy(update={"model": "shape:llama-3.2-1b"})
    assert job_settings(spec, HERE).fullest is None
    with pytest.raises(StudyError, match="tokenizer"):
        job_settings(spec, HERE, sure=True)
