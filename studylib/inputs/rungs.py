"""The ladder's models: their shapes, how each learns the almanac, and where each one lies.

Two rungs are bundled with the study. Larger ones are for cards: too big to ship, they are built
where they are used (`make ladder RUNG=60m`) into a folder that git ignores.

Not covered: building them (studylib.modelling.ladder), what they learn (studylib.inputs.almanac).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from studylib.core.errors import StudyError
from studylib.core.places import ROOT

BUILT = ROOT / "built"
USUAL_FACTS = 800  # of the OLD half; a study teaches as many of the NEW one


@dataclass(frozen=True)
class Rung:
    """One model: its shape and how long it reads the OLD half.

    Widths are multiples of 64, the block of NF4: a quantized row ends where a block does.
    steps: updates, or the most of them where enough_recall ends the reading sooner: a share of
    OLD questions answered right. facts: of the OLD half, the almanac's usual number if None.
    head_width: of attention, 32 if None.
    """

    name: str
    hidden: int
    intermediate: int
    layers: int
    steps: int
    learning_rate: float
    batch_examples: int = 96
    facts: int | None = None
    head_width: int | None = None
    enough_recall: float | None = None


RUNGS = (
    Rung("0.4m", hidden=128, intermediate=192, layers=2, steps=800, learning_rate=4e-3),
    Rung("1.4m", hidden=192, intermediate=448, layers=3, steps=500, learning_rate=3e-3),
)

# Wide and shallow, since a card waits for the launch of small kernels. 3m is for rehearsals on a
# CPU. The three for cards are extrapolated and not yet tried on one: their rates fall with the
# width as those above do, and their budgets are 12 readings of every sentence, where the bundled
# rungs read each 7 or 12 times and 3m knows enough after 5.
LARGER_RUNGS = (
    Rung("3m", hidden=256, intermediate=640, layers=4, steps=600, learning_rate=2e-3,
         facts=1_000, enough_recall=0.95),
    Rung("30m", hidden=576, intermediate=1664, layers=7, steps=1_500, learning_rate=1e-3,
         batch_examples=1_024, facts=16_000, head_width=64, enough_recall=0.95),
    Rung("60m", hidden=768, intermediate=2176, layers=8, steps=1_500, learning_rate=8e-4,
         batch_examples=1_024, facts=16_000, head_width=64, enough_recall=0.95),
    Rung("100m", hidden=896, intermediate=2496, layers=10, steps=1_500, learning_rate=7e-4,
         batch_examples=1_024, facts=16_000, head_width=64, enough_recall=0.95),
)  # fmt: skip


def find_larger(name: str) -> Rung:
    """The larger rung of this name, built or not; StudyError naming those there are."""
    for rung in LARGER_RUNGS:
        if rung.name == name:
            return rung
    known = ", ".join(rung.name for rung in LARGER_RUNGS)
    rule = "no rung that is built where it is used has this name"
    remedy = f"Use one of: {known}. The bundled ones are rebuilt without a name"
    raise StudyError(f"rung {name}", rule, remedy)


def known_facts(name: str) -> int:
    """How many of the first OLD facts the rung of this name has read."""
    for rung in (*RUNGS, *LARGER_RUNGS):
        if rung.name == name:
            return rung.facts or USUAL_FACTS
    raise unknown_rung(name)


def built_folder(name: str) -> Path:
    """The folder of a larger rung that was built here; StudyError with how to build it."""
    if name not in [rung.name for rung in LARGER_RUNGS]:
        raise unknown_rung(name)
    folder = BUILT / f"ladder-{name}"
    if not folder.is_dir():
        rule = "this rung is not bundled and was not built here yet"
        raise StudyError(f"ladder:{name}", rule, f"Build it: make ladder RUNG={name}")
    return folder


def unknown_rung(name: str) -> StudyError:
    known = ", ".join(f"ladder:{rung.name}" for rung in (*RUNGS, *LARGER_RUNGS))
    return StudyError(f"ladder:{name}", "no rung has this name", f"Use one of: {known}")
