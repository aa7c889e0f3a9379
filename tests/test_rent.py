"""Renting: what it costs is said first, the token shows nowhere, the machine always goes down."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from studylib.commands import cli_rent
from studylib.core.errors import StudyError
from studylib.forecasting.prospects import record_misfit
from studylib.planning import renting
from studylib.planning.catalog import load_prices
from studylib.planning.estimate import RunHours, StudyEstimate
from studylib.planning.renting import Clock, DownFailed, JobState, LaunchFailed, Limits, SyncFailed
from studylib.running import rental
from studylib.schema.profile import read_profile
from studylib.schema.ranges import exactly

ROOT = Path(__file__).parents[1]
TOKEN = "hf_" + "thisIsASecret"


def make_task(tmp_path, gpus="H100:1", spot=False, token=True, cloud=None, **options):
    profile = read_profile("smoke")
    machine, _ = rental.make_rental(gpus, load_prices(), spot, cloud, None)
    home = tmp_path / "results" / "smoke"
    options = {"PROFILE": "smoke", **options}
    return rental.build_task(machine, profile, options, ROOT, home, 100, token)


def make_estimate(hours, runs=1):
    return StudyEstimate(
        gpu="h100-80gb",
        cards=1,
        hours=exactly(hours),
        usd=exactly(hours),
        runs={f"run{i}": RunHours(gpus=1, start=exactly(hours)) for i in range(runs)},
        misfits={},
        unknown=(),
    )


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)


# What is rented


@pytest.mark.parametrize("text", ["H100:2", "h100:2", "h100-80gb:2"])
def test_card_has_skypilots_name_or_the_catalogs(text):
    gpu, cards = rental.parse_gpus(text)
    assert (gpu.name, cards) == ("h100-80gb", 2)
    assert rental.parse_gpus("A100")[0].name == "a100-40gb"
    assert rental.parse_gpus("A100-80GB:8") == (rental.find_gpu("a100-80gb"), 8)


def test_every_card_with_offers_can_be_rented_but_for_pcie_kinds():
    offered = {offer.gpu for offer in load_prices()}
    assert {name for name in offered - set(rental.SKY_NAMES) if "pcie" not in name} == set()


def test_hours_agreed_on_are_the_budgets_or_the_slowest_forecasts():
    machine, prices = rental.make_rental("H100:2", load_prices(), False, None, 8.0)
    short = rental.make_bill(make_estimate(0.1), machine, prices, 10)
    assert short.most_hours == pytest.approx(10 / 8) and short.most_usd == pytest.approx(10)
    assert short.usd.mid == pytest.approx(0.1 * 2 * prices.median)
    long = rental.make_bill(make_estimate(7), machine, prices, 10)
    assert long.most_hours == pytest.approx(7.5) and long.most_usd == pytest.approx(60)
    unknown = rental.make_bill(make_estimate(0, runs=0), machine, prices, 10)
    assert unknown.hours is None and unknown.usd is None
    assert unknown.most_hours == pytest.approx(10 / 8)


def test_disk_holds_the_downloads_and_a_checkpoint_of_the_largest_model():
    assert rental.disk_gb(read_profile("smoke")) == 100
    changes = {"models": ["shape:llama-2-7b"], "methods": ["full"]}
    assert rental.disk_gb(read_profile("smoke", changes)) == 200  # 80 + 6.7 × 12
    assert rental.disk_gb(read_profile("smoke", {**changes, "methods": ["qlora"]})) == 100


def test_task_goes_on_from_the_results_that_are_home(tmp_path):
    assert "file_mounts" not in make_task(tmp_path)
    (tmp_path / "results" / "smoke" / "runs").mkdir(parents=True)
    mounts = make_task(tmp_path)["file_mounts"]
    assert mounts == {"~/sky_workdir/results/smoke": str(tmp_path / "results" / "smoke")}


def test_options_reach_make_whatever_is_in_them(tmp_path):
    task = make_task(tmp_path, SET="data.facts=8 question='a $HOME; b'", BUDGET="10")
    shown = task["run"].replace("make reproduce", "printf '%s\\n'")
    done = subprocess.run(["bash", "-c", shown], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "PROFILE=smoke", "SET=data.facts=8 question='a $HOME; b'", "BUDGET=10",
    ]  # fmt: skip


def test_makes_reproduce_hands_on_everything_that_is_sent(tmp_path):
    options = {
        "PROFILE": "smoke", "MODEL": "hub:a/b", "DATA": "hub:c/d", "MMLU": "hub", "METHODS": "lora",
        "SEEDS": "1,2", "STEPS": "3", "LIMIT": "4", "SET": "a=1 b=2", "BUDGET": "5", "YES": "1",
        "COLUMNS": "prompt=a answer=b",
    }  # fmt: skip
    line = make_task(tmp_path, **options)["run"].splitlines()[-1]
    command = line.replace("make reproduce", f"make -n -s -C '{ROOT}' reproduce")
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert shlex.split(done.stdout)[3:] == shlex.split(
        "reproduce --profile smoke --model hub:a/b --data hub:c/d "
        "--columns 'prompt=a answer=b' --mmlu hub --methods lora "
        "--seeds 1,2 --steps 3 --limit 4 --set a=1 --set b=2 --budget 5 --yes"
    )


def test_the_width_of_a_terminal_is_no_option():
    line = ["make", "-n", "-s", "-C", str(ROOT), "plan", "PROFILE=smoke"]
    width = {**os.environ, "COLUMNS": "80"}
    done = subprocess.run(line, capture_output=True, text=True, check=True, env=width)
    assert "--columns" not in done.stdout


def run_setup(task, folder, programs):
    """Run a task's setup where only the given programs are beside the shell's own; what they say.

    Each program writes its name and arguments down; uv "installs" a python3.12.
    """
    bin_folder, own = folder / "bin", folder / ".local" / "bin"
    bin_folder.mkdir()
    own.mkdir(parents=True)
    for name in programs:
        script = f"#!/bin/bash\necho {name} $* >> '{folder}/said'\n"
        if name == "uv":
            script += 'if [ "$2" = find ]; then echo /the/python; fi\n'
        (bin_folder / name).write_text(script)
        (bin_folder / name).chmod(0o755)
    for name in ("mkdir", "bash", "ln"):
        (bin_folder / name).symlink_to(shutil.which(name))
    environment = {"PATH": str(bin_folder), "HOME": str(folder)}
    subprocess.run(
        [shutil.which("bash"), "-c", task["setup"]], cwd=folder, env=environment, check=True
    )
    return (folder / "said").read_text().splitlines()


def test_setup_is_the_readmes_command_with_a_python_that_can_build_kernels(tmp_path):
    said = run_setup(make_task(tmp_path), tmp_path, ["make", "cc", "uv"])
    assert said == ["uv python install 3.12", "uv python find 3.12", "make setup"]
    assert os.readlink(tmp_path / ".local/bin/python3.12") == "/the/python"  # noqa: PTH115
    assert (tmp_path / "results" / "smoke").is_dir()


def test_setup_installs_what_a_bare_image_lacks(tmp_path):
    programs = ["make", "uv", "sudo"]
    said = run_setup(make_task(tmp_path), tmp_path, programs)
    assert said[:2] == ["sudo apt-get update -qq", "sudo apt-get install -y -qq gcc libc6-dev"]


# The command


@pytest.fixture
def study(call, monkeypatch):
    """Call `study rent` without a terminal; gives (code, out, err)."""
    monkeypatch.setattr(sys, "stdin", open(os.devnull))  # noqa: PTH123, SIM115
    monkeypatch.setattr(rental, "estimate", lambda *asked: make_estimate(2.0))
    monkeypatch.setattr(cli_rent, "check_tools", lambda: None)
    sent = []
    monkeypatch.setattr(os, "execve", lambda *words: sent.append(words))

    def rent(*words):
        return call("rent", *words)

    rent.sent = sent
    return rent


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "GPU: no card is named"),
        (["--gpu", "H1000:1"], "H1000:1: this is no card that can be rented. Did you mean h100 or"),
        (["--gpu", "H100:0"], "H100:0: a machine has 1 to 8 cards"),
        (["--gpu", "H100:x"], "H100:x: a machine has 1 to 8 cards"),
        (["--gpu", "H100:1.5"], "H100:1.5: a machine has 1 to 8 cards"),
        (["--gpu", "h100-80gb-pcie"], "SkyPilot rents out no such card"),
        (["--gpu", "RTX5090"], "RTX5090: no offer for this card is known"),
        (["--gpu", "H100", "--profile", "nope"], "nope: this is not a shipped profile"),
        (["--gpu", "H100", "--cloud", "lamda"], "SkyPilot has no such provider. Did you mean lam"),
        (["--gpu", "H100", "--max", "0"], "MAX=0: these are dollars an hour"),
        (["--gpu", "H100", "--budget", "0"], "BUDGET=0: a rented machine costs money"),
        (["--gpu", "H100", "--budget", "nan"], "BUDGET=nan: a budget is dollars"),
        (["--gpu", "H100", "--profile", "smoke", "--budget", "1"], "may be more than the budget"),
        (["--gpu", "H100", "--profile", "smoke"], "this costs money. Say YES=1"),
        (["--gpu", "H100", "--profile", "smoke", "--data", "../x.json"], "gets this checkout"),
        (
            ["--gpu", "H100", "--profile", "smoke", "--set", "data.test=../x.csv"],
            "gets this checkout",
        ),
        (["--gpu", "H100", "--profile", "smoke", "--mmlu", "/data"], "gets this checkout"),
        (["--gpu", "H100", "--profile", "smoke", "--model", "path:~/m"], "gets this checkout"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2_and_nothing_is_rented(study, words, said):
    code, _, err = study(*words)
    assert code == 2 and said in err
    assert err.startswith("study: ") and err.count("\n") == 1
    assert study.sent == []


def test_dry_run_prints_plan_dollars_and_task_and_starts_nothing(study, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    code, out, err = study("--gpu", "H100:2", "--profile", "smoke", "--spot", "--dry-run")
    assert (code, err) == (0, "") and study.sent == []
    prices = rental.make_rental("H100", load_prices(), True, None, None)[1]
    assert f"${2 * 2 * prices.median:.2f}" in out
    task = yaml.safe_load(out[out.index("name: ") : out.index("Nothing was started")])
    assert task["resources"]["accelerators"] == "H100:2" and task["resources"]["use_spot"] is True
    assert task["run"].endswith("make reproduce PROFILE=smoke BUDGET=10 YES=1\n")
    assert task["secrets"] == {"HF_TOKEN": None} and TOKEN not in out


def test_own_data_without_a_profile_is_a_custom_study_there_too(study):
    words = ("--model", "ladder:0.4m", "--data", "almanac:new", "--keep", "none", "--dry-run")
    code, out, _ = study("--gpu", "H100", *words)
    assert code == 0 and out.startswith("profile custom: MODEL or DATA is your own\n")
    assert "PROFILE=custom MODEL=ladder:0.4m DATA=almanac:new KEEP=none BUDGET=10" in out


def test_yes_sends_the_order_and_the_token_only_through_the_environment(study, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    words = ("--gpu", "H100", "--profile", "smoke", "--seeds", "3", "--cloud", "Lambda")
    code, out, _ = study(*words, "--budget", "1", "--yes")
    (program, arguments, environment), *others = study.sent
    assert code == 0 and others == [] and program.endswith("tools/sky")
    assert TOKEN not in out + " ".join(arguments) and environment["HF_TOKEN"] == TOKEN
    order = json.loads(arguments[2])
    assert "PROFILE=smoke SEEDS=3 BUDGET=1 YES=1" in order["task"]["run"]
    assert re.fullmatch(r"smoke-[0-9a-f]{6}", order["folder"])
    assert f"mkdir -p results/{order['folder']}\n" in order["task"]["setup"]
    assert order["task"]["resources"]["infra"] == "lambda" and order["most_hours"] == 2.5
    assert Path(order["home"]) == Path.cwd() / "results" / order["folder"]


@pytest.mark.parametrize(("answer", "sent"), [("y\n", 1), ("n\n", 0), ("\n", 0), ("", 0)])
def test_at_a_terminal_only_a_y_rents(study, monkeypatch, answer, sent):
    class Terminal:
        isatty = staticmethod(lambda: True)
        readline = staticmethod(lambda: answer)

    monkeypatch.setattr(sys, "stdin", Terminal())
    code, out, _ = study("--gpu", "H100", "--profile", "smoke", "--budget", "1")
    assert code == 0 and len(study.sent) == sent
    assert "may be more than the budget of $1" in out and ("Nothing was started" in out) != bool(
        sent
    )


def test_missing_rsync_is_said_before_anything_costs_money(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "rsync" else name)
    with pytest.raises(StudyError, match="rsync: results come home through it"):
        cli_rent.check_tools()


def test_real_estimate_is_of_what_is_left_and_needs_neither_card_nor_network(tmp_path):
    gpu, profile = rental.find_gpu("h100-80gb"), read_profile("smoke")
    made = rental.estimate(profile, tmp_path, gpu, 1)
    assert made.runs and made.hours.low < made.hours.mid < made.hours.high < 2
    done = profile.runs()[-1]
    record_misfit(done, SimpleNamespace(reason="too large"), tmp_path / "runs" / done.run_id)
    left = rental.estimate(profile, tmp_path, gpu, 1)
    assert set(made.runs) - set(left.runs) == {done.run_id}


def test_finished_study_rents_nothing(study, monkeypatch):
    monkeypatch.setattr(rental, "estimate", lambda *asked: make_estimate(0.0, runs=0))
    code, out, _ = study("--gpu", "H100", "--profile", "smoke", "--yes")
    assert code == 0 and "nothing to rent for" in out and study.sent == []


# A machine's life


class FakeMachine:
    """Follows a script: what launches, job states, fetches and takedowns do, in order."""

    name = "study-fake"

    def __init__(self, states, launches=(), fetches=(), downs=()):
        self.script = {
            "job_state": list(states), "launch": list(launches), "fetch": list(fetches),
            "take_down": list(downs),
        }  # fmt: skip
        self.done = []

    def step(self, name, otherwise=None):
        result = self.script[name].pop(0) if self.script[name] else otherwise
        if isinstance(result, BaseException):
            raise result
        return result

    def launch(self):
        self.done.append("launch")
        return self.step("launch", 1)

    def follow(self, job):
        pass

    def job_state(self, job):
        return self.step("job_state")

    def fetch(self, checkpoints):
        self.done.append("fetch all" if checkpoints else "fetch")
        return self.step("fetch")

    def take_down(self):
        self.done.append("down")
        return self.step("take_down")


RUNS, GONE, FAILS, DONE = JobState.RUNNING, JobState.GONE, JobState.FAILED, JobState.SUCCEEDED


@pytest.fixture
def carry():
    """Carry a fake machine through; gives (exit code, what was said). Time passes by waiting."""

    def call(machine, **limits):
        passed, said = [0.0], []
        clock = Clock(
            now=lambda: passed[0],
            wait=lambda seconds: passed.__setitem__(0, passed[0] + seconds),
        )
        limits = Limits(**{"most_hours": 1.0, **limits})
        call.passed, call.said = passed, said
        return renting.carry_through(machine, limits, clock, said.append), "\n".join(said)

    return call


def test_finished_study_comes_home_and_the_machine_goes_down(carry):
    machine = FakeMachine([RUNS, RUNS, DONE])
    code, said = carry(machine)
    assert code == 0 and machine.done == ["launch", "fetch", "down"]
    assert "study-fake is down" in said


def test_failed_study_comes_home_with_its_checkpoints_and_the_machine_goes_down(carry):
    machine = FakeMachine([RUNS, FAILS])
    assert carry(machine)[0] == 1 and machine.done == ["launch", "fetch all", "down"]


def test_results_come_home_while_the_study_runs(carry):
    machine = FakeMachine([RUNS] * 40 + [DONE])  # 800 s
    carry(machine)
    assert machine.done == ["launch", "fetch", "fetch", "fetch", "down"]


def test_spot_machine_taken_away_twice_is_replaced_and_the_study_goes_on(carry):
    machine = FakeMachine([RUNS, GONE, GONE, RUNS, GONE, GONE, RUNS, DONE])
    code, said = carry(machine, spot=True)
    assert code == 0 and "taken away (2)" in said
    assert machine.done == ["launch", "down", "launch", "down", "launch", "fetch", "down"]


def test_spot_machine_is_waited_for_when_there_is_none(carry):
    machine = FakeMachine([GONE, GONE, DONE], [1, LaunchFailed("no capacity"), 2])
    code, said = carry(machine, spot=True)
    assert code == 0 and "no capacity; trying again in 5 minutes" in said
    assert machine.done.count("launch") == 3


def test_spot_results_come_home_with_checkpoints_so_that_another_machine_resumes(carry):
    machine = FakeMachine([RUNS] * 16 + [DONE])
    carry(machine, spot=True)
    assert machine.done == ["launch", "fetch all", "fetch", "down"]


def test_machine_on_demand_that_vanishes_is_not_replaced(carry):
    machine = FakeMachine([RUNS, GONE, GONE])
    assert carry(machine)[0] == 1 and machine.done == ["launch", "down"]


def test_machine_lost_from_sight_once_is_not_given_up(carry):
    machine = FakeMachine([RUNS, GONE, RUNS, JobState.UNKNOWN, GONE, DONE])
    assert carry(machine, spot=True)[0] == 0 and machine.done == ["launch", "fetch", "down"]


def test_broken_sync_is_tried_again(carry):
    machine = FakeMachine([DONE], fetches=[SyncFailed("broken pipe"), None])
    code, said = carry(machine)
    assert code == 0 and machine.done == ["launch", "fetch", "fetch", "down"]
    assert "broken pipe" in said and carry.passed[0] == 10


def test_machine_goes_down_though_nothing_comes_home(carry):
    machine = FakeMachine([DONE], fetches=[SyncFailed("no route")] * 9)
    code, said = carry(machine)
    assert machine.done[-1] == "down" and said.count("no route") == 4
    assert code == 1, "results that did not come home are no success"


@pytest.mark.parametrize("where", ["launch", "job_state"])
def test_ctrl_c_brings_results_home_and_takes_the_machine_down(carry, where):
    machine = FakeMachine([RUNS, DONE])
    machine.script[where].insert(0, KeyboardInterrupt())
    code, said = carry(machine)
    assert code == 130 and machine.done == ["launch", "fetch all", "down"]
    assert "stopped" in said


def test_second_ctrl_c_leaves_out_the_results_and_not_the_takedown(carry):
    machine = FakeMachine([KeyboardInterrupt()], fetches=[KeyboardInterrupt()])
    assert carry(machine)[0] == 130 and machine.done == ["launch", "fetch all", "down"]


def test_nothing_interrupts_the_takedown(carry):
    import signal

    class Interrupted(FakeMachine):
        def take_down(self):
            os.kill(os.getpid(), signal.SIGINT)
            super().take_down()

    machine = Interrupted([DONE])
    assert carry(machine)[0] == 0 and machine.done[-1] == "down"


def test_machine_that_cannot_be_had_leaves_nothing_behind(carry):
    machine = FakeMachine([], launches=[LaunchFailed("no capacity")])
    code, said = carry(machine)
    assert code == 1 and machine.done == ["launch", "down"] and "no capacity" in said


def test_takedown_is_tried_again_and_a_machine_left_up_is_said_loudly(carry):
    machine = FakeMachine([DONE], downs=[DownFailed("timeout"), None])
    assert carry(machine)[0] == 0 and machine.done[-2:] == ["down", "down"]
    machine = FakeMachine([DONE], downs=[DownFailed("timeout")] * 9)
    code, said = carry(machine)
    assert code == 1 and "study-fake MAY STILL COST MONEY" in said


def test_hours_agreed_on_end_the_rent_with_checkpoints_home(carry):
    machine = FakeMachine([RUNS] * 999)
    code, said = carry(machine, most_hours=0.5)
    assert code == 1 and "are used up" in said and 1800 <= carry.passed[0] < 1900
    assert machine.done[-2:] == ["fetch all", "down"]


def test_only_hours_that_a_machine_was_up_count(carry):
    states = [RUNS] * 60 + [GONE, GONE] + [RUNS] * 60 + [DONE]  # 20 minutes, twice
    waits = [1, *[LaunchFailed("no capacity")] * 20, 2]  # 100 minutes without a machine
    assert carry(FakeMachine(states, waits), spot=True, most_hours=1)[0] == 0


def test_bug_takes_the_machine_down_and_is_not_hidden(carry):
    machine = FakeMachine([ZeroDivisionError()])
    with pytest.raises(ZeroDivisionError):
        carry(machine)
    assert machine.done == ["launch", "fetch all", "down"]


def test_cap_below_every_known_offer_is_refused_and_spot_may_still_find_one():
    with pytest.raises(StudyError, match=r"MAX=0\.01: the cheapest offer known for H100:1 is \$"):
        rental.make_rental("H100:1", load_prices(), False, None, 0.01)
    assert rental.make_rental("H100:1", load_prices(), True, None, 0.01)[0].usd_cap == 0.01
