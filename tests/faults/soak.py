"""Kill a study's processes at random moments, again and again, and look whether anything was lost.

    tools/python tests/faults/soak.py --minutes 60 [--kills 200] [--seed 7]

Any process of a study may be hit: a notebook's kernel, a run's own, the one that runs are forked
from, the study itself. Each study is started again until it is done; then every run must have
learned and answered what an undisturbed one did, and nothing that was finished at a kill may have
been done again. It ends with 1 where anything was lost; the seed that it prints gives the same
choices again, at other moments.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from scene import ROOT, Kept, essence, study, write_profile  # noqa: E402
from waiting import LONG_SECONDS  # noqa: E402

from studylib.running.executor import Start  # noqa: E402
from studylib.running.warm import wait_until_ready, warm_starts  # noqa: E402
from studylib.schema.settings import Hardware  # noqa: E402

SEEDS = [0, 1, 2]
RUNS = ["ladder-0.4m--base", *(f"ladder-0.4m--lora-r16--s{seed}" for seed in SEEDS)]
LEAST_SECONDS = 0.05  # after a start, until the first blow
OF_A_STUDY, OF_RUNS = 6, 30  # kills in turn: of whole studies, which take long to start again
AT_ONCE = 4


class Struck(NamedTuple):
    """A run under way, and what it had finished at each blow."""

    folder: Path
    kept: list[Kept]
    process: Any


class Soak:
    """Studies that are killed; `tally` counts the kills by what was hit, `lost` says what was."""

    def __init__(self, place: Path, seed: int) -> None:
        self.place, self.choose = place, random.Random(seed)
        self.profile = write_profile(
            place, seeds=SEEDS, hardware={"jobs": 2, "threads": 1, "gpus": 0}
        )
        self.tally: Counter[str] = Counter()
        self.lost: list[str] = []
        self.studies = self.runs = 0
        began = time.monotonic()
        code, said = self.start("whole", 0)
        # About as long as a run takes, so that blows fall into all of its stages.
        self.pause_seconds = (time.monotonic() - began) / len(RUNS)
        assert code == 0, said
        self.whole = {run: essence(self.folder("whole") / run) for run in RUNS}

    @property
    def kills(self) -> int:
        return sum(self.tally.values())

    def folder(self, name: str) -> Path:
        return self.place / name / "struck" / "runs"

    def start(self, name: str, most_kills: int) -> tuple[int, str]:
        """One `study reproduce`, under so many blows at most; (its exit code, what it said)."""
        process = study("reproduce", "--profile", self.profile, "--results", self.place / name)
        said: list[str] = []
        reader = threading.Thread(target=lambda: said.append(process.stdout.read()))
        reader.start()
        for _ in range(most_kills):
            if not self.strike(process):
                break
        code = process.wait()
        reader.join()
        return code, said[0]

    def strike(self, process) -> bool:
        """Wait for a random moment and kill one process; whether the study lives on."""
        end = time.monotonic() + LEAST_SECONDS + self.choose.random() * self.pause_seconds
        while time.monotonic() < end:
            if process.poll() is not None:
                return False
            time.sleep(0.02)
        with suppress(psutil.Error):
            family = psutil.Process(process.pid).children(recursive=True)
            # The study itself once in ten times: all others are started again faster.
            whom = process.pid if self.choose.random() < 0.1 else None
            if whom is None and not family:
                return True
            what = "the study" if whom else self.choose.choice(["a run", "a kernel", "any"])
            hit = whom or self.pick(family, what)
            if hit is not None:
                os.kill(hit, signal.SIGKILL)
                self.tally[what] += 1
        return process.poll() is None

    def pick(self, family: list[psutil.Process], what: str) -> int | None:
        """A kernel has no children of its own; what it is forked from is a run's process."""
        leaves = [one for one in family if not one.children()]
        above = [one.parent() for one in leaves if one.parent() in family]
        chosen = {"a kernel": leaves, "any": family, "a run": above}[what]
        return self.choose.choice(chosen).pid if chosen else None

    def carry_through(self, most_kills: int) -> None:
        """One study, killed and started again until it is done; then it is looked at."""
        self.studies += 1
        name = f"study-{self.studies}"
        runs, kept = self.folder(name), list[tuple[str, Kept]]()
        left = most_kills
        for _ in range(40):
            before = self.kills
            code, said = self.start(name, left)
            left -= self.kills - before
            kept += [(run, Kept(runs / run)) for run in RUNS if (runs / run).is_dir()]
            if "Traceback" in said.replace("read ", ""):
                self.lost.append(f"{name}: a traceback on the terminal: {said[-400:]}")
            if code == 0:
                break
        else:
            self.lost.append(f"{name}: it never ended; last it said: {said[-400:]}")
            return
        for run in RUNS:
            self.compare(runs / run, [one for struck, one in kept if struck == run])

    def carry_runs(self, most_kills: int) -> None:
        """So many kills of runs alone, several at a time, forked as a study forks them."""
        enough = self.kills + most_kills
        with warm_starts(Hardware(jobs=AT_ONCE, threads=1), print) as start:
            stem = psutil.Process(start.__self__.process.pid)
            wait_until_ready(start, LONG_SECONDS)
            under_way = [self.begin(start) for _ in range(AT_ONCE)]
            due = 0.0
            while under_way:
                if time.monotonic() > due and self.kills < enough:
                    self.hit_one_of(stem)
                    due = time.monotonic() + self.choose.random() * self.pause_seconds / AT_ONCE
                time.sleep(0.02)
                for one in [one for one in under_way if one.process.poll() is not None]:
                    under_way.remove(one)
                    if (one.folder / "record.json").is_file():
                        self.compare(one.folder, one.kept)
                        if self.kills < enough:
                            under_way.append(self.begin(start))
                    else:
                        one.kept.append(Kept(one.folder))
                        under_way.append(self.begin(start, one))

    def begin(self, start: Start, again: Struck | None = None) -> Struck:
        if again is None:
            self.runs += 1
            run = self.choose.choice(RUNS[1:])
            again = Struck(self.folder(f"run-{self.runs}") / run, [], None)
        place = ("--profile", str(self.profile), "--results", str(again.folder.parents[2]))
        words = ("run", again.folder.name, *place, "--jobs", "1")
        return again._replace(process=start(words, again.folder, 1, {}))

    def hit_one_of(self, stem: psutil.Process) -> None:
        with suppress(psutil.Error):
            family = stem.children(recursive=True)
            what = self.choose.choice(["a run", "a kernel"])
            hit = self.pick(family, what)
            if hit is not None and hit != stem.pid:
                os.kill(hit, signal.SIGKILL)
                self.tally[what] += 1

    def compare(self, run: Path, kept: Iterable[Kept]) -> None:
        """A run that is done, with an undisturbed one; and with what it had when it was struck."""
        name = f"{run.parents[2].name}: {run.name}"
        if essence(run) != self.whole[run.name]:
            self.lost.append(f"{name} gave something else")
        self.lost += sorted({f"{name} did again {what}" for k in kept if (what := k.lost(run))})

    def report(self) -> str:
        hits = ", ".join(f"{count} of {what}" for what, count in self.tally.most_common())
        return f"{self.kills} kills ({hits}) in {self.studies} studies and {self.runs} runs: " + (
            "nothing was lost" if not self.lost else f"LOST: {'; '.join(self.lost)}"
        )


def main() -> int:
    words = argparse.ArgumentParser(description="Kill studies at random moments.")
    words.add_argument("--minutes", type=float, default=60.0)
    words.add_argument("--kills", type=int, default=10_000)
    words.add_argument("--seed", type=int, default=None)
    asked = words.parse_args()
    seed = random.randrange(10**6) if asked.seed is None else asked.seed
    print(f"seed {seed}", flush=True)
    end = time.monotonic() + 60 * asked.minutes
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory(prefix="soak-") as place:
        soak = Soak(Path(place), seed)
        while time.monotonic() < end and soak.kills < asked.kills:
            for carry, most in ((soak.carry_runs, OF_RUNS), (soak.carry_through, OF_A_STUDY)):
                carry(max(0, min(most, asked.kills - soak.kills)))
                print(soak.report(), flush=True)
    return 1 if soak.lost else 0


if __name__ == "__main__":
    sys.exit(main())
