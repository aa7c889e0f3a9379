"""How `custom` trains on a card: bf16, and checkpointing where it lets more methods fit."""

from __future__ import annotations

import json

import pytest

from studylib.commands import cli_options
from studylib.commands.own_recipe import suit_machine
from studylib.forecasting.job_forecast import rented_machine
from studylib.forecasting.prospects import foresee_run
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


def test_checkpointing_is_taken_where_more_methods_fit_with_it(make):
    """On a card that holds full fine-tuning only so, and not on one that needs none."""
    words = ["train.micro_batch=8", "train.seq_len=1024"]
    card = rented_machine("h100-80gb", 1)
    ample = make(card, changes=words)
    assert recipe(ample) == ("bf16", True, "chunked", True, False)
    [full] = [run for run in ample.runs() if run.method.name == "full"]
    lean = full.model_copy(update={"train": full.train.model_copy(update={"checkpointing": True})})
    most, least = (foresee_run(spec, card).peak_bytes for spec in (full, lean))
    assert least < most
    tight = card.model_copy(update={"memory_bytes": (most + least) // 2})
    assert recipe(make(tight, changes=words))[-1] is True


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
