"""The picture that decides: what each method keeps of full fine-tuning's gain, at what memory.

One panel a track of the best evidence: pretrained models before toys.

Not covered: which evidence is best, and the shares (studylib.reporting.kept).
"""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from studylib.reporting.evidence_kinds import model_words
from studylib.reporting.kept import KeptGain, best_evidence, read_kept
from studylib.reporting.panels import (
    INK,
    Names,
    colour,
    draw_panels,
    note_on_line,
)
from studylib.reporting.summary import Comparison, Summary
from studylib.reporting.team_advice import is_deep, tell_seeds

MOST = 50.0  # per cent of the gain
NAME = "kept-and-memory"
CAPTION = (
    "What each method keeps of full fine-tuning's gain, against the memory that its training "
    "takes; lines are 95 % intervals, up and left is better"
)


def draw_decision(studies: Sequence[Summary]) -> Figure | None:
    """One panel a track of the best evidence; None where no share of a gain is known."""
    found = [(c, read_kept(c)) for c in best_evidence(studies)]
    shown = [(c, kept) for c, kept in found if all(one.memory is not None for one in kept)]
    if not shown:
        return None
    lows = [100 * k.low for _, kept in shown for k in kept]
    highs = [100 * k.high for _, kept in shown for k in kept]
    # Where every method keeps most of it, the differences get the room.
    floor = 10 * (min(lows) // 10) - 5 if min(lows) > MOST else min(-12.0, *lows) - 4

    def draw(panel: Axes, one: tuple[Comparison, list[KeptGain]]) -> Names:
        comparison, kept = one
        seeds = tell_seeds([k.seeds for k in kept])
        change = f"a small change ({comparison.track})"
        change = "a new language" if is_deep(comparison) else change
        model = model_words(comparison.model, comparison.total_params)
        panel.set(title=f"{change}{seeds}\n{model}",
                  xlabel="← memory of training (% of full fine-tuning's)",
                  ylabel="gain kept (% of full fine-tuning's) ↑")  # fmt: skip
        labels = []
        for k in kept:
            assert k.memory is not None
            x, y = 100 * k.memory, 100 * k.share
            panel.errorbar(
                x, y, yerr=[[y - 100 * k.low], [100 * k.high - y]], color=colour(k.method),
                marker=k.method.kind.marker, markersize=8, capsize=3, linewidth=1.4, linestyle="",
            )  # fmt: skip
            labels.append((x, y, k.method.label, colour(k.method)))
        panel.axhline(100, color=INK, linewidth=0.8, linestyle=":")
        if floor < 0:
            panel.axhline(0, color=INK, linewidth=0.8, linestyle=":")
            note_on_line(panel, 0, "nothing learned", below=True)
        panel.set(xlim=(0, 118), ylim=(floor, max(*highs) + (8 if floor < 0 else 3)))
        return labels

    return draw_panels(shown, draw)
