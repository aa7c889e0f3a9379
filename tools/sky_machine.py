"""A machine rented through SkyPilot, carried through a study. Run by tools/sky, never imported.

`tools/sky tools/sky_machine.py ORDER`: ORDER is JSON, the order that studylib.running.rental makes.
The hub's token is read from HF_TOKEN and goes to the machine as a SkyPilot secret; it is in no
argument, no file of ours, and is blotted out where a log would show it.

Not covered: when what happens, and what to do when it fails (studylib.planning.renting).
"""

from __future__ import annotations

import copy
import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

# SkyPilot reports each use, with the task, to its makers unless this is set.
os.environ.setdefault("SKYPILOT_DISABLE_USAGE_COLLECTION", "1")

import requests
import sky

from studylib.planning.renting import (
    REMOTE_CHECKOUT,
    DownFailed,
    JobState,
    LaunchFailed,
    Limits,
    SyncFailed,
    carry_through,
    with_results,
)

# SkyPilot's errors share no ancestor; sky.get also raises RuntimeError, tasks ValueError.
SKY_ERRORS = (
    *(e for e in vars(sky.exceptions).values() if isinstance(e, type) and issubclass(e, Exception)),
    requests.exceptions.RequestException,
    RuntimeError,
    ValueError,
)
LOG_LINES_AFTER_A_BREAK = 10
RSYNC_TIMEOUT_SECONDS = 300
RSYNC_VANISHED = 24  # files went while they were copied: a checkpoint was replaced


class SkyMachine:
    """One SkyPilot cluster of one machine."""

    def __init__(self, name: str, task: dict, folder: str, home: Path, token: str | None):
        self.name, self.task, self.folder, self.home = name, task, folder, home
        self.token = token
        self.request: str | None = None  # a launch that has not ended
        self.log: threading.Thread | None = None

    def launch(self) -> int:
        task = with_results(copy.deepcopy(self.task), self.home, self.folder)
        secrets = [("HF_TOKEN", self.token)] if self.token else None
        try:
            made = sky.Task.from_yaml_config(task, secrets_overrides=secrets)
            self.request = sky.launch(made, cluster_name=self.name)
            job, _ = sky.stream_and_get(self.request)
            self.request = None
        except SKY_ERRORS as error:
            raise LaunchFailed(self.blot(describe(error))) from error
        if job is None:
            raise LaunchFailed("SkyPilot started no job")
        # `sky status` writes the address into ~/.ssh/config, so that rsync finds the machine.
        self.sky_command("status", self.name)
        self.log = None
        return job

    def follow(self, job: int) -> None:
        if self.log is None or not self.log.is_alive():
            lines = 0 if self.log is None else LOG_LINES_AFTER_A_BREAK
            self.log = threading.Thread(target=self.show_log, args=(job, lines), daemon=True)
            self.log.start()

    def show_log(self, job: int, lines: int) -> None:
        shown = Blotted(sys.stdout, self.token)
        try:
            sky.tail_logs(self.name, job, follow=True, tail=lines, output_stream=shown)
        except SKY_ERRORS as error:
            print(f"rent: the log broke off: {self.blot(describe(error))}")

    def job_state(self, job: int) -> JobState:
        try:
            answer = sky.get(sky.job_status(self.name, [job]))
        except SKY_ERRORS:
            return self.machine_state()
        status = next(iter(answer.values()), None)
        if status is None:
            return self.machine_state()
        if not status.is_terminal():
            return JobState.RUNNING
        if status is not sky.JobStatus.SUCCEEDED and self.machine_state() is JobState.GONE:
            return JobState.GONE  # a dying machine fails its jobs first
        return JobState.SUCCEEDED if status is sky.JobStatus.SUCCEEDED else JobState.FAILED

    def machine_state(self) -> JobState:
        try:
            found = sky.get(sky.status([self.name], refresh=sky.StatusRefreshMode.FORCE))
        except SKY_ERRORS:
            return JobState.UNKNOWN  # the line is down here, perhaps
        up = any(record["status"] == sky.ClusterStatus.UP for record in found)
        return JobState.UNKNOWN if up else JobState.GONE

    def fetch(self, checkpoints: bool) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        # All files are put in place together at the end: a record never comes before its files.
        command = ["rsync", "-rltz", "--delay-updates", f"--timeout={RSYNC_TIMEOUT_SECONDS}"]
        if not checkpoints:
            command.append("--exclude=work/")
        source = f"{self.name}:{REMOTE_CHECKOUT}/results/{self.folder}/"
        done = subprocess.run(
            [*command, source, f"{self.home}/"], capture_output=True, text=True, check=False
        )
        if done.returncode not in (0, RSYNC_VANISHED):
            last = (done.stderr.strip().splitlines() or [f"rsync ended with {done.returncode}"])[-1]
            raise SyncFailed(last)

    def take_down(self) -> None:
        try:
            if self.request is not None:  # a launch that goes on would bring the machine back
                sky.get(sky.api_cancel([self.request], silent=True))
                self.request = None
            if sky.get(sky.status([self.name])):
                sky.stream_and_get(sky.down(self.name))
        except sky.exceptions.ClusterDoesNotExist:
            return
        except SKY_ERRORS as error:
            raise DownFailed(self.blot(describe(error))) from error

    def sky_command(self, *words: str) -> None:
        command = [str(Path(sys.executable).with_name("sky")), *words]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=False)

    def blot(self, text: str) -> str:
        return text.replace(self.token, "***") if self.token else text


class Blotted(io.TextIOBase):
    """A stream that never shows the token."""

    def __init__(self, stream, token: str | None):
        self.stream, self.token = stream, token

    def write(self, text: str) -> int:
        self.stream.write(text.replace(self.token, "***") if self.token else text)
        return len(text)

    def flush(self) -> None:
        self.stream.flush()


def describe(error: Exception) -> str:
    """An error's first two lines, without colours; SkyPilot's may be a page."""
    if isinstance(error, sky.exceptions.NoCloudAccessError):
        return (
            "SkyPilot has no key of a provider. `.venv-sky/bin/sky check` says how to give it one; "
            "then name the provider: CLOUD=lambda"
        )
    plain = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    return " ".join([type(error).__name__ + ":", *lines[:2]])


def interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def main(order: dict) -> int:
    for name in (signal.SIGTERM, signal.SIGHUP):  # a closed terminal too leaves no machine behind
        signal.signal(name, interrupt)
    # Taken out of the environment, so that SkyPilot's own server, which stays, does not inherit it.
    token = os.environ.pop("HF_TOKEN", None) or None
    machine = SkyMachine(order["name"], order["task"], order["folder"], Path(order["home"]), token)
    return carry_through(machine, Limits(order["most_hours"], order["spot"]))


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
