"""A study of a card under a clock: slices, states, going on after a stop or a kill, bad words."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
from waiting import LONG_SECONDS, wait_for

from studylib.checking.card_ceiling import measure_ceiling
from studylib.core.errors import StudyError
from studylib.core.places import REFERENCE, ROOT
from studylib.running import card, card_facts, card_figures
from studylib.running.card import TimedSteps, order_steps, run_card, slice_seconds
from studylib.running.card_facts import card_slug
from studylib.running.card_jobs import CardPlace, card_profile, list_jobs, places_of
from studylib.schema.card_study import (
    CardFacts,
    CardStep,
    CardSteps,
    CardStudy,
    Part,
    StepTaken,
    read_card_study,
    read_steps,
)
from studylib.schema.records import read_record
from studylib.schema.serve_records import read_serve_record

FACTS = CardFacts(name="CPU test", memory_bytes=2**33, torch="2")
# A little program as a step: it counts its starts, and ends as it is told.
STUB = """
import subprocess, sys, time
from pathlib import Path
folder, name, ends = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
with (folder / f"{name}.starts").open("a") as file:
    file.write(".")
number = len((folder / f"{name}.starts").read_text())
end = ends[min(number, len(ends)) - 1]
if end == "never":
    code = "import time; time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    (folder / f"{name}.pids").write_text(f"{child.pid}")
    from studylib.running.runner import follow_parent
    follow_parent()
    time.sleep(600)
if end == "refuse":
    print("study: no: this is refused. Do otherwise.", file=sys.stderr)
    sys.exit(2)
(folder / f"{name}.json").write_text("[]")
sys.exit(end == "finds")
"""


@pytest.fixture
def stub(tmp_path):
    """Makes a step that is a real little program: `ends` says how each of its starts ends."""
    program = tmp_path / "stub.py"
    program.write_text(STUB)

    def make(name, *ends, seconds=60.0, **others):
        words = [str(program), "{folder}", name, *ends]
        return CardStep(name=name, answers="?", seconds=seconds, script=words,
                        result=f"{name}.json", **others)  # fmt: skip

    return make


def study_of(steps):
    return CardSteps(models=read_steps().models, steps=tuple(steps))


def take(steps, results, minutes=12.0):
    asked = study_of(steps)
    return run_card(asked, asked.steps, results, minutes, say=lambda _: None, facts=FACTS)


def states(study):
    return {step.name: step.state for step in study.steps}


def starts(results, name):
    return len((results / "rehearsal" / f"{name}.starts").read_text())


def test_a_slice_is_its_share_with_what_was_saved_and_never_more_than_is_left():
    step = CardStep(name="a", answers="?", seconds=60, least=40, script=("a",), result="a")
    assert slice_seconds(step, 12, saved=0, left=700, least=40) == 60
    assert slice_seconds(step, 24, saved=0, left=700, least=40) == 120
    assert slice_seconds(step, 6, saved=0, left=700, least=40) == 40
    assert slice_seconds(step, 12, saved=25, left=700, least=40) == 85
    assert slice_seconds(step, 12, saved=25, left=50, least=40) == 50
    assert slice_seconds(step, 12, saved=0, left=-1, least=40) == 0


def test_untried_steps_come_first_then_those_that_were_cut_off_and_done_ones_never():
    found = {"a": "cut off", "b": "done", "c": "not reached", "d": "failed"}
    study = CardStudy(
        card=FACTS, rehearsal=True, models={},
        steps=tuple(StepTaken(name=n, answers="?", state=s) for n, s in found.items()),
    )  # fmt: skip
    steps = [
        CardStep(name=name, answers="?", seconds=1, script=("a",), result="a") for name in "abcde"
    ]
    assert [step.name for step in order_steps(study, steps)] == ["c", "e", "a", "d"]


def test_a_step_is_stopped_at_its_slice_and_the_others_go_on(stub, tmp_path):
    steps = [stub("hangs", "never", "well", seconds=6), stub("first", "well"),
             stub("bad", "refuse"), stub("last", "well"),
             stub("long", "well", least=10000)]  # fmt: skip
    results = tmp_path / "results"
    study = take(steps, results)
    assert study.steps == read_card_study(results / "rehearsal").steps
    # What is left at the end goes to what was cut off.
    assert states(study) == {"first": "done", "hangs": "done", "bad": "failed", "last": "done",
                             "long": "not reached"}  # fmt: skip
    assert starts(results, "hangs") == 2
    assert study.taken("bad").reason == "no: this is refused. Do otherwise."
    child = int((results / "rehearsal" / "hangs.pids").read_text())
    assert not psutil.pid_exists(child), "a process that a step started outlived it"

    again = take(steps, results)
    assert starts(results, "first") == 1 and starts(results, "bad") == 2
    assert len(again.calls) == 2
    assert "first" in card_figures.tabulate(again) and "not reached" in card_figures.tabulate(again)


def test_an_exit_code_is_a_failure_unless_the_step_says_that_it_is_a_finding(stub, tmp_path):
    steps = [stub("check", "finds", finds=True), stub("study", "finds")]
    assert states(take(steps, tmp_path)) == {"check": "done", "study": "failed"}
    assert [step.name for step in read_steps().steps if step.finds] == ["gpu-check"]


def test_a_call_whose_time_is_up_says_so_and_the_next_one_goes_on(stub, tmp_path):
    steps = [stub("hangs", "never", "well", seconds=720), stub("next", "well", least=100)]
    study = take(steps, tmp_path, minutes=0.1)
    assert states(study) == {"hangs": "cut off", "next": "not reached"}
    assert states(take(steps, tmp_path)) == {"hangs": "done", "next": "done"}


SCRIPT = """
import sys
from pathlib import Path
from studylib.running.card import run_card
from studylib.schema.card_study import CardFacts, CardSteps
facts = CardFacts.model_validate_json(sys.argv[2])
steps = CardSteps.model_validate_json(sys.argv[3])
run_card(steps, steps.steps, Path(sys.argv[1]), 12.0, facts=facts)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_call_leaves_no_process_and_the_next_one_goes_on(stub, tmp_path, number):
    steps = [stub("first", "well"), stub("killed", "never", "well", seconds=500)]
    results, folder = tmp_path / "results", tmp_path / "results" / "rehearsal"
    words = [told.model_dump_json() for told in (FACTS, study_of(steps))]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    call = subprocess.Popen([sys.executable, "-c", SCRIPT, str(results), *words], cwd=ROOT,
                            env=environ, stderr=subprocess.DEVNULL,
                            preexec_fn=heed_interrupts)  # fmt: skip
    pids = folder / "killed.pids"
    wait_for(lambda: pids.is_file() and pids.read_text())
    program = psutil.Process(int(pids.read_text())).parent()
    call.send_signal(number)
    call.wait(timeout=LONG_SECONDS)
    wait_for(lambda: not program.is_running())
    left = states(read_card_study(folder))
    assert left == ({"first": "done"} if number == signal.SIGKILL else
                    {"first": "done", "killed": "cut off"})  # fmt: skip
    if number == signal.SIGKILL:  # a session of its own is ended by the program that made it
        psutil.Process(int(pids.read_text())).kill()
    assert states(take(steps, results)) == {"first": "done", "killed": "done"}
    assert starts(results, "first") == 1


def heed_interrupts():
    """What a shell starts in the background ignores them, and so does all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


SMALL = "13b=ladder:0.4m,7b=ladder:0.4m"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--steps", "13b,sevenb"], "there is no such step"),
        (["--models", "70b=shape:Llama-2-70B"], "Places: 13b, 7b, 1b"),
        (["--models", "7b=Llama"], "a model is hub:ID"),
        (["--minutes", "0"], "a clock has minutes"),
        (["--set", "train.stepz=1"], "this key is not known"),
        (["--models", f"{SMALL},1b=shape:nope"], "there is no such shape"),
        (["--models", f"{SMALL},1b=path:nowhere"], "there is no such folder"),
        (["--models", f"{SMALL},1b=ladder:0.4m", "--data", "nowhere.json"], "cannot be read"),
        (["--mmlu", "nowhere"], "nowhere"),
    ],
)
def test_words_that_are_not_known_end_it_before_any_work(call, words, said):
    code, out, err = call("card", *words)
    assert code == 2 and said in err and "Traceback" not in out + err


def test_without_a_card_no_large_model_is_begun(monkeypatch):
    steps = read_steps()
    monkeypatch.setattr(card, "check_model_source", lambda *_, **__: None)
    own = {step.name: places_of(step) for step in steps.steps}
    assert own["13b"] == {"13b"} and own["serve"] == own["peers"] == {"7b"}
    assert own["mmlu"] == {"1b"} and own["gpu-check"] == set()
    card.check_asked(steps, steps.steps, card=True, data="almanac:new")
    small = steps.with_models(["7b=ladder:0.4m"])
    card.check_asked(small, steps.choose(["7b", "serve"]), card=False, data="almanac:new")
    with pytest.raises(StudyError, match="a rehearsal takes small models, and 13b is"):
        card.check_asked(small, steps.steps, card=False, data="almanac:new")


def place_of(gib, tmp_path):
    card = CardFacts(name="NVIDIA H200", memory_bytes=int(gib * 2**30), torch="2")
    return CardPlace("h200", tmp_path, read_steps(), card)


@pytest.mark.parametrize(
    ("gib", "has", "has_not"),
    [
        (140, {"llama-2-13b--full--paged--s0", "llama-2-7b--full--7b--s0"},
         {"llama-2-7b--full--7b-8bit--s0"}),
        (79.6, {"llama-2-7b--full--7b--s0", "llama-2-13b--lora-r16--16x2048--s0"},
         {"llama-2-13b--full--paged--s0", "llama-2-7b--full--7b-8bit--s0"}),
        (47.5, {"llama-2-7b--full--7b-8bit--s0", "llama-2-13b--lora-r16--4x2048--s0"},
         {"llama-2-7b--full--7b--s0", "llama-2-13b--lora-r16--16x2048--s0"}),
    ],
)  # fmt: skip
def test_a_card_gets_the_runs_that_suit_its_memory(tmp_path, gib, has, has_not):
    place = place_of(gib, tmp_path)
    jobs = {job.name for step in place.steps.steps for job in list_jobs(step, place)}
    assert has <= jobs and not has_not & jobs
    planned = {run.run_id for run in card_profile(place, place.steps.steps[1]).runs()}
    assert has <= planned and not has_not & planned


def test_the_shipped_steps_are_runs_of_one_profile_and_fit_their_minutes(tmp_path):
    place, steps = place_of(140, tmp_path), read_steps().steps
    names = {step.name: {job.name for job in list_jobs(step, place)} for step in steps}
    assert names["serve"] == names["serve-compiled"] == {"llama-2-7b--lora-r16 (serving)"}
    assert (tmp_path / "h200-serve-compiled" / "profile.yaml").is_file()
    asked = {one.method for step in steps for one in step.runs}
    assert asked == {"full", "lora", "qlora"}
    assert all(step.least <= step.seconds for step in steps)
    spec = card_profile(place, steps[1]).run("llama-2-13b--qlora-r16--4x2048--s0")
    assert spec.train.micro_batch == 4 and spec.method.targets == (
        "q_proj", "k_proj", "v_proj", "o_proj")  # fmt: skip


def test_other_models_take_the_places_of_the_own(tmp_path):
    steps = read_steps().with_models(["7b=ladder:0.4m"])
    place = CardPlace("x", tmp_path, steps, FACTS, own=False)
    jobs = {job.name for step in steps.steps for job in list_jobs(step, place)}
    assert "ladder-0.4m--full--7b--s0" in jobs and "llama-2-13b--lora-r16--1x512--s0" in jobs
    assert place.fill("{7b} {1b} {folder}") == f"ladder:0.4m shape:OLMo-2-1B {tmp_path / 'x'}"


def test_a_step_is_one_thing():
    with pytest.raises(ValueError, match="one of runs"):
        CardStep(name="a", answers="?", seconds=1)
    with pytest.raises(StudyError, match="7b"):
        read_steps().with_models(["7b"])


def test_cards_are_folders():
    assert card_slug("NVIDIA H200") == "h200"
    assert card_slug("NVIDIA H100 80GB HBM3") == "h100-80gb-hbm3"
    assert card_slug("NVIDIA GeForce RTX 4090") == "rtx-4090"
    assert card_slug("Tesla T4") == "t4"


def test_the_ceiling_is_of_real_products_and_copies():
    ceiling = measure_ceiling(torch.device("cpu"), seconds=0.05)
    assert ceiling.products > 0 and ceiling.size == 512
    assert ceiling.bf16_flops_per_second > 1e8 and ceiling.copy_bytes_per_second > 1e8


def test_figures_are_those_of_the_records():
    path = REFERENCE / "cpu" / "runs" / "ladder-1.4m--lora-r16--s0" / "record.json"
    train, peak = read_record(path).train, 2e12
    found = card_figures.run_figures(path, peak)
    assert found["tokens_per_second"] == train.tokens_per_second
    assert found["allocated_bytes"] == train.measure.live_tensor_peak_bytes
    assert found["model_share"] == train.tokens_per_second * train.model_flops_per_token / peak
    assert found["arithmetic_share"] >= found["model_share"] and "joules_per_token" not in found

    path = REFERENCE / "cpu" / "serve" / "ladder-1.4m--lora-r16" / "serve.json"
    measures, found = read_serve_record(path).measures, card_figures.serve_figures(path)
    row = measures.overheads("dynamic")[0]
    assert found[f"dynamic_eager_batch_{row.batch}_ratio"] == row.between_tokens_ratio.value
    assert found["swap_seconds"] == measures.swap.switch_seconds.p50


def test_paged_states_are_counted_on_the_card():
    runs = REFERENCE / "h200" / "runs"
    for run, kind in (("llama-2-13b--full--paged--s0", "nvml_peak_bytes"),
                      ("llama-2-13b--lora-r16--1x512--s0", "nvml_process_peak_bytes")):  # fmt: skip
        path = runs / run / "record.json"
        found = card_figures.run_figures(path, None)["nvml_bytes"]
        assert found == getattr(read_record(path).train.measure, kind) > 0


def test_figures_of_peers_and_questions_are_ratios(tmp_path):
    def peer(seconds, **others):
        return [{"status": "complete", "seconds": [9.0] * 3 + [seconds] * 2, "tokens": [100] * 5,
                 "measure": {"torch_peak_allocated_bytes": 8}, **others}]  # fmt: skip

    path = tmp_path / "peers.json"
    peers = {"plain": peer(2.0), "ours": peer(1.0), "trl": peer(1.0, status="out of memory")}
    path.write_text(json.dumps({"spec": {}, "peers": peers}))
    found = card_figures.command_figures(path)
    assert found["plain_tokens_per_second"] == 50 and found["ours_ratio"] == 2
    assert found["trl_status"] == "out of memory" and "plain_ratio" not in found

    path.write_text(json.dumps([{"dtype": "bf16", "time_ratio": 7.0, "answers_changed": 0}]))
    assert card_figures.command_figures(path) == {"bf16_stock_over_ours": 7.0,
                                                  "bf16_answers_changed": 0}  # fmt: skip
    path.write_text("cut")
    assert card_figures.command_figures(path) == {}


def test_a_step_that_is_partly_done_needs_less_to_be_begun_again(stub, tmp_path):
    step = stub("runs", "well", least=120)
    clock = TimedSteps(
        CardStudy(card=FACTS, rehearsal=True, models={}),
        place_of(140, tmp_path), 12.0, time.monotonic(), lambda _: None,
    )  # fmt: skip
    assert clock.least(step) == 120
    parts = tuple(Part(name=str(i), state="done" if i else "cut off") for i in range(6))
    taken = StepTaken(name="runs", answers="?", state="cut off", parts=parts)
    clock.study = clock.study.model_copy(update={"steps": (taken,)})
    assert clock.least(step) == 20


def test_the_card_is_the_first_that_cuda_sees_as_nvml_tells_it(monkeypatch):
    seen = {
        "cuda_ordinal": 0, "name": "NVIDIA H200", "uuid": "GPU-1", "driver_version": "580.1",
        "memory_total_bytes": 150754820096, "cuda_version": "13.0",
    }  # fmt: skip
    hidden = {**seen, "cuda_ordinal": None, "name": "NVIDIA T4"}
    monkeypatch.setattr(card_facts, "describe_devices", lambda: ([hidden, seen], None))
    card = card_facts.read_card_facts()
    assert (card.name, card.uuid, card.driver) == ("NVIDIA H200", "GPU-1", "580.1")
    assert card.memory_bytes / 2**30 > 140 and card.bf16_peak is None
    monkeypatch.setattr(card_facts, "describe_devices", lambda: ([], "no NVML"))
    host = card_facts.read_card_facts()
    assert host.name.startswith("CPU ") and host.uuid is None and host.memory_bytes > 2**30


def test_a_ceiling_that_is_not_had_is_told_with_its_reason(monkeypatch):
    monkeypatch.setattr(card_facts, "CEILING_SECONDS", 0.01)
    card = card_facts.with_ceiling(FACTS)
    assert card.ceiling is None and "did not end" in card.ceiling_reason
