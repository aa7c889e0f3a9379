"""Runs on a cluster's machines: a lost machine loses nothing, nothing is done or placed twice."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from halfway import Halfway, run_unbroken
from ray_nodes import start_nodes
from waiting import LONG_SECONDS, wait_for

from studylib.core.errors import StudyError
from studylib.core.sharing import leave_word, most_concurrent
from studylib.metering import environment
from studylib.running import ray_executor, ray_head, ray_worker, runner
from studylib.running.executor import Outcome, Task
from studylib.running.ray_desk import Desk
from studylib.running.ray_worker import Courier, Order, read_state
from studylib.schema.profile import read_profile
from studylib.schema.records import read_record, read_records
from studylib.schema.settings import Hardware

ROOT = Path(__file__).parents[1]
LORA, FULL = "ladder-0.4m--lora-r16--s0", "ladder-0.4m--full--s0"
SECRET = "hf_planted0in0the0tests"
DRIVER = """
import sys
from pathlib import Path
from studylib.running.executor import Outcome
from studylib.schema.profile import read_profile
from studylib.running.progress import Progress
from studylib.running.ray_executor import RayExecutor
from studylib.running.runner import run_task, write_profile
profile, outcome, progress = read_profile(sys.argv[1]), Outcome(), Progress()
results = Path(sys.argv[2]) / profile.name
(results / "runs").mkdir(parents=True)
file = write_profile(profile, results)
tasks = [run_task(s, file, results) for s in profile.runs() if s.method.kind.trains]
progress.begin_tasks(profile.name, len(tasks), None)
with RayExecutor(sys.argv[3]) as executor:
    executor(tasks, profile.hardware, progress, outcome)
print("finished", sorted(outcome.finished), "failed", outcome.failed)
"""


def write_profile(folder: Path, **changes) -> Path:
    content = {
        "name": "sent", "question": "Does a lost machine lose anything?",
        "models": ["ladder:0.4m"], "methods": ["full", "lora"],
        "hardware": {"jobs": 1, "threads": 1, "gpus": 0},
        "data": {"source": "almanac:new", "template": "plain", "facts": 64},
        "train": {"steps": 50, "seq_len": 128, "checkpoint_every": 10,
                  "learning_rates": {"full": 1e-3, "lora": 5e-3}},
        "evaluate": {"questions": "almanac:new", "scoring": "text", "shots": 0, "limit": 2},
        **changes,
    }  # fmt: skip
    path = folder / "sent.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def start(*words: str) -> subprocess.Popen:
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *words], env=environ, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip


@pytest.fixture
def halfway(monkeypatch, tmp_path) -> Halfway:
    """Runs on the cluster stop before they have written the checkpoint of step 30."""
    made = Halfway(tmp_path / "halfway", 30)
    monkeypatch.setenv("PYTHONPATH", made.python_path)
    return made


@pytest.fixture
def cluster(halfway):
    """Two nodes of one core; the driver belongs to the first."""
    pytest.importorskip("ray")
    with start_nodes(2) as made:
        yield made


def process_below(raylet: int, *run_ids: str) -> tuple[str, int] | None:
    """The first of these runs that a node's raylet has started: (its id, its process)."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            environ = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        started = words[1:4] == [b"-m", b"studylib", b"run"]
        if started and (run_id := words[4].decode()) in run_ids:
            parents = [v for v in environ if v.startswith(b"STUDY_PARENT_PID=")]
            if parent_of(int(parents[0].partition(b"=")[2])) == raylet:
                return run_id, int(folder.name)
    return None


def parent_of(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:  # it ended, as a run of some other study may
        return None


def test_run_of_a_lost_machine_goes_on_elsewhere_and_ends_as_an_unbroken_one(
    cluster, halfway, tmp_path, monkeypatch
):
    """kill -9 on a node in the middle of its run, once one of its checkpoints has come back."""
    profile = str(write_profile(tmp_path))
    monkeypatch.setenv("HF_TOKEN", SECRET)
    driver = start("-c", DRIVER, profile, str(tmp_path / "sent"), cluster.address)
    runs = tmp_path / "sent" / "sent" / "runs"
    node = cluster.worker_nodes.copy().pop()
    raylet = node.all_processes["raylet"][0].process.pid
    victim, pid = wait_for(lambda: process_below(raylet, LORA, FULL))
    wait_for(lambda: halfway.pid(LORA) and halfway.pid(FULL))
    wait_for(lambda: (runs / victim / "work" / "session.json").is_file())
    cluster.remove_node(node, allow_graceful=False)
    halfway.go_on()
    wait_for(lambda: not Path(f"/proc/{pid}").exists())
    assert not (runs / victim / "record.json").exists()
    whole = run_unbroken(profile, victim, tmp_path / "whole")

    out, _ = driver.communicate(timeout=LONG_SECONDS)
    assert driver.returncode == 0, out
    assert out.count("it is sent again") == 1 and out.count(": done in") == 2, out
    assert f"finished {sorted([LORA, FULL])} failed {{}}" in out, out
    records = {record.run_id: record for record in read_records(runs)}
    assert sorted(records) == sorted([LORA, FULL])
    for name, record in records.items():
        kept = ["adapter"] if name == LORA else []
        assert sorted(path.name for path in (runs / name).iterdir()) == [
            *kept, "executed.ipynb", "items.parquet", "log.txt", "record.json", "steps.parquet",
            "trace.parquet"]  # fmt: skip
        assert record.train.steps == 50
        assert record.environment.concurrent_runs == 2  # both nodes are this one machine
        assert record.environment.git_commit == environment.git_state()[0]
    resumed, other = records.pop(victim), next(iter(records.values()))
    assert resumed.environment.sessions == 2 and resumed.train.resumed_at_steps[0] in (10, 20)
    assert other.environment.sessions == 1 and other.train.resumed_at_steps == ()

    assert resumed.evaluate.scores == whole.evaluate.scores
    assert resumed.files["items.parquet"] == whole.files["items.parquet"]
    assert resumed.fingerprint == whole.fingerprint

    logs = Path(cluster.head_node.get_session_dir_path())
    written = [path for place in (logs, tmp_path) for path in place.rglob("*") if path.is_file()]
    assert any(path.name.startswith("raylet") for path in written)
    assert [path for path in written if SECRET.encode() in path.read_bytes()] == []


@pytest.mark.faults
def test_lost_head_is_one_message_and_the_study_goes_on_without_it(cluster, halfway, tmp_path):
    """SIGKILL of what a cluster hangs on, with a checkpoint of one run at home."""
    profile = str(write_profile(tmp_path, methods=["lora"]))
    study = ("-m", "studylib", "reproduce", "--yes", "--profile", profile,
             "--results", str(tmp_path / "sent"))  # fmt: skip
    runs = tmp_path / "sent" / "sent" / "runs"
    address = cluster.address
    driver = start(*study, "--executor", "ray", "--ray-address", address)
    pid = wait_for(lambda: halfway.pid(LORA))
    wait_for(lambda: (runs / LORA / "work" / "session.json").is_file())
    cluster.head_node.kill_gcs_server()
    out, _ = driver.communicate(timeout=LONG_SECONDS)
    assert driver.returncode == 2, out
    last = out.strip().splitlines()[-1]
    assert last.startswith(f"study: {address}: the cluster's head is lost"), out
    assert "Traceback" not in out
    halfway.go_on()
    wait_for(lambda: not Path(f"/proc/{pid}").exists())

    again = start(*study)
    out, _ = again.communicate(timeout=LONG_SECONDS)
    assert again.returncode == 0, out
    assert read_record(runs / LORA / "record.json").train.resumed_at_steps[0] in (10, 20)


SLEEPER = """
import os, sys, time
from pathlib import Path
if sys.orig_argv[1:4] == ["-m", "studylib", "run"]:
    begun = time.time()
    time.sleep(3)
    record = Path("results/sent/runs", sys.orig_argv[4], "record.json")
    record.write_text(f"[{begun}, {time.time()}]")
    os._exit(0)
"""


def test_a_machine_has_no_more_runs_at_once_than_cores(tmp_path, monkeypatch):
    """A run often asks its desk; Ray lends a task's cores to others while it waits in get."""
    pytest.importorskip("ray")
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "sitecustomize.py").write_text(SLEEPER)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'code'}{os.pathsep}{ROOT}")
    profile, results = write_profile(tmp_path), tmp_path / "results"
    with start_nodes(1) as made:
        driver = start("-c", DRIVER, str(profile), str(results), made.address)
        out, _ = driver.communicate(timeout=LONG_SECONDS)
    found = [json.loads(path.read_text()) for path in results.rglob("record.json")]
    assert len(found) == 2, out
    assert all(end <= begun for (_, end), (begun, _) in pairwise(sorted(found)))


def order_for(task_id="a", attempt=1, words=()) -> Order:
    return Order(task_id, attempt, words, "results/p/runs/a", "record.json", 1, 0, {})


def open_desk(folder: Path, *names: str, files=None) -> Desk:
    desk = Desk()
    for name in names or ("a",):
        assert desk.expect(name, str(folder / name), "record.json", f"results/p/runs/{name}",
                           {n: str(p) for n, p in (files or {}).items()}) is None  # fmt: skip
    return desk


def ask_of(desk: Desk):
    return lambda method, *args: getattr(desk, method)(*args)


def save_state(work: Path, step: int, whole: bool = True) -> None:
    checkpoint = work / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(os.urandom(100))
    (work / "samples-1.parquet").write_bytes(os.urandom(50))
    if whole:
        (checkpoint / "trainer_state.json").write_text("{}")
    (work / "session.json").write_text(json.dumps({"steps": [0] * step}))


def below(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*")
            if p.is_file() and p.name != "lock"}  # fmt: skip


def test_state_arrives_whole_and_older_checkpoints_go(tmp_path):
    desk = open_desk(tmp_path / "home")
    courier = Courier(order_for(), ask_of(desk), tmp_path / "there")
    work, arrived = tmp_path / "there" / "work", tmp_path / "home" / "a" / "work"
    assert courier.send_state() and below(arrived) == {}
    save_state(work, 10)
    assert courier.send_state() and below(arrived) == below(work)
    save_state(work, 20)
    shutil.rmtree(work / "checkpoint-10")
    assert courier.send_state() and below(arrived) == below(work)
    assert not (arrived / "checkpoint-10").exists()

    assert desk.leave("a") == (2, True)
    for name, size in desk.begin("a", 2, "another machine"):
        ray_worker.fetch_file(
            order_for(attempt=2), ask_of(desk), name, size, tmp_path / "elsewhere"
        )
    assert below(tmp_path / "elsewhere/results/p/runs/a/work") == below(work)


def test_state_that_is_being_written_is_not_taken(tmp_path):
    assert read_state(tmp_path) is None
    save_state(tmp_path, 10)
    save_state(tmp_path, 20, whole=False)
    assert {name.split("/")[0] for name in read_state(tmp_path).large} == {"checkpoint-10"}
    (tmp_path / "samples-1.parquet").write_bytes(b"half")
    saved = (tmp_path / "session.json").stat().st_mtime_ns
    os.utime(tmp_path / "samples-1.parquet", ns=(saved + 1, saved + 1))
    assert read_state(tmp_path) is None


def test_checkpoint_that_is_ahead_of_the_steps_is_not_taken(tmp_path):
    save_state(tmp_path, 20)
    save_state(tmp_path, 10)
    assert {name.split("/")[0] for name in read_state(tmp_path).large} == {"checkpoint-10"}


def test_run_that_saves_while_its_state_is_sent_sends_the_one_that_was_read(tmp_path):
    """Else a run that saves more often than a state takes to be sent would send none."""
    desk = open_desk(tmp_path / "home")
    work = tmp_path / "there" / "work"

    def ask(method, *args):
        if method == "write" and "model" in args[2] and not (work / "checkpoint-20").exists():
            save_state(work, 20)
        return getattr(desk, method)(*args)

    courier = Courier(order_for(), ask, tmp_path / "there")
    save_state(work, 10)
    first = below(work)
    assert courier.send_state() and below(tmp_path / "home/a/work") == first
    shutil.rmtree(work / "checkpoint-10")
    assert courier.send_state() and below(tmp_path / "home/a/work") == below(work)


def test_checkpoint_that_is_cleared_away_while_it_is_sent_leaves_the_earlier_state(tmp_path):
    desk = open_desk(tmp_path / "home")
    work = tmp_path / "there" / "work"

    def ask(method, *args):
        if method == "write" and "checkpoint-20" in args[2]:
            shutil.rmtree(work / "checkpoint-20", ignore_errors=True)
        return getattr(desk, method)(*args)

    courier = Courier(order_for(), ask, tmp_path / "there")
    save_state(work, 10)
    assert courier.send_state()
    first = below(work)
    save_state(work, 20)
    assert courier.send_state()
    arrived = below(tmp_path / "home/a/work")
    assert {n: c for n, c in arrived.items() if not n.startswith(".incoming")} == first


def test_state_that_is_too_large_stays_and_the_log_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(ray_worker, "LARGEST_STATE_BYTES", 10)
    desk = open_desk(tmp_path / "home")
    courier = Courier(order_for(), ask_of(desk), tmp_path / "there")
    for step in (10, 20):
        save_state(tmp_path / "there" / "work", step)
        assert courier.send_state()
    assert below(tmp_path / "home/a/work") == {}
    assert (tmp_path / "home/a/log.txt").read_text().count("too large") == 1


def test_worker_that_was_given_up_delivers_nothing(tmp_path):
    desk = open_desk(tmp_path)
    assert desk.begin("a", 1, "m") == []
    assert desk.write("a", 1, "record.json", 0, b"first")
    assert desk.leave("a") == (2, False)
    assert desk.begin("a", 1, "m") is None
    assert desk.report("a", 1, {}, b"late") is None
    assert not desk.write("a", 1, "record.json", 0, b"late")
    assert not desk.keep("a", 1, []) and not desk.deliver("a", 1, ["record.json"])
    assert not (tmp_path / "a" / "record.json").exists()


def test_result_is_placed_once_and_its_work_goes(tmp_path):
    desk = open_desk(tmp_path)
    for name in ("record.json", "items.parquet"):
        assert desk.write("a", 1, name, 0, name.encode())
    assert desk.deliver("a", 1, ["record.json", "items.parquet"])
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "items.parquet", "log.txt", "record.json"]  # fmt: skip
    assert desk.write("a", 1, "record.json", 0, b"again")
    assert not desk.deliver("a", 1, ["record.json"])
    assert (tmp_path / "a" / "record.json").read_text() == "record.json"


def test_file_that_leads_out_of_the_run_is_refused(tmp_path):
    desk = open_desk(tmp_path)
    with pytest.raises(ValueError, match="leads out"):
        desk.write("a", 1, "../../../b/record.json", 0, b"x")


def test_run_that_another_process_holds_is_not_sent(tmp_path):
    desk = open_desk(tmp_path)
    assert "another process" in Desk().expect("a", str(tmp_path / "a"), "record.json", "x", {})
    desk.close("a")
    assert Desk().expect("a", str(tmp_path / "a"), "record.json", "x", {}) is None


def test_runs_know_how_many_were_on_their_machine_at_once(tmp_path):
    desk = open_desk(tmp_path, "a", "b", "c", "d")
    for name, machine in (("a", "m1"), ("b", "m1"), ("c", "m2")):
        desk.begin(name, 1, machine)
    desk.leave("a")
    desk.begin("d", 1, "m1")
    shared = {name: desk.report(name, 1, {}, b"") for name in ("b", "c", "d")}
    assert shared == {"b": 2, "c": 1, "d": 2}
    desk.begin("a", 2, "m2")
    assert desk.report("a", 2, {}, b"") == 2 and desk.report("c", 1, {}, b"") == 2


def test_record_takes_the_largest_number_that_was_seen(tmp_path):
    assert most_concurrent(tmp_path, 3) == 3
    for runs in (2, 4, 1):
        leave_word(tmp_path, runs)
    assert most_concurrent(tmp_path, 1) == 4 and most_concurrent(tmp_path, 5) == 5


FAKE_RUN = """
import os, sys, time
from pathlib import Path
folder = Path("results/p/runs/a")
text = Path("../../data.json").read_text() + Path("results/p/profile.yaml").read_text()
print("seen", os.environ["HF_ENDPOINT"], flush=True)
time.sleep(float(sys.argv[1]))
(folder / "items.parquet").write_text(text)
(folder / "record.json").write_text("{}")
"""


def carry_out_fake(monkeypatch, tmp_path, seconds, ask=None):
    (tmp_path / "data.json").write_text("data ")
    (tmp_path / "profile.yaml").write_text("profile")
    files = {"../../data.json": tmp_path / "data.json",
             "results/p/profile.yaml": tmp_path / "profile.yaml"}  # fmt: skip
    desk = open_desk(tmp_path / "home", files=files)
    started = []

    def launch(words, folder, threads, environ, cwd):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "log.txt").open("ab") as log:
            started.append(subprocess.Popen([sys.executable, "-c", FAKE_RUN, *words], cwd=cwd,
                                            env={**os.environ, **environ}, stdout=log))  # fmt: skip
        return started[0]

    monkeypatch.setattr(ray_worker, "launch", launch)
    order = Order("a", 1, (str(seconds),), "results/p/runs/a", "record.json", 1, 0,
                  {"HF_ENDPOINT": "here"})  # fmt: skip
    ask = ask or (lambda desk, *words: ask_of(desk)(*words))
    try:
        return ray_worker.carry_out(order, lambda *words: ask(desk, *words), 1)
    finally:
        assert started[0].poll() is not None


def test_worker_fetches_inputs_and_brings_log_and_result_home(monkeypatch, tmp_path):
    assert carry_out_fake(monkeypatch, tmp_path, 0.5) == 0
    assert (tmp_path / "home/a/items.parquet").read_text() == "data profile"
    assert (tmp_path / "home/a/record.json").read_text() == "{}"
    assert (tmp_path / "home/a/log.txt").read_text() == "seen here\n"


@pytest.mark.parametrize("end", ["cancelled", "given up"])
def test_worker_that_is_stopped_ends_its_run(monkeypatch, tmp_path, end):
    def ask(desk, method, *words):
        if method == "report" and end == "cancelled":
            raise KeyboardInterrupt
        return None if method == "report" else ask_of(desk)(method, *words)

    if end == "cancelled":
        with pytest.raises(KeyboardInterrupt):
            carry_out_fake(monkeypatch, tmp_path, 60, ask)
    else:
        assert carry_out_fake(monkeypatch, tmp_path, 60, ask) == ray_worker.STALE
    assert not (tmp_path / "home/a/record.json").exists()


def test_folders_of_killed_workers_are_cleared_away_and_no_others(tmp_path, monkeypatch):
    import fcntl

    monkeypatch.setattr(ray_worker, "YOUNG_SECONDS", -1.0)
    for name in ("study-run-dead", "study-run-alive", "another"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "held").touch()
    with (tmp_path / "study-run-alive" / "held").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        ray_worker.clear_abandoned(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["another", "study-run-alive"]


def test_machine_without_the_packages_says_what_to_do(monkeypatch, tmp_path):
    desk = open_desk(tmp_path)
    monkeypatch.setattr(ray_worker, "version", no_package)
    assert ray_worker.carry_out(order_for(), ask_of(desk), 1) == 2
    failure = runner_failure(tmp_path / "a", 2)
    assert "lacks" in failure and "torch" in failure and "make setup" in failure


def no_package(name):
    raise ray_worker.PackageNotFoundError(name)


def runner_failure(folder: Path, exit_code: int) -> str:
    from studylib.running.executor import explain_failure

    return explain_failure(folder, exit_code).message or ""


def make_task(tmp_path: Path, **changes) -> Task:
    results = tmp_path / "results"
    folder = results / "p" / "runs" / "a"
    given = {"task_id": "a", "words": ("run", "a"), "folder": folder,
             "result": folder / "record.json", "profile": str(results / "p" / "profile.yaml"),
             "results": results}  # fmt: skip
    return Task(**{**given, **changes})


def test_workers_are_told_places_of_their_own(tmp_path):
    order = ray_executor.make_order(make_task(tmp_path, gpus=2), 3, {"A": "b"})
    assert order.words == ("run", "a", "--profile", "results/p/profile.yaml",
                           "--results", "results", "--jobs", "1")  # fmt: skip
    assert (order.folder, order.result) == ("results/p/runs/a", "record.json")
    assert (order.cpus, order.gpus, order.attempt) == (3, 2, 1)


def test_relative_inputs_are_sent_and_others_left_where_they_are(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "model" / "deep").mkdir(parents=True)
    (tmp_path / "model" / "deep" / "weights").write_text("w")
    monkeypatch.chdir(tmp_path / "here")
    task = make_task(tmp_path, inputs=("../model",),
                     needs=(tmp_path / "results/p/runs/base/items.parquet",))  # fmt: skip
    files = ray_executor.files_to_send(task)
    assert sorted(files) == ["../model/deep/weights", "results/p/profile.yaml",
                             "results/p/runs/base/items.parquet"]  # fmt: skip
    assert all(Path(path).is_absolute() for path in files.values())
    with pytest.raises(StudyError, match="at most 4 folders above"):
        ray_executor.files_to_send(make_task(tmp_path, inputs=("../../../../../x",)))


def test_run_reserves_threads_and_cards_and_one_that_fits_nowhere_is_refused(tmp_path):
    machines = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 4.0}]
    cpus = ray_executor.cpus_of_run
    assert cpus(0, Hardware(jobs=2, gpus=0), machines) == 2
    assert cpus(1, Hardware(jobs=2), machines) == 1
    assert cpus(1, Hardware(jobs=2, threads=5), machines) == 5
    ray_executor.refuse_unplaceable(make_task(tmp_path, gpus=2), 8, machines)
    with pytest.raises(StudyError, match="3 cards; those of the cluster have 8 and 2, 4 and 0"):
        ray_executor.refuse_unplaceable(make_task(tmp_path, gpus=3), 1, machines)


def test_what_cannot_be_reached_is_refused_in_one_message(monkeypatch):
    with pytest.raises(StudyError, match="not through Ray's client"):
        ray_executor.RayExecutor("ray://head:10001")
    with pytest.raises(StudyError, match="ray start --head"):
        ray_head.refuse_silent("127.0.0.1:9")
    with pytest.raises(StudyError, match="local or ray"):
        runner.open_executor("slurm")
    monkeypatch.setattr(ray_executor.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StudyError, match=r"pip install -e '\.\[ray\]'"):
        runner.open_executor("ray")


def test_study_sends_everything_at_once_and_forecasts_nothing_for_other_machines(tmp_path):
    """The machine at hand says nothing of those that the runs go to."""
    from studylib.running.progress import Progress

    changes = {"serve": {}, "hardware": {"gpus": 2}, "train": {"accumulation": 2}}
    profile = read_profile("smoke", {**changes, "methods": ["full", "lora"]})
    sent = []

    def execute(tasks, hardware, progress, outcome: Outcome):
        sent.append(tasks)

    runner.reproduce(profile, tmp_path / profile.name, Progress(), executor=execute)
    (tasks,) = sent
    assert [task.words[0] for task in tasks[:4]] == ["run", "run", "run", "serve"]
    assert [task.gpus for task in tasks[:4]] == [1, 2, 2, 1]
    assert tasks[0].task_id == "ladder-0.4m--base"


def test_code_without_its_history_has_the_commit_that_its_sender_told(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "secret")
    told = ray_executor.environ_to_send()
    commit, dirty = environment.git_state()
    if commit is None:
        pytest.skip("needs a git checkout")
    assert told["HF_TOKEN"] == "secret"
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(environment, "PACKAGE", tmp_path)
    assert environment.git_state() == (commit, dirty)
    monkeypatch.delenv(environment.COMMIT_VARIABLE)
    assert environment.git_state() == (None, None)


def test_a_copy_on_top_of_an_older_checkout_has_the_commit_that_its_sender_told(monkeypatch):
    monkeypatch.setenv(environment.COMMIT_VARIABLE, "c" * 40)
    monkeypatch.setenv(environment.DIRTY_VARIABLE, "0")
    assert environment.git_state() == ("c" * 40, False)
