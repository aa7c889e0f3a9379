"""What a step of a card's study starts: runs of the profile `card`, commands, programs; and how
such a process is stopped with all that it started.

Not covered: when it is started and stopped (studylib.running.card), its figures
(studylib.running.card_figures).
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Container, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from studylib.core.places import ROOT
from studylib.running.card_figures import Figures, command_figures, run_figures, serve_figures
from studylib.running.executor import Process, Start, launch, open_log, run_environment
from studylib.running.runner import run_task, write_profile
from studylib.schema.card_study import CardFacts, CardStep, CardSteps, RunAsked, read_steps
from studylib.schema.profile import Profile, build_profile, merge_mappings, read_profile
from studylib.schema.serve_records import SERVE_RECORD
from studylib.schema.serving import ServeSpec, serve_specs
from studylib.schema.spec import RunSpec

GRACE_SECONDS = 1.0  # between being asked to end and being ended


@dataclass(frozen=True)
class CardPlace:
    """Where a card's study works and with what. name: the card's, and its folder's.

    data, mmlu: what DATA and MMLU say. changes: of the profile. own: whether models and profile are
    the study's own, for which alone the steps' GiB and least seconds are meant.
    """

    name: str
    results: Path
    steps: CardSteps
    card: CardFacts
    data: str = "almanac:new"
    mmlu: str = ""
    rehearsal: bool = False
    changes: Mapping[str, Any] = field(default_factory=dict)
    own: bool = True
    threads: int = 1
    environ: Mapping[str, str] = field(default_factory=dict)
    begin: Start = launch

    @property
    def folder(self) -> Path:
        return self.results / self.name

    @property
    def gib(self) -> float:
        return self.card.memory_bytes / 2**30

    def suits(self, asked: RunAsked) -> bool:
        return not self.own or asked.suits(self.gib)

    def fill(self, word: str) -> str:
        """A command's word with its places filled in."""
        known = {**self.steps.models, "folder": str(self.folder), "data": self.data,
                 "mmlu": self.mmlu, "results": str(self.results)}  # fmt: skip
        for key, value in known.items():
            word = word.replace("{" + key + "}", value)
        return word


@dataclass(frozen=True)
class CardJob:
    """One process of a step. ended_well: told its exit code, whether it left what it should.
    partial: the figures of one that was stopped."""

    name: str
    log: Path
    start: Callable[[], Any]
    ended_well: Callable[[int], bool]
    figures: Callable[[], Figures]
    partial: Callable[[], Figures] = dict
    done_before: bool = False


def list_jobs(step: CardStep, place: CardPlace) -> list[CardJob]:
    """A step's processes in their order; those that do not suit this card are not among them."""
    if step.runs:
        profile, file = write_card_profile(place, step)
        asked = [one for one in step.runs if place.suits(one)]
        return [run_job(asked_spec(profile, one), profile, file, place) for one in asked]
    if step.serve is not None:
        if not place.suits(step.serve):
            return []
        profile, file = write_card_profile(place, step)
        return [serve_job(find_serve(profile, step.serve), profile, file, place)]
    if (place.own and step.gib > place.gib) or (step.study and place.rehearsal):
        return []  # a command of the study's own is here a check of the card
    return [command_job(step, place)]


def places_of(step: CardStep) -> set[str]:
    """The places of models (13b, 7b, 1b) that a step needs."""
    models = read_steps().models
    tracks = {track.name: track.models for track in read_profile("card").tracks}
    runs = [*step.runs, *([step.serve] if step.serve else [])]
    loaded = {model for one in runs for model in tracks.get(one.track, ())}
    words = " ".join((*step.study, *step.script))
    return {key for key, model in models.items() if model in loaded or f"{{{key}}}" in words}


def write_card_profile(place: CardPlace, step: CardStep) -> tuple[Profile, Path]:
    """The profile of a step's runs, and the file beside their results that they read it from."""
    profile = card_profile(place, step)
    folder = place.results / profile.name
    folder.mkdir(parents=True, exist_ok=True)
    return profile, write_profile(profile, folder)


def card_profile(place: CardPlace, step: CardStep) -> Profile:
    """The profile `card` under this card's name: its models, the runs that suit it, one step's
    changes."""
    own, given = read_steps().models, place.steps.models
    instead = {own[key]: given[key] for key in own if key in given}
    asked = {
        (one.track, one.method) for s in place.steps.steps for one in s.runs if place.suits(one)
    }
    tracks = []
    for track in (shipped := read_profile("card", dict(place.changes))).tracks:
        methods = tuple(m for m in track.methods if (track.name, m) in asked)
        models = tuple(instead.get(m, m) for m in track.models)
        if methods:
            tracks.append(track.model_copy(update={"models": models, "methods": methods}))
    content = shipped.model_copy(update={"tracks": tuple(tracks)}).model_dump(mode="json")
    name = f"{place.name}-{step.name}" if step.changes else place.name
    return build_profile(merge_mappings(content, step.changes) | {"name": name}, origin="card.yaml")


def asked_spec(profile: Profile, asked: RunAsked) -> RunSpec:
    return next(
        spec
        for spec in profile.runs()
        if spec.track == asked.track and spec.method.name == asked.method
    )


def find_serve(profile: Profile, asked: RunAsked) -> ServeSpec:
    model = asked_spec(profile, asked).model
    return next(
        spec
        for spec in serve_specs(profile)
        if spec.model == model and spec.method.name == asked.method
    )


def run_job(spec: RunSpec, profile: Profile, file: Path, place: CardPlace) -> CardJob:
    """A run as `reproduce` starts it, but without asking the forecast first."""
    task = run_task(spec, file, place.results / profile.name)
    return CardJob(
        name=task.task_id,
        log=task.folder,
        start=lambda: place.begin(task.command(1), task.folder, place.threads, place.environ),
        ended_well=lambda _: task.result.is_file(),
        figures=lambda: run_figures(task.result, place.card.bf16_peak),
        done_before=task.result.is_file(),
    )


def serve_job(spec: ServeSpec, profile: Profile, file: Path, place: CardPlace) -> CardJob:
    folder = place.results / profile.name / "serve" / spec.serve_id
    words = ["serve", spec.serve_id, "--profile", str(file), "--results", str(place.results)]
    result = folder / SERVE_RECORD
    return CardJob(
        name=f"{spec.serve_id} (serving)",
        log=folder,
        start=lambda: place.begin([*words, "--jobs", "1"], folder, place.threads, place.environ),
        ended_well=lambda _: result.is_file(),
        figures=lambda: serve_figures(result),
        done_before=result.is_file(),
    )


def command_job(step: CardStep, place: CardPlace) -> CardJob:
    """One of the study's commands or a program: done when it left its file and says so, or, where
    its exit code is a finding, when it left a new one."""
    words = [place.fill(word) for word in (step.study or step.script)]
    log = place.folder / "logs" / step.name
    before = set(place.folder.glob(step.result))

    def left() -> list[Path]:
        return sorted(place.folder.glob(step.result), key=lambda path: path.stat().st_mtime)

    def ended_well(code: int) -> bool:
        if step.finds:
            return bool(set(left()) - before)
        return code == 0 and bool(left())

    def start() -> Process:
        if step.study:
            return place.begin(words, log, place.threads, place.environ)
        with open_log(log) as file:
            return subprocess.Popen(
                [sys.executable, str(ROOT / words[0]), *words[1:]], stdin=subprocess.DEVNULL,
                stdout=file, stderr=file, env=run_environment(place.threads, place.environ),
                start_new_session=True,
            )  # fmt: skip

    return CardJob(
        name=step.name,
        log=log,
        start=start,
        ended_well=ended_well,
        figures=lambda: command_figures(left()[-1]),
        partial=lambda: last_log_line(log) | (command_figures(left()[-1]) if left() else {}),
    )


def last_log_line(folder: Path) -> Figures:
    lines = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").split("\n")
    said = [line for line in lines if line.strip()]
    return {"last_words": said[-1].strip()[:200]} if said else {}


def descendants() -> list[psutil.Process]:
    """All that this process has started, and they in turn."""
    return psutil.Process().children(recursive=True)


def stop(process: Process, before: Container[psutil.Process]) -> None:
    """End a process and all that it started, in sessions of their own too (a notebook's kernel):
    asked first, then ended. before: what ran already. Returns when none of the others is left."""
    family = newer(before)  # now, as those whose parent has ended are nobody's children
    process.terminate()
    for number in (signal.SIGTERM, signal.SIGKILL):
        for one in family:
            with suppress(psutil.NoSuchProcess):
                one.send_signal(number)
        _, left = psutil.wait_procs(family, timeout=GRACE_SECONDS)
        family = list({*left, *newer(before)})
        if not family:
            break
    process.wait()


def newer(before: Container[psutil.Process]) -> list[psutil.Process]:
    return [one for one in descendants() if one not in before]
