"""The command line: bad input is one message and exit code 2, and touches no earlier result."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from record_factory import Factory, make_spec
from waiting import LONG_SECONDS

from studylib.commands import cli, cli_options
from studylib.core.errors import StudyError
from studylib.core.files import lock_folder
from studylib.planning import plan
from studylib.running import runner
from studylib.running.executor import Failure, Outcome

ROOT = Path(__file__).parents[1]
GOOD = '{"instruction": "a", "input": "", "output": "b"}\n'


def files(folder):
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["plan", "--profile", "nope"], "nope: this is not a shipped profile"),
        (["plan", "--profile", "nope.yaml"], "nope.yaml: there is no such profile file"),
        (["plan", "--profile", "custom"], "it needs MODEL, DATA"),
        (["plan", "--profile", "custom", "--model", "x"], "it needs DATA"),
        (["plan", "--methods", "full,loar"], "loar: this is not a method. Did you mean lora"),
        (["plan", "--methods", "lora-r0"], "lora-r0: a rank is"),
        (["plan", "--methods", ","], "the list is empty"),
        (["plan", "--model", "gpt2"], "gpt2: a model is hub:ID"),
        (["plan", "--model", "ladder:9m"], "ladder:9m"),
        (["plan", "--seeds", "a,b"], "a,b: seeds are whole numbers"),
        (["plan", "--seeds=-1"], "seeds.0 = -1"),
        (["plan", "--steps", "0"], "train.steps = 0"),
        (["plan", "--limit", "0"], "evaluate.limit = 0"),
        (["plan", "--set", "train.stepz=3"], "train.stepz: this key is not known"),
        (["plan", "--set", "foo"], "foo: --set takes KEY=VALUE"),
        (["plan", "--set", "=3"], "=3: --set takes KEY=VALUE"),
        (["plan", "--set", "train..steps=3"], "--set takes KEY=VALUE"),
        (["plan", "--set", "train.steps={a"], "the value is not YAML"),
        (["plan", "--set", "name=2020-01-01"], "name: it should be a valid string"),
        (["plan", "--profile", "cpu", "--data", "none.json"], "none.json: the data file cannot be"),
        (["plan", "--mmlu", "none"], "none: there is no such folder of questions"),
        (["run", "NO_SUCH"], "NO_SUCH: profile cpu has no such run"),
        (["report"], "results/cpu: there are no results"),
        (["report", "--profile", "custom-qwen2.5-0.5b-1a2b"], "results/custom-qwen2.5-0.5b-1a2b"),
        (["publish", "--profile", "nope"], "results/nope: there are no results"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_on_stderr_and_exit_code_2(study, tmp_path, words, said):
    code, out, err = study(*words)
    assert code == 2 and out == ""
    assert err.startswith("study: ") and err.count("\n") == 1
    assert said in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words", [["nope"], ["run"], ["plan", "--steps", "many"], ["plan", "--nope"], []]
)
def test_wrong_usage_is_exit_code_2_without_a_traceback(study, words):
    code, out, err = study(*words)
    assert code == 2 and "Traceback" not in err
    assert "Usage" in out + err


def test_bad_data_file_stops_reproduce_before_it_makes_anything(study, tmp_path):
    (tmp_path / "data.jsonl").write_text(GOOD + '{"instruction": }\n')
    code, _, err = study("reproduce", "--profile", "smoke", "--data", "data.jsonl")
    assert code == 2 and "data.jsonl, line 2: this is not JSON" in err
    assert [p.name for p in tmp_path.iterdir()] == ["data.jsonl"]


def test_results_folder_that_cannot_be_written_stops_reproduce(study, tmp_path):
    (tmp_path / "file").write_text("mine")
    code, _, err = study("reproduce", "--profile", "smoke", "--results", "file")
    assert code == 2 and "file/smoke/runs: cannot be written" in err and "RESULTS=FOLDER" in err
    assert (tmp_path / "file").read_text() == "mine"


def test_second_study_in_one_folder_is_refused_and_disturbs_nothing(study, tmp_path):
    """Before, each failed the runs that the other one held."""
    with lock_folder(tmp_path / "results" / "smoke" / ".study", "study"):
        before = files(tmp_path)
        code, _, err = study("reproduce", "--profile", "smoke")
        assert code == 2 and "results/smoke: another process is working on this study" in err
        assert files(tmp_path) == before


def test_wrong_executor_is_named_before_any_money(study):
    code, _, err = study("reproduce", "--profile", "smoke", "--executor", "spark")
    assert code == 2 and err == "study: spark: this is not an executor. Write local or ray.\n"


def test_profile_nested_without_end_is_bad_input(study, tmp_path):
    (tmp_path / "deep.yaml").write_text("a: " + "[" * 5000 + "]" * 5000)
    code, _, err = study("plan", "--profile", "deep.yaml")
    assert code == 2 and err.count("\n") == 1 and "nested too deep" in err


def test_damaged_record_stops_every_command_and_stays_as_it_is(study, tmp_path):
    factory = Factory(tmp_path / "results" / "smoke", items=32)
    factory.add(make_spec("full", profile="smoke"))
    factory.add(make_spec("base", profile="smoke"))
    path = factory.folder / "runs" / "ladder-0.4m--full--s0" / "record.json"
    path.write_bytes(path.read_bytes()[:-20])
    before = files(tmp_path)
    for command in ("plan", "reproduce", "report"):
        code, _, err = study(command, "--profile", "smoke")
        assert code == 2 and "record.json: the record is truncated" in err
    assert files(tmp_path) == before


def test_records_made_with_other_settings_stop_reproduce(study, tmp_path):
    Factory(tmp_path / "results" / "smoke", items=32).add(make_spec("full", profile="smoke"))
    before = files(tmp_path)
    code, _, err = study("reproduce", "--profile", "smoke")
    assert code == 2 and "other settings than profile smoke has now" in err
    assert files(tmp_path) == before


def test_finished_run_is_not_run_again(study, tmp_path):
    Factory(tmp_path / "results" / "smoke", items=32).add(make_spec("base", profile="smoke"))
    code, _, err = study("run", "ladder-0.4m--base", "--profile", "smoke")
    assert code == 2 and "this run is finished" in err


def test_options_are_laid_over_the_profile_and_give_it_a_name(study):
    words = ("plan", "--profile", "smoke", "--json")
    code, out, _ = study(*words, "--seeds", "3,4", "--methods", "lora", "--set", "lora.rank=8")
    assert code == 0
    made = json.loads(out)
    assert [run["run_id"] for run in made["runs"]] == [
        "ladder-0.4m--base",
        "ladder-0.4m--lora-r8--s3",
        "ladder-0.4m--lora-r8--s4",
    ]
    assert made["profile"].startswith("smoke-") and made["results"].endswith(made["profile"])
    assert (
        json.loads(study(*words, "--steps", "9")[1])["profile"]
        == json.loads(study(*words, "--set", "train.steps=9")[1])["profile"]
    )


def test_plan_for_people_says_how_much_is_left(study):
    code, out, _ = study("plan", "--profile", "smoke")
    assert code == 0 and "4 of 4 runs left, 2 at a time" in out


def test_custom_study_is_planned_from_files_alone(study, tmp_path):
    from studylib.inputs.almanac import ladder_folder

    shutil.copytree(ladder_folder("0.4m"), tmp_path / "My Model")
    (tmp_path / "data.jsonl").write_text(GOOD)
    question = {"subject": "a", "question": "?", "choices": ["1", "2", "3", "4"], "answer": 0}
    (tmp_path / "mmlu").mkdir()
    (tmp_path / "mmlu" / "test.jsonl").write_text(json.dumps(question) + "\n")
    (tmp_path / "mmlu" / "dev.jsonl").write_text((json.dumps(question) + "\n") * 5)
    code, out, err = study(
        "plan", "--profile", "custom", "--model", "path:My Model", "--data", "data.jsonl",
        "--mmlu", "mmlu", "--methods", "full,qlora-r4", "--seeds", "0,1", "--steps", "2",
        "--limit", "1", "--json",
    )  # fmt: skip
    assert code == 0, err
    made = json.loads(out)
    assert made["profile"].startswith("custom-my-model-")
    assert "my-model--qlora-r4--s1" in [run["run_id"] for run in made["runs"]]


def test_interrupted_study_says_so_and_exits_with_130(study, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(plan, "check_inputs", interrupt)
    code, _, err = study("plan")
    assert code == 130 and "what is finished is kept" in err and "Traceback" not in err


def test_full_disk_is_one_message_and_another_fault_of_the_system_is_a_bug(study, monkeypatch):
    def fail(code):
        def failing(*_, **__):
            raise OSError(code, os.strerror(code), "results/cpu/x")

        return failing

    monkeypatch.setattr(plan, "check_inputs", fail(errno.ENOSPC))
    code, _, err = study("plan")
    assert code == 2 and err.startswith("study: results/cpu/x: the disk is full.")
    monkeypatch.setattr(plan, "check_inputs", fail(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        study("plan")


@pytest.mark.parametrize(
    ("message", "code", "said"),
    [(None, 1, "read results/smoke/log.txt"), ("x: is wrong. Mend it.", 2, "x: is wrong")],
)
def test_failed_run_is_named_with_what_to_read(study, monkeypatch, message, code, said):
    failure = Failure(Path("results/smoke/log.txt"), message)
    outcome = Outcome(failed={"a--full--s0": failure})
    monkeypatch.setattr(runner, "reproduce", lambda *_, **__: outcome)
    Path("results/smoke").mkdir(parents=True)
    got, _, err = study("reproduce", "--profile", "smoke")
    assert got == code
    assert f"a--full--s0 failed: {said}" in err


def test_failed_runs_on_a_full_disk_are_told_as_a_full_disk(study, monkeypatch):
    outcome = Outcome(failed={"a": Failure(Path("log.txt"), None)})
    monkeypatch.setattr(runner, "reproduce", lambda *_, **__: outcome)
    Path("results/smoke").mkdir(parents=True)
    usage = shutil.disk_usage(".")._replace(free=0)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    code, _, err = study("reproduce", "--profile", "smoke")
    assert code == 2 and "results/smoke: the disk is full" in err


def test_a_profile_file_knows_where_its_results_are(tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text(
        'name: mine\nmodels: [ladder:0.4m]\ndata: {source: "almanac:new"}\n'
        'evaluate: {questions: "almanac:new"}\ntrain: {steps: 1, seq_len: 8}\n'
    )
    assert cli_options.results_name(str(path)) == "mine"
    assert cli_options.results_name("custom-qwen2.5-0.5b-1a2b3c") == "custom-qwen2.5-0.5b-1a2b3c"
    assert cli_options.results_name(None) == cli_options.default_profile()


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("3", 3), ("[0, 1]", [0, 1]), ("a", "a"), ("true", True), ("", None)],
)
def test_values_of_set_are_read_as_yaml(text, value):
    assert cli_options.parse_value(text, f"k={text}") == value


def make(*words, **environ):
    """make with this Python first on the path, as in an active environment.

    The tests themselves may run under make, whose marks would make this one an inner make.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    outer = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    return subprocess.run(
        ["make", *words],
        cwd=ROOT, env={**outer, "PATH": path, **environ}, capture_output=True, text=True,
        timeout=LONG_SECONDS, check=False,
    )  # fmt: skip


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_passes_the_options_on_and_fails_with_the_command():
    done = make("plan", "PROFILE=smoke", "SEEDS=0'; echo x")
    assert done.returncode == 2
    assert "study: 0'; echo x: seeds are whole numbers" in done.stderr
    assert done.stdout == ""


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_alone_lists_its_targets_on_one_screen_and_runs_nothing():
    done = make()
    assert done.returncode == 0
    targets = [line for line in done.stdout.splitlines() if line.startswith("  make ")]
    assert {"reproduce", "test", "clean"} <= {line.split()[1] for line in targets}
    assert len(targets) <= 21


def test_machine_without_python_is_told_what_to_install(tmp_path):
    for tool in ("bash", "dirname", "env"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    done = subprocess.run(
        [ROOT / "tools" / "python", "-c", ""],
        env={"PATH": str(tmp_path), "STUDY_VENV": str(tmp_path / "venv")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "Python 3.11 or newer" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_error_is_value_rule_and_remedy():
    error = StudyError(Path("a"), "is wrong", "Mend it.")
    assert str(error) == "a: is wrong. Mend it." and error.exit_code == 2


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("verb", ["plan", "reproduce", "tune", "rent", "try", "card", "data"])
def test_make_hands_a_command_no_option_that_it_does_not_take(verb):
    given = shlex.split(
        "PROFILE=a MODEL=b DATA=c COLUMNS=d=e MMLU=f TASKS=g METHODS=h SEEDS=0 STEPS=1 LIMIT=1 "
        "KEEP=none MARGIN=5 SWEEP=0 ARTICLE=1 SET=i=1 BUDGET=10 YES=1 FORCE=1 EXTEND=2 "
        "EXECUTOR=ray RAY_ADDRESS=j GPU=H100:1 SPOT=1 CLOUD=k MAX=3 PRICES=l DRYRUN=1 "
        "RESULTS=m RUN=n PROMPT=o MINUTES=1 MODELS=p=q FROM=r"
    )
    line = ["make", "-n", "-s", "-C", str(ROOT), verb, *given]
    told = shlex.split(subprocess.run(line, capture_output=True, text=True, check=True).stdout)
    known = {name for p in typer.main.get_command(cli.app).commands[verb].params for name in p.opts}
    asked = {word for word in told[told.index(verb) :] if word.startswith("--")}
    assert asked and not asked - known


def test_the_four_commands_of_a_study_take_the_same_options():
    commands = typer.main.get_command(cli.app).commands
    taken = {name: {option for parameter in commands[name].params for option in parameter.opts}
             for name in ("plan", "reproduce", "tune", "rent")}  # fmt: skip
    shared = set.intersection(*taken.values())
    assert {"--profile", "--results", "--model", "--data", "--columns", "--mmlu", "--methods",
            "--seeds", "--steps", "--limit", "--set", "--keep"} <= shared  # fmt: skip
    assert "--budget" in taken["tune"] and "--gpu" in taken["rent"] - taken["reproduce"]
