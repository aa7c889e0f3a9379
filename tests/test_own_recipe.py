"""How `custom` trains on a card: by the recipe that forecasts and advice take as well."""

from __future__ import annotations

import json

import pytest

from studylib.commands import cli_options
from studylib.commands.cli_options import suit_machine
from studylib.forecasting.job_forecast import job_settings, rented_machine
from studylib.forecasting.usual_recipe import usual_settings
from studylib.running.runner import write_profile


@pytest.fixture
def make(tmp_path):
    path = tmp_path / "data.jsonl"
    rows = [{"prompt": f"{n}?", "completion": "yes"} for n in range(500)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(machine, model="shape:Pythia-70M", **words):
        return cli_options.resolve_profile(
            "custom", tmp_path / "r", model=model, data=str(path), methods="full,lora",
            find_machine=lambda: machine, **words,
        )  # fmt: skip

    return make


def recipe(profile):
    train = profile.tracks[0].train
    return train.dtype, train.master_weights, train.loss, train.tf32, train.checkpointing


def test_without_a_card_the_profiles_own_recipe_stands(make):
    assert recipe(make(None)) == ("fp32", False, "full", False, False)


def test_a_card_has_the_usual_recipe_with_as_many_tokens_an_update(make):
    """Rows as long as the model has positions, 2,048 at most, and the forecast's own settings."""
    card = rented_machine("h100-80gb", 1)
    made = make(card)
    assert recipe(made) == ("bf16", True, "chunked", True, True)
    for model, rows in (("shape:Pythia-70M", (2048, 1)), ("ladder:0.4m", (512, 4))):
        train = make(card, model=model).tracks[0].train
        assert (train.seq_len, train.accumulation, train.micro_batch) == (*rows, 1)
    [lora] = [run for run in made.runs() if run.method.name == "lora"]
    usual = usual_settings("shape:Pythia-70M", "lora", "h100-80gb")
    assert job_settings(lora, card) == usual


def test_rows_that_the_reader_states_are_left_as_a_whole(make):
    made = make(rented_machine("h100-80gb", 1), changes=["train.seq_len=1024"])
    train = made.tracks[0].train
    assert (train.seq_len, train.accumulation) == (1024, 4), "the profile's own accumulation"
    assert recipe(made)[0] == "bf16"


def test_what_the_reader_states_stands_and_the_name_is_the_same_everywhere(make):
    card = rented_machine("h100-80gb", 1)
    stated = ["train.dtype=fp32", "train.checkpointing=true"]
    made = make(card, changes=stated)
    assert recipe(made)[0] == "fp32" and recipe(made)[-1] is True
    assert made.name == make(None, changes=stated).name


def test_a_study_that_has_begun_keeps_its_recipe(make, tmp_path):
    begun = make(None)
    (tmp_path / "r" / begun.name).mkdir(parents=True)
    write_profile(begun, tmp_path / "r" / begun.name)

    def never():
        raise AssertionError("no forecast is needed")

    assert recipe(suit_machine(begun, {}, tmp_path / "r", never))[0] == "fp32"
