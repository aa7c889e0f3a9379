"""What moved between two results folders, in words: by how much, and by which rule.

Not covered: judging it (studylib.reporting.compare_studies).
"""

from __future__ import annotations

from functools import partial

from studylib.core.metrics import byte_size, plain_number, points
from studylib.reporting.compare_studies import ALPHA, SHARES, ComparedStudies, Move

APART = "the seeds' ranges do not overlap"
RULES = {
    "paired": f"paired on the same items, Holm-corrected p at most {ALPHA}",
    "unpaired": f"other items, so as independent samples, Holm-corrected p at most {ALPHA}",
    "time": f"{APART} and the medians differ by over {SHARES['time']:.0%}",
    "memory": f"{APART} and the peaks differ by over {SHARES['memory']:.0%}",
    "counted": "any difference, for it is counted",
    "ratio": "the 95 % intervals do not overlap",
    "status": "any difference",
}


def format_moves(compared: ComparedStudies) -> str:
    """What moved, by how much and by which rule; then how much did not."""
    lines = [f"{compared.before} -> {compared.after}"]
    lines += [f"  {key}: {a} -> {b}" for key, (a, b) in compared.settings.items()]
    moved = compared.moved
    kept = len(compared.moves) - len(moved)
    lines.append(f"{len(moved)} of {len(compared.moves)} figures moved by more than their noise.")
    lines += [f"- {m.what}, {m.figure}: {change_words(m)} ({RULES[m.rule]})" for m in moved]
    if kept:
        lines.append(f"{kept} figures did not.")
    for words, names in (("only in the first", compared.only_before),
                         ("only in the second", compared.only_after)):  # fmt: skip
        if names:
            lines.append(f"{words}: {', '.join(names)}")
    return "\n".join(lines)


def change_words(move: Move) -> str:
    """Both values with what lies between them."""
    if isinstance(move.before, str) or isinstance(move.after, str) or move.difference is None:
        return f"{move.before} -> {move.after}"
    if move.rule in ("paired", "unpaired"):
        span = f"{points(move.low or 0)} to {points(move.high or 0)}"
        return (
            f"{move.before:.1%} -> {move.after:.1%}, {points(move.difference)} pp ({span}), "
            f"p {move.p_value:.2g}"
        )
    if move.rule == "ratio":
        return f"{move.before:.3f} -> {move.after:.3f}"
    is_size = move.rule == "memory" or "disk" in move.figure or move.figure == "One more variant"
    show = byte_size if is_size else partial(plain_number, digits=4)
    return f"{show(move.before)} -> {show(move.after)} ({move.difference:+.1%})"
