"""What a study writes to disk: the weights that stay, and the checkpoints of runs under way.

Counted on models without weights, before anything is started. The bundled models take a few
megabytes and are not asked, nor are those that cannot be built here.

Not covered: tables and notebooks, which are small, and the hub's own cache.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from studylib.core.errors import StudyError
from studylib.forecasting.skeleton_counts import count_skeleton
from studylib.schema.kept import why_not_kept
from studylib.schema.settings import Frozen
from studylib.schema.spec import RunSpec

BYTES_OF = {"fp32": 4, "bf16": 2}
LISTED = 3  # checkpoints that lie there at once: two, and the one that is being written


class Disk(Frozen):
    """Bytes that runs leave and need. kept: weights that stay, of `runs` runs. working: what those
    under way at one time take besides, at most."""

    kept: int
    runs: int
    working: int

    @property
    def needed(self) -> int:
        return self.kept + self.working


def foresee_disk(specs: Sequence[RunSpec]) -> Disk | None:
    """What these runs write; None where none of their models can be counted."""
    found = [counted for spec in specs if (counted := count_run(spec)) is not None]
    if not found:
        return None
    jobs = min(specs[0].hardware.jobs, len(found))
    most = max(working - kept for kept, working in found)
    stay = [kept for kept, _ in found if kept]
    return Disk(kept=sum(stay), runs=len(stay), working=jobs * max(most, 0))


def count_run(spec: RunSpec) -> tuple[int, int] | None:
    """(bytes that stay, most bytes while it is under way) of a run that trains."""
    if not spec.method.kind.trains or spec.model_ref.kind == "ladder":
        return None
    counted = count_skeleton(spec.model, spec.method, spec.weights_dtype).trained
    if counted is None:
        return None
    recipe, (params, trained, size) = spec.train, counted
    state = 1 if spec.optimizer.endswith("8bit") else trained // params
    checkpoint = size + 2 * state * params
    if not spec.method.kind.adapter:
        size = params * BYTES_OF[recipe.dtype]  # as it is scored and served
    lying = min(LISTED, (recipe.steps - 1) // recipe.checkpoint_every)
    written = 0 if spec.model_ref.kind == "shape" and not spec.method.kind.adapter else size
    working = max(lying * checkpoint, min(lying, LISTED - 1) * checkpoint + written)
    stays = why_not_kept(spec.keep, spec.model_ref, spec.method) is None
    return (size if stays else 0), working


def tell_disk(specs: Sequence[RunSpec], results: Path) -> str | None:
    """The same in words, beside what is free where the results go."""
    disk = foresee_disk(specs)
    if disk is None:
        return None
    return f"disk: {spell_disk(disk, specs[0].keep)}; {size(free_bytes(results))} are free"


def refuse_full_disk(specs: Sequence[RunSpec], results: Path) -> None:
    """Raise where the disk has not the room that a study takes: it would end under way."""
    disk, free = foresee_disk(specs), free_bytes(results)
    if disk is not None and disk.needed > free:
        raise StudyError(
            results,
            f"the disk has {size(free)} free, the study needs {size(disk.needed)} "
            f"({spell_disk(disk, specs[0].keep)})",
            "Free some space, choose another folder (RESULTS=), keep less (KEEP=none), or start it "
            "nevertheless (FORCE=1).",
        )


def spell_disk(disk: Disk, keep: str) -> str:
    runs = f"{disk.runs} run" + ("" if disk.runs == 1 else "s")
    stays = f"{size(disk.kept)} of weights stay, of {runs}" if disk.runs else "no weights stay"
    return f"{stays} (KEEP={keep}), and up to {size(disk.working)} more while runs are under way"


def size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"


def free_bytes(folder: Path) -> int:
    """Free bytes where a folder is, or will be made."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    return shutil.disk_usage(there).free
