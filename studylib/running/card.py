"""A study under a clock: the most valuable rows of a card first, each step within its slice.

Steps come in the order of their worth (studylib/card.yaml). A step has its share of the minutes and
what earlier ones saved; at its end it is stopped with what it has: finished runs have records, the
one under way leaves none and the step is named cut off. card.json is written after every step, so
that another call, also after a kill, goes on: what is done is not run again, what was cut off or
failed comes after what was not tried yet.

Not covered: what a step starts (studylib.running.card_jobs), its figures
(studylib.running.card_figures).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from studylib.core.errors import StudyError
from studylib.core.files import lock_folder
from studylib.inputs.examples import read_examples
from studylib.metering.devices import visible_cards
from studylib.metering.environment import git_state, now
from studylib.planning.plan import check_model_source
from studylib.running.card_facts import card_slug, read_card_facts, wait_until_free, with_ceiling
from studylib.running.card_jobs import CardJob, CardPlace, descendants, list_jobs, places_of, stop
from studylib.running.executor import explain_failure, launch, share_cores
from studylib.running.warm import wait_until_ready, warm_starts
from studylib.schema.card_study import (
    CARD_STUDY,
    Call,
    CardFacts,
    CardStep,
    CardSteps,
    CardStudy,
    Part,
    State,
    StepTaken,
    read_card_study,
    read_steps,
    write_card_study,
)
from studylib.schema.profile import ModelRef, read_profile
from studylib.schema.settings import DataSettings

WHOLE_MINUTES = 12.0  # what the seconds of a step are meant for
READY_SECONDS = 60.0
OWN_DATA = "almanac:new"
POLL_SECONDS = 0.1
REHEARSAL = "rehearsal"
Say = Callable[[str], None]


def run_card(
    steps: CardSteps,
    chosen: Sequence[CardStep],
    results: Path,
    minutes: float,
    data: str = OWN_DATA,
    mmlu: str = "",
    changes: dict[str, Any] | None = None,
    say: Say = print,
    facts: CardFacts | None = None,
    began: float | None = None,
) -> CardStudy:
    """Take the steps in their order until the minutes are over; returns what card.json holds.

    facts: the card, if it is known already. began: time.monotonic() when the minutes began.
    """
    if not minutes > 0:
        raise StudyError(f"MINUTES={minutes:g}", "a clock has minutes", "Write MINUTES=12.")
    read_profile("card", changes)  # a key that it does not know ends this before any work
    if facts is None:
        check_asked(steps, chosen, bool(visible_cards()), data)
    began = time.monotonic() if began is None else began
    card, rehearsal = (read_card_facts(), not visible_cards()) if facts is None else (facts, True)
    place = make_place(steps, results, card, rehearsal, changes or {})
    place = replace(place, data=data, mmlu=mmlu)
    if not rehearsal:
        wait_until_free()
    hardware = read_profile("card").hardware
    starts = warm_starts(hardware, say) if facts is None else nullcontext(launch)
    with lock_folder(place.folder / ".study", "study"), starts as begin:
        study = open_study(place)
        if study.card.ceiling is None and facts is None:
            study = study.model_copy(update={"card": with_ceiling(card)})
        write_card_study(place.folder, study)
        # Until then it may hold the card for a trial, and a check would find that in use.
        wait_until_ready(begin, READY_SECONDS)
        place = replace(place, card=study.card, begin=begin, threads=share_cores(hardware))
        say(describe_place(place, minutes))
        return TimedSteps(study, place, minutes, began, say).run(chosen)


def check_asked(steps: CardSteps, chosen: Sequence[CardStep], card: bool, data: str) -> None:
    """Raise before any work where a model is not there, or too large for a rehearsal, or where DATA
    cannot be read. card: whether there is one."""
    own = read_steps().models
    needed = set[str]().union(*map(places_of, chosen))
    for place in (key for key in steps.models if key in needed):
        ref = ModelRef.parse(steps.models[place])
        if not card and steps.models[place] == own[place]:
            raise StudyError(
                "no CUDA card",
                f"a rehearsal takes small models, and {place} is {ref}",
                f"Write MODELS={','.join(f'{key}=ladder:0.4m' for key in own)}.",
            )
        check_model_source(ref, fetch=False)
    if data != OWN_DATA:
        read_examples(DataSettings(source=data))


def make_place(
    steps: CardSteps,
    results: Path,
    card: CardFacts,
    rehearsal: bool,
    changes: dict[str, Any],
) -> CardPlace:
    """Where to work: other models than the study's own, or no card, have folders of their own."""
    models = steps.models
    own = models == read_steps().models and not changes
    name = REHEARSAL if rehearsal else card_slug(card.name)
    if not own:
        asked = json.dumps([models, changes], sort_keys=True, default=str)
        name += "-" + hashlib.sha256(asked.encode()).hexdigest()[:6]
    cards = visible_cards()
    environ = {"CUDA_VISIBLE_DEVICES": cards[0]} if cards else {}
    return CardPlace(
        name,
        results,
        steps,
        card,
        rehearsal=rehearsal,
        changes=changes,
        own=own,
        environ=environ,
    )


def open_study(place: CardPlace) -> CardStudy:
    """What earlier calls left, or a new study. Another card of the same name goes on, too."""
    models = place.steps.models
    if not (place.folder / CARD_STUDY).is_file():
        return CardStudy(card=place.card, rehearsal=place.rehearsal, models=models)
    study = read_card_study(place.folder)
    same = study.card.name == place.card.name and study.card.torch == place.card.torch
    card = place.card.model_copy(update={"ceiling": study.card.ceiling}) if same else place.card
    return study.model_copy(update={"card": card})


def describe_place(place: CardPlace, minutes: float) -> str:
    card = place.card
    lines = [
        f"{card.name}, {place.gib:.1f} GiB, driver {card.driver or 'none'}, torch {card.torch}"
    ]
    if place.rehearsal:
        lines.append("no CUDA card here: a rehearsal, whose figures say nothing of a card")
    if card.ceiling:
        lines.append(
            f"at most, as measured: {card.ceiling.bf16_flops_per_second / 1e12:,.3g} TFLOP/s in "
            f"bf16 products of {card.ceiling.size}, copies of "
            f"{card.ceiling.copy_bytes_per_second / 1e9:,.0f} GB/s"
        )
    elif card.ceiling_reason:
        lines.append(f"its ceiling was not measured: {card.ceiling_reason}")
    lines.append(f"{minutes:g} minutes, results in {place.folder}")
    return "\n".join(lines)


def order_steps(study: CardStudy, chosen: Sequence[CardStep]) -> list[CardStep]:
    """Steps that were not tried first, then those that were cut off or failed; done ones never."""
    states = {step.name: study.taken(step.name) for step in chosen}

    def rank(step: CardStep) -> int | None:
        taken = states[step.name]
        if taken is None or taken.state in ("not reached", "does not fit"):
            return 0
        return None if taken.state == "done" else 1

    ranks = {step.name: rank(step) for step in chosen}
    return [step for wanted in (0, 1) for step in chosen if ranks[step.name] == wanted]


def slice_seconds(step: CardStep, minutes: float, saved: float, left: float, least: float) -> float:
    """A step's share of the minutes, never below `least`, and what earlier ones saved."""
    share = max(step.seconds * minutes / WHOLE_MINUTES, least)
    return max(0.0, min(share + saved, left))


class TimedSteps:
    """One call: takes steps while there is time, and writes card.json after each."""

    def __init__(self, study: CardStudy, place: CardPlace, minutes: float, began: float, say: Say):
        self.study, self.place, self.minutes, self.say = study, place, minutes, say
        self.began, self.end = began, began + 60 * minutes
        self.started_at, self.earlier = now(), study.calls
        self.commit, self.dirty = git_state()
        self.saved = 0.0

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def least(self, step: CardStep) -> float:
        """Seconds without which a step is not begun: as large a part as is left of it to do, and
        for other models than the study's own the minutes' share of it."""
        taken = self.study.taken(step.name)
        parts = taken.parts if taken else ()
        left = sum(part.state != "done" for part in parts) / len(parts) if parts else 1.0
        return left * (step.least if self.place.own else step.least * self.minutes / WHOLE_MINUTES)

    def run(self, chosen: Sequence[CardStep]) -> CardStudy:
        """All steps in their order; those cut off have what is left at the end."""
        queue, again = order_steps(self.study, chosen), set[str]()
        while queue:
            step = queue.pop(0)
            if self.left <= self.least(step):
                self.not_reached(step)
                continue
            last = step.name in again
            taken = self.take(step, self.left if last else self.slice(step))
            if taken.state == "cut off" and step.name not in again:
                again.add(step.name)
                queue.append(step)
        return self.study

    def not_reached(self, step: CardStep) -> None:
        """No time for it; what an earlier try has left stays."""
        earlier = self.study.taken(step.name)
        if earlier is None or not earlier.parts:
            reason = f"{max(0.0, self.left):.0f} s were left, it needs {self.least(step):.0f}"
            self.keep(StepTaken(name=step.name, answers=step.answers, state="not reached",
                                reason=reason))  # fmt: skip

    def slice(self, step: CardStep) -> float:
        return slice_seconds(step, self.minutes, self.saved, self.left, self.least(step))

    def take(self, step: CardStep, given: float) -> StepTaken:
        """One step within `given` seconds; written down also where this process is to end."""
        start = time.monotonic()
        earlier = self.study.taken(step.name)
        spent = earlier.seconds if earlier else 0.0
        self.say(f"{step.name}: {step.answers} (at most {given:.0f} s)")
        parts: list[Part] = []
        left_out = True  # where this process is told to end, parts are missing
        try:
            for job in list_jobs(step, self.place):
                parts.append(self.do(job, start + given, earlier))
                self.say(f"  {job.name}: {parts[-1].state}")
            left_out = False
        finally:
            used = time.monotonic() - start
            self.saved = max(0.0, given - used)
            if left_out and earlier:  # what an earlier call found of the others stays
                names = {part.name for part in parts}
                parts += [part for part in earlier.parts if part.name not in names]
            taken = StepTaken(
                name=step.name, answers=step.answers, seconds=spent + used, slice_seconds=given,
                parts=tuple(parts), **self.judge(step, parts, left_out),
            )  # fmt: skip
            self.keep(taken)
        return taken

    def judge(self, step: CardStep, parts: Sequence[Part], left_out: bool) -> dict[str, Any]:
        """A step's state, from its parts', and why."""
        states = [part.state for part in parts]
        state: State = "done"
        reason = None
        if left_out or set(states) & {"cut off", "not started"}:
            state, reason = "cut off", f"{states.count('done')} done when its time was up"
        elif not parts:
            state, reason = "does not fit", self.lacking(step)
        elif "failed" in states:
            state = "failed"
            reason = next(part.reason for part in parts if part.state == "failed")
        return {"state": state, "reason": reason}

    def lacking(self, step: CardStep) -> str:
        asked = [*step.runs, *([step.serve] if step.serve else [])]
        least = min((one.gib for one in asked), default=step.gib)
        if self.place.rehearsal and not least > self.place.gib:
            return "it needs a CUDA card"
        return f"it needs {least:g} GiB, here are {self.place.gib:.1f}"

    def do(self, job: CardJob, deadline: float, earlier: StepTaken | None = None) -> Part:
        """One process until it ends or its step's time is up."""
        if job.done_before:
            known = {part.name: part for part in (earlier.parts if earlier else ())}
            seconds = known[job.name].seconds if job.name in known else None
            return Part(name=job.name, state="done", seconds=seconds, figures=job.figures())
        if time.monotonic() >= deadline:
            return Part(name=job.name, state="not started")
        start = time.monotonic()
        before = descendants()
        process, ended = job.start(), False
        try:
            while not (ended := process.poll() is not None) and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
        finally:
            if not ended:
                stop(process, before)
        seconds = time.monotonic() - start
        if ended and job.ended_well(process.returncode):
            return Part(name=job.name, state="done", seconds=seconds, figures=job.figures())
        state, reason = "cut off", None
        if ended:
            failure = explain_failure(job.log, process.returncode)
            state = "failed"
            reason = failure.message or f"code {process.returncode}, read {failure.log}"
        return Part(
            name=job.name, state=state, seconds=seconds, reason=reason, figures=job.partial()
        )

    def keep(self, taken: StepTaken) -> None:
        """Write card.json with this step in its place."""
        order = [step.name for step in self.place.steps.steps]
        others = [step for step in self.study.steps if step.name != taken.name]
        steps = sorted([*others, taken], key=lambda one: order.index(one.name))
        call = Call(
            started_at=self.started_at, minutes=self.minutes,
            seconds=time.monotonic() - self.began, git_commit=self.commit, git_dirty=self.dirty,
        )  # fmt: skip
        changes = {"steps": tuple(steps), "calls": (*self.earlier, call)}
        self.study = self.study.model_copy(update=changes)
        write_card_study(self.place.folder, self.study)
