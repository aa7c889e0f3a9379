"""What fits a machine and what a study takes there, for a card that need not be here."""

from __future__ import annotations

import json

import pytest

from studylib.core.errors import StudyError
from studylib.forecasting.job_forecast import Machine, job_settings, rented_machine
from studylib.forecasting.prospects import estimate_on, estimate_study, foresee_run, foresee_runs
from studylib.planning import estimate
from studylib.planning.catalog import find_gpu
from studylib.planning.estimate import question_tokens, scoring_hours
from studylib.schema.profile import build_profile, read_profile
from studylib.schema.serving import serve_specs
from studylib.schema.settings import EvaluateSettings

SMALL = "shape:Pythia-70M"
H100 = rented_machine("h100-80gb", 1)
CONTENT = {
    "name": "small",
    "question": "?",
    "models": [SMALL],
    "methods": ["full", "lora", "qlora"],
    "seeds": [0],
    "data": {"source": "almanac:new", "template": "plain"},
    "train": {"steps": 1000, "seq_len": 64, "dtype": "bf16", "checkpointing": True},
    "evaluate": {"questions": "hub"},
}


def profile_with(**changes):
    train = CONTENT["train"] | changes.pop("train", {})
    return build_profile(CONTENT | {"train": train} | changes, "test")


def run_of(method, **changes):
    return next(run for run in profile_with(**changes).runs() if run.method.name == method)


def test_more_steps_and_more_passes_take_more_hours_in_proportion():
    once = foresee_run(run_of("full"), H100)
    twice = foresee_run(run_of("full", train={"steps": 2000}), H100)
    eight = foresee_run(run_of("full", train={"accumulation": 8}), H100)
    assert twice.train_hours.mid == pytest.approx(2 * once.train_hours.mid)
    assert once.train_hours.low < once.train_hours.mid < once.train_hours.high
    # The update is a large part of a step of 64 tokens; the passes are eightfold.
    assert 2 * once.train_hours.mid < eight.train_hours.mid < 8 * once.train_hours.mid


def test_fp32_weights_of_full_fine_tuning_are_counted_and_adapters_have_none():
    plain = foresee_run(run_of("full"), H100)
    kept = foresee_run(run_of("full", train={"master_weights": True}), H100)
    # Weights, gradients and both states take 16 bytes a parameter instead of 8.
    assert kept.peak_bytes - plain.peak_bytes == pytest.approx(8 * plain.total_params, rel=0.05)
    for method in ("lora", "qlora"):
        assert job_settings(run_of(method, train={"master_weights": True}), H100) == job_settings(
            run_of(method), H100
        )


def test_several_cards_share_a_sharded_model_and_a_step_s_passes():
    hardware = {"gpus_of": {"full": 8}}
    settings = job_settings(run_of("full", hardware=hardware, train={"accumulation": 16}),
                            rented_machine("a100-80gb", 8))  # fmt: skip
    assert (settings.gpus, settings.sharding, settings.accumulation) == (8, "fsdp", 2)
    alone = job_settings(run_of("lora", hardware=hardware, train={"accumulation": 16}),
                         rented_machine("a100-80gb", 8))  # fmt: skip
    assert (alone.gpus, alone.sharding, alone.accumulation) == (1, "none", 16)


def test_run_that_asks_for_more_cards_than_there_are_says_so_and_the_others_go_on():
    runs = profile_with(hardware={"gpus_of": {"full": 8}}, train={"accumulation": 8}).runs()
    found = foresee_runs(runs, H100)
    assert {run_id: prospect.may_run for run_id, prospect in found.items()} == {
        "pythia-70m--full--s0": False,
        "pythia-70m--lora-r16--s0": True,
        "pythia-70m--qlora-r16--s0": True,
    }
    reason = found["pythia-70m--full--s0"].reason
    assert reason == "it asks for 8 cards, this machine has 1"
    made = estimate_on(H100, runs)
    assert made.misfits == {"pythia-70m--full--s0": reason}
    assert "pythia-70m--full--s0" not in made.runs and "pythia-70m--lora-r16--s0" in made.runs


def test_run_that_needs_more_memory_names_the_smallest_card_that_would_do():
    small = Machine(gpu="h100-80gb", cards=1, memory_bytes=10**8)
    found = foresee_run(run_of("full"), small)
    assert found.fit.word == "does not fit" and not found.may_run
    assert "0.1 GB; the smallest card that would do is" in found.reason
    assert estimate_on(small, [run_of("full")], force=True).misfits == {}


def test_bundled_models_are_not_judged_but_for_cards_that_are_missing():
    runs = profile_with(models=["ladder:0.4m"]).runs()
    assert foresee_runs(runs, H100) == {}
    assert len(foresee_runs(runs, H100, bundled=True)) == 3
    eight = profile_with(models=["ladder:0.4m"], hardware={"gpus_of": {"lora": 8}},
                         train={"accumulation": 8}).runs()  # fmt: skip
    assert [p.reason for p in foresee_runs(eight, H100).values()] == [
        "it asks for 8 cards, this machine has 1"
    ]


def test_study_s_hours_are_the_sum_of_its_runs_and_its_dollars_those_of_all_cards():
    profile = read_profile("systems", {"models": [SMALL], "train": {"seq_len": 64}})
    specs, served = profile.runs(), serve_specs(profile)
    one = estimate_study(specs, "h100-80gb", 1, served)
    assert one.known and not one.misfits
    assert one.hours.mid == pytest.approx(sum(run.total.mid for run in one.runs.values()))
    assert len(one.runs) == len(specs) + len(served) == 7
    assert one.usd.low < one.usd.mid < one.usd.high
    eight = estimate_study(specs, "H100-80GB", 8, served)
    assert eight.hours == one.hours and eight.usd.mid == pytest.approx(8 * one.usd.mid)
    known = {spec.run_id: 3600.0 for spec in specs}
    assert estimate_study(specs, "h100-80gb", 1, (), known).hours.high == pytest.approx(len(specs))
    json.loads(one.model_dump_json())


def test_random_weights_are_not_asked_and_4_bit_weights_twice():
    card = find_gpu("h100-80gb")
    assert scoring_hours(run_of("lora"), 10**9, card).mid == 0
    hub = {"models": ["hub:allenai/OLMo-2-0425-1B"]}
    base, lora, qlora = (
        scoring_hours(run_of(method, **hub), 10**9, card).mid
        for method in ("base", "lora", "qlora")
    )
    assert qlora == 2 * lora == 2 * base > 0


def test_hub_s_known_models_are_estimated_without_a_network_and_others_are_named(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    known = profile_with(models=["hub:meta-llama/Llama-2-13b-hf@" + "0" * 40]).runs()
    assert not estimate_study(known[:1], "a100-80gb", 1).unknown
    other = profile_with(models=["hub:org/none"], methods=["lora"]).runs()
    made = estimate_study(other, "a100-80gb", 1)
    assert set(made.unknown) == {"none--base", "none--lora-r16--s0"} and not made.known


def test_card_that_the_catalog_lacks_has_peaks_and_no_hours():
    strange = Machine(gpu=None, cards=1, memory_bytes=80 * 10**9)
    assert foresee_run(run_of("lora"), strange).train_hours is None
    made = estimate_on(strange, [run_of("lora")])
    assert made.usd is None and made.unknown == ("pythia-70m--lora-r16--s0",)
    with pytest.raises(StudyError, match="h100-80gb"):
        estimate_study([run_of("lora")], "h100-80g", 1)
    with pytest.raises(StudyError, match="1 or more"):
        estimate_study([run_of("lora")], "h100-80gb", 0)


def test_mmlu_s_characters_are_those_of_its_files_and_a_limit_cuts_them(shared):
    folder = shared / "data" / "mmlu"
    asked = EvaluateSettings(questions="hub")
    counted = EvaluateSettings(questions=str(folder))
    assert question_tokens(asked) == question_tokens(counted)
    assert 1.4e6 < question_tokens(asked).mid < 2.0e6
    few, known = (
        question_tokens(settings.model_copy(update={"limit": 10})).mid
        for settings in (counted, asked)
    )
    assert few == pytest.approx(known, rel=0.15)  # subjects' questions are not equally long


def test_almanac_and_unknown_tasks_have_tokens_too():
    almanac = EvaluateSettings(questions="almanac:new", retention="almanac:old", shots=0)
    alone = almanac.model_copy(update={"retention": None})
    assert question_tokens(almanac).mid > question_tokens(alone).mid > 1000
    named = question_tokens(EvaluateSettings(questions="tasks:arc_easy", limit=100))
    assert named.low < named.mid < named.high == estimate.TASK_CHARACTERS * 100 / 3.5
    assert question_tokens(EvaluateSettings(questions="/not/here")).mid == 0


@pytest.mark.parametrize("name", ["gpu", "article", "systems"])
def test_profiles_for_cards_pin_their_sources_and_keep_every_switch_in_common(name):
    from studylib.schema.pins import unpinned

    profile = read_profile(name)
    assert unpinned(profile) == []
    assert profile.serve is not None and profile.serve.batch_sizes == (1, 8, 32)
    for run in profile.runs():
        recipe = run.train
        assert (recipe.dtype, recipe.loss, recipe.checkpointing) == ("bf16", "chunked", True)
        assert recipe.seq_len == 2048 and recipe.accumulation % max(run.gpus, 1) == 0
    assert all(len(set(map(len, t.tune.learning_rates.values()))) == 1
               for t in profile.tracks if t.tune)  # fmt: skip


def test_profile_gpu_has_three_seeds_at_1b_and_one_above_and_article_the_claimed_adapter():
    runs = [run for run in read_profile("gpu").runs() if run.method.kind.trains]
    seeds = {}
    for run in runs:
        seeds.setdefault((run.model_ref.slug, run.method.name), []).append(run.seed)
    assert {key: found for key, found in seeds.items() if "1b" in key[0]} == {
        ("olmo-2-0425-1b", method): [0, 1, 2] for method in ("full", "lora", "qlora")
    }
    assert all(found == [0] for key, found in seeds.items() if "1b" not in key[0])
    tokens = [run.train.steps * run.train.accumulation * run.train.seq_len for run in runs]
    assert set(tokens) == {606 * 16 * 2048}
    article = {run.method.name: run for run in read_profile("article").runs()}
    assert (article["full"].gpus, article["lora"].gpus, article["qlora"].gpus) == (8, 1, 1)
    assert article["lora"].method.targets == ("q_proj", "k_proj", "v_proj", "o_proj")
    eight = rented_machine("a100-80gb", 8)
    assert foresee_run(article["full"], eight).may_run
    assert not foresee_run(article["full"], rented_machine("a100-80gb", 4)).may_run
