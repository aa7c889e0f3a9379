"""SkyPilot itself reads the task and takes the calls; its Python is made by tools/sky, once."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_rent import ROOT, TOKEN, make_task

from studylib.running import rental

SCENES = Path(__file__).with_name("sky_scene.py")
NO_REGISTRY = re.compile(r"from versions: none|NewConnectionError|timed out|Temporary failure")
# A remote shell that is here: it drops the host's name and works in the folder REMOTE.
LOCAL_SHELL = '#!/bin/bash\nshift\ncd "$REMOTE" && exec bash -c "$*"\n'
# For where rsync is not installed: copies a folder, and nothing else.
PLAIN_COPY = '#!/bin/bash\nargs=("$@")\ncp -r "$REMOTE/${args[-2]#*:}." "${args[-1]}"\n'


def run_sky(*words, **more):
    environment = {**os.environ, "STUDY_PYTHON": sys.executable, **more.pop("env", {})}
    return subprocess.run(
        [ROOT / "tools" / "sky", *map(str, words)],
        capture_output=True, text=True, check=False, env=environment, **more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def sky(tmp_path_factory):
    """Call a scene in SkyPilot's Python, with a home folder of its own; gives (answer, output)."""
    made = run_sky("-c", "pass")
    if made.returncode and NO_REGISTRY.search(made.stderr):
        pytest.skip("no registry to install SkyPilot from: " + made.stderr.splitlines()[-1])
    assert made.returncode == 0, made.stderr

    def call(scene, text, **env):
        env = {"HOME": str(tmp_path_factory.mktemp("home")), **env}
        done = run_sky(SCENES, scene, input=text, env=env)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1]), done.stdout + done.stderr

    return call


def test_skypilot_reads_what_was_asked_for(sky, tmp_path):
    (tmp_path / "results" / "smoke" / "runs").mkdir(parents=True)
    task = make_task(tmp_path, "A100-80GB:8", spot=True, cloud="lambda", SET="a=1 b=2")
    read, _ = sky("parse", rental.to_yaml(task))
    assert read["version"] == "0.14.1"
    assert read["accelerators"] == {"A100-80GB": 8} and read["spot"] is True
    assert read["cloud"] == "Lambda" and read["disk"] == 100
    assert read["cap"] == task["resources"]["max_hourly_cost"]
    assert read["autostop"] == [True, rental.IDLE_MINUTES, True, "jobs"]
    assert read["workdir"] == str(ROOT)
    assert (read["setup"], read["run"]) == (task["setup"], task["run"])
    assert read["mounts"] == task["file_mounts"]
    assert set(rental.CLOUDS) <= set(read["extras"])


def test_task_without_options_is_read_too(sky, tmp_path):
    read, _ = sky("parse", rental.to_yaml(make_task(tmp_path, "L4", token=False)))
    assert read["accelerators"] == {"L4": 1} and read["spot"] is False and not read["mounts"]


def test_checkout_travels_without_environments_and_other_results(sky, tmp_path):
    if shutil.which("git") is None:
        pytest.skip("needs git")
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    shutil.copy(ROOT / ".gitignore", tmp_path)
    stays = [".venv", ".venv-sky", "results/gpu", "studylib/__pycache__"]
    travels = ["results/reference", "studylib/profiles", "tools"]
    for name in stays + travels:
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").touch()
    left_out, _ = sky("exclude", str(tmp_path))
    assert sorted(left_out) == sorted(f"{name}/" for name in stays)


@pytest.fixture
def remote(tmp_path):
    """Environment of a scene whose machine is a folder here, reached by a shell that is no ssh."""
    folder, tools = tmp_path / "remote", tmp_path / "tools"
    folder.mkdir()
    tools.mkdir()
    programs = {"shell": LOCAL_SHELL}
    if shutil.which("rsync") is None:
        programs["rsync"] = PLAIN_COPY
    for name, script in programs.items():
        (tools / name).write_text(script)
        (tools / name).chmod(0o755)
    path = f"{tools}:{os.environ['PATH']}"
    return {"REMOTE": str(folder), "PATH": path, "RSYNC_RSH": str(tools / "shell")}


def make_order(tmp_path):
    home = tmp_path / "results" / "smoke"
    return json.dumps({"name": "study-smoke", "task": make_task(tmp_path), "home": str(home)})


def test_closed_terminal_brings_results_home_and_takes_the_machine_down(sky, tmp_path, remote):
    left, output = sky("hang_up", make_order(tmp_path), HF_TOKEN=TOKEN, **remote)
    assert left["code"] == 130 and left["up"] is False
    assert left["home"] == [str(Path("runs", "a", "work", "checkpoint"))], output
    assert left["inherited"] is None, "SkyPilot's server would keep the token"


def test_spot_rental_resumes_on_a_second_machine_and_no_token_shows(sky, tmp_path, remote):
    played, output = sky("play", make_order(tmp_path), HF_TOKEN=TOKEN, **remote)
    assert played["code"] == 0 and played["resumed"] == "step 50" and not played["up"]
    assert played["calls"].count("launch") == 2 and played["calls"].count("down") == 1
    assert played["calls"].count("sky status study-smoke") == 2
    assert "runs/a/record.json" in played["home"]
    # SkyPilot has the token as a secret and nowhere else; what it shows and keeps is without it.
    assert played["secrets"] == [True, True] and played["envs"] == [{}, {}]
    assert all(shown["secrets"] == {"HF_TOKEN": None} for shown in played["shown"])
    assert "the log shows ***" in output and TOKEN not in output
    holding = [p for p in tmp_path.rglob("*") if p.is_file() and TOKEN.encode() in p.read_bytes()]
    assert holding == []
