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
from contextlib import suppress
from pathlib import Path

import psutil

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from scene import ROOT, Kept, essence, study, write_profile  # noqa: E402

SEEDS = list(range(8))
RUNS = ["ladder-0.4m--base", *(f"ladder-0.4m--lora-r16--s{seed}" for seed in SEEDS)]
LEAST_SECONDS = 0.05  # after a start, until the first blow


class Soak:
    """Studies that are killed; `tally` counts the kills by what was hit, `lost` says what was."""

    def __init__(self, place: Path, seed: int) -> None:
        self.place, self.choose = place, random.Random(seed)
        self.profile = write_profile(
            place, seeds=SEEDS, hardware={"jobs": 2, "threads": 1, "gpus": 0}
        )
        self.tally: Counter[str] = Counter()
        self.lost: list[str] = []
        self.starts = self.studies = 0
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
        self.starts += 1
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
            if essence(runs / run) != self.whole[run]:
                self.lost.append(f"{name}: {run} gave something else")
        told = {f"{name}: {run} did again {what}" for run, one in kept
                if (what := one.lost(runs / run))}  # fmt: skip
        self.lost += sorted(told)

    def report(self) -> str:
        hits = ", ".join(f"{count} of {what}" for what, count in self.tally.most_common())
        return f"{self.kills} kills ({hits}) in {self.studies} studies, {self.starts} starts: " + (
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
            soak.carry_through(min(12, asked.kills - soak.kills))
            print(soak.report(), flush=True)
    return 1 if soak.lost else 0


if __name__ == "__main__":
    sys.exit(main())
