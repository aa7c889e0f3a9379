"""Scenes that SkyPilot's own Python plays for test_rent_sky.py, which names one of them.

Each prints one line of JSON at its end. Calls of SkyPilot are checked against the signatures of the
installed version; nothing is sent anywhere.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
import shutil
import signal
import sys
from importlib.metadata import metadata
from pathlib import Path

import sky
from sky.data.storage_utils import get_excluded_files

from studylib.planning.renting import Limits, carry_through
from tools import sky_machine

TOKEN = os.environ.get("HF_TOKEN")


def parse() -> dict:
    """What SkyPilot reads in the task given on stdin, and which providers it has packages for."""
    text = sys.stdin.read()
    task = sky.Task.from_yaml_str(text)
    (resources,) = task.resources
    stop = resources.autostop_config
    return {
        "version": sky.__version__,
        "accelerators": resources.accelerators,
        "spot": resources.use_spot,
        "disk": resources.disk_size,
        "cloud": str(resources.infra.cloud),
        "cap": resources.max_hourly_cost,
        "autostop": [stop.enabled, stop.idle_minutes, stop.down, stop.wait_for.value],
        "workdir": task.workdir,
        "setup": task.setup,
        "run": task.run,
        "mounts": task.file_mounts,
        "extras": metadata("skypilot").get_all("Provides-Extra"),
    }


def exclude() -> list[str]:
    """What SkyPilot leaves out when it sends the folder that stdin names."""
    return get_excluded_files(sys.stdin.read())


class Cloud:
    """Spot machines in a folder: the first is taken away while it works, the second finishes."""

    def __init__(self, remote: Path, first: list | None = None):
        running = {1: sky.JobStatus.RUNNING}
        self.remote, self.tasks, self.calls = remote, [], []
        self.answers = first or [running, running, None, None]
        self.up = False
        for name in ("launch", "down", "status", "job_status", "tail_logs", "get", "api_cancel"):
            self.replace(name, getattr(self, name))
        self.replace("stream_and_get", self.get)

    def replace(self, name, fake):
        signature = inspect.signature(getattr(sky, name))

        @functools.wraps(fake)
        def checked(*arguments, **named):
            signature.bind(*arguments, **named)
            self.calls.append(name)
            return fake(*arguments, **named)

        setattr(sky, name, checked)

    def launch(self, task, cluster_name):
        self.tasks.append(task)
        self.inherited = os.environ.get("HF_TOKEN")
        self.up = True
        results = self.remote / "sky_workdir" / "results" / "smoke"
        results.mkdir(parents=True)
        for target, source in (task.file_mounts or {}).items():
            shutil.copytree(source, self.remote / target.removeprefix("~/"), dirs_exist_ok=True)
        if len(self.tasks) == 1:
            work = results / "runs" / "a" / "work"
            work.mkdir(parents=True)
            (work / "checkpoint").write_text("step 50")
        else:
            self.resumed = (results / "runs" / "a" / "work" / "checkpoint").read_text()
            (results / "runs" / "a" / "record.json").write_text("{}")
            self.answers = [{1: sky.JobStatus.SETTING_UP}, {1: sky.JobStatus.SUCCEEDED}]
        return (1, None)

    def job_status(self, cluster_name, job_ids):
        answer = self.answers.pop(0)
        if isinstance(answer, signal.Signals):
            os.kill(os.getpid(), answer)
            return {1: sky.JobStatus.RUNNING}
        if answer is None:
            if self.up:
                shutil.rmtree(self.remote / "sky_workdir")
            self.up = False
            raise sky.exceptions.ClusterNotUpError("gone", cluster_status=None)
        return answer

    def status(self, cluster_names, refresh=None):
        return [{"status": sky.ClusterStatus.UP}] if self.up else []

    def down(self, cluster_name):
        self.up = False

    def tail_logs(self, cluster_name, job_id, follow, tail, output_stream):
        output_stream.write(f"the log shows {TOKEN}\n")
        return 0

    def api_cancel(self, request_ids, silent):
        return []

    def get(self, request_id):
        return request_id


def play() -> dict:
    """A spot rental from its launch to its end; the order comes on stdin, the cloud in REMOTE."""
    order = json.load(sys.stdin)
    cloud = Cloud(Path(os.environ["REMOTE"]))
    home = Path(order["home"])
    machine = sky_machine.SkyMachine(order["name"], order["task"], "smoke", home, TOKEN)
    machine.sky_command = lambda *words: cloud.calls.append("sky " + " ".join(words))
    limits = Limits(1.0, spot=True, poll_seconds=0, sync_seconds=0, relaunch_wait_seconds=0)
    code = carry_through(machine, limits)
    return {
        "code": code,
        "calls": cloud.calls,
        "up": cloud.up,
        "resumed": cloud.resumed,
        "secrets": [t.secrets["HF_TOKEN"].get_secret_value() == TOKEN for t in cloud.tasks],
        "shown": [t.to_yaml_config(use_user_specified_yaml=True) for t in cloud.tasks],
        "envs": [t.envs for t in cloud.tasks],
        "home": sorted(str(p.relative_to(home)) for p in home.rglob("*") if p.is_file()),
    }


def hang_up() -> dict:
    """The terminal is closed while the study runs."""
    order = json.load(sys.stdin)
    cloud = Cloud(Path(os.environ["REMOTE"]), [signal.SIGHUP])
    sky_machine.SkyMachine.sky_command = lambda *words: None
    code = sky_machine.main({**order, "folder": "smoke", "most_hours": 1.0, "spot": False})
    home = Path(order["home"])
    found = sorted(str(p.relative_to(home)) for p in home.rglob("*") if p.is_file())
    return {"code": code, "up": cloud.up, "home": found, "inherited": cloud.inherited}


if __name__ == "__main__":
    scenes = {"parse": parse, "exclude": exclude, "play": play, "hang_up": hang_up}
    print(json.dumps(scenes[sys.argv[1]]()))
