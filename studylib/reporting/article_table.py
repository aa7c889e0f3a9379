"""The article's table beside ours: a row a claim, what was found, how, and one verdict.

A row's verdict comes from the findings of its parts (studylib.reporting.claims). A finding of a toy
model settles nothing of what a large one learns: such a row is not known yet, and says what the toy
showed. A claim about the article's size is refuted by that size alone.

Not covered: the findings' own verdicts, the evidence in full (studylib.reporting.appendices).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from studylib.core.metrics import plain_number
from studylib.core.verdicts import Measured
from studylib.reporting.appendix_files import link_to
from studylib.reporting.blocks import Table, named, words
from studylib.reporting.claim_sources import KEPT, with_unit
from studylib.reporting.claims import Finding, Place, read_claims
from studylib.reporting.evidence_kinds import (
    is_article_size,
    kind_of_model,
    model_words,
    optimizer_words,
    rank_learning,
)
from studylib.reporting.glossary import few_seeds
from studylib.reporting.notes import edge_words

HOLDS, FAILS, DEPENDS, UNKNOWN = "holds", "does not hold", "depends", "not known yet"
LEARNING = ("behind_full", "share_of_gain")
UNITS = {"pp": "points behind"}
SAMPLED = ("pp", "%")  # figures whose interval comes from sampling
Part = dict[str, Any]


@dataclass(frozen=True)
class ClaimRow:
    """One claim. verdict: one of the four words; reason: on what it depends, or what keeps it from
    being known, else empty."""

    claim: str
    topic: str
    says: str
    found: str
    how: str
    verdict: str
    reason: str

    @property
    def because(self) -> str:
        """The reason as it follows the verdict."""
        return f": {'on ' if self.verdict == DEPENDS else ''}{self.reason}" if self.reason else ""

    @property
    def title(self) -> str:
        """The heading of its evidence."""
        return f"{self.claim}: {self.topic}"


def claim_rows(findings: Sequence[Finding]) -> list[ClaimRow]:
    """All rows in the order of the claims."""
    rows = []
    for claim, content in read_claims().items():
        parts = [part for part in content["parts"] if not part.get("beside")]
        own = [(p, [f for f in findings if (f.claim, f.part) == (claim, p["key"])]) for p in parts]
        shown = [(part, best_findings(part, found)) for part, found in own]
        verdict = join_verdicts([settle_part(part, found) for part, found in shown])
        rows.append(ClaimRow(
            claim, content["topic"], content["says"], tell_found(shown), tell_how(shown), verdict,
            give_reason(content, verdict, [f for _, found in shown for f in found]),
        ))  # fmt: skip
    return rows


def article_table(findings: Sequence[Finding]) -> Table:
    """The first screen's table; each verdict leads to its evidence."""
    header = (named("Claim"), *words("The article says", "We found", "How", "Verdict"))
    rows = [
        (f"**{row.claim}** {row.topic}", row.says, row.found, row.how,
         f"[**{row.verdict}**]({link_to('claims', row.title)}){row.because}")
        for row in claim_rows(findings)
    ]  # fmt: skip
    return Table(header, tuple(rows))


# Verdicts -----------------------------------------------------------------------------------------


def best_findings(part: Part, findings: Sequence[Finding]) -> list[Finding]:
    """The findings with a figure that say most of a part: of what is learned those of the best
    model alone, of what it takes those of no toy, unless there is nothing else."""
    figured = [f for f in findings if f.measured is not None]
    if part.get("source", {}).get("measure") in LEARNING:
        ranked = [(rank_learning(f.at.model, f.at.params), f) for f in figured if f.at]
        best = max((rank for rank, _ in ranked), default=None)
        return [f for rank, f in ranked if rank == best]
    return figured if part.get("toys_speak") else [f for f in figured if not f.is_toy] or figured


def settle_part(part: Part, findings: Sequence[Finding]) -> str:
    """One of the four words for a part. One reading that agrees and none that differs is enough to
    hold; not to hold, every one has to differ."""
    able = [f for f in findings if part.get("toys_speak") or not f.is_toy]
    verdicts = {f.verdict for f in able} & {"reproduced", "differs", "inconclusive"}
    if any(f.got == "counted" and f.verdict == "inconclusive" for f in able):
        return DEPENDS
    if not verdicts or verdicts == {"inconclusive"}:
        return UNKNOWN
    if "differs" not in verdicts:
        return HOLDS
    if verdicts != {"differs"}:
        return DEPENDS
    sized = any(f.at is None or is_article_size(f.at.params) for f in able)
    return DEPENDS if part.get("sized") and not sized else FAILS


def join_verdicts(verdicts: Iterable[str]) -> str:
    """A claim's verdict from its parts'."""
    found = set(verdicts)
    if len(found) == 1:
        return found.pop()
    return UNKNOWN if found <= {HOLDS, UNKNOWN} else DEPENDS


def give_reason(content: Mapping[str, Any], verdict: str, shown: Sequence[Finding]) -> str:
    """On what a verdict depends; what keeps one from being known: few seeds, rates at an edge."""
    if verdict == DEPENDS:
        return content["depends_on"]
    open_ = [f for f in shown if f.verdict == "inconclusive" and not f.is_toy]
    if verdict != UNKNOWN or not any(f.cautions for f in open_):
        return ""
    words = ["too few seeds"] if any(f.is_few for f in open_) else []
    edges = dict.fromkeys(label for f in open_ if f.at for label in f.at.at_edge)
    words += [edge_words([*edges])] if edges else []
    return ", and ".join(words)


# Words --------------------------------------------------------------------------------------------


def tell_found(parts: Sequence[tuple[Part, Sequence[Finding]]]) -> str:
    """Each part's figure under its name; forecasts beside what was measured, as a range."""
    shown = [f for _, found in parts for f in found]
    groups: dict[str, dict[str, None]] = {}
    for part, found in parts:
        if figures := tell_figures(found):
            words = groups.setdefault(part.get("of", ""), {})
            words[f"{part.get('name', '')} {figures}".strip()] = None
    told = "; ".join(f"{of}: {', '.join(w)}" if of else ", ".join(w) for of, w in groups.items())
    told = told or UNKNOWN
    beside = dict.fromkeys(f.beside for f in shown if f.beside and not f.is_toy)
    told = "; ".join([told, *beside])
    if not shown or not all(f.is_toy for f in shown):
        return told
    sizes = {f.at.params for f in shown if f.at is not None}
    return f"{'toy models' if len(sizes) > 1 else 'a toy model'}: {told}"


def tell_figures(findings: Sequence[Finding]) -> str:
    known = [f for f in findings if f.measured and f.got != "forecast"]
    traced = sorted(f.measured.value for f in findings if f.measured and f.got == "forecast")
    unit = next((f.measured.unit for f in findings if f.measured), "")
    ends = [figure(value, unit) for value in dict.fromkeys(traced[:1] + traced[-1:])]
    span = " to ".join(dict.fromkeys(ends))
    if not known:
        return span
    first = known[0].measured
    assert first is not None
    if unit == KEPT:
        kept = (f"{plain_number(f.measured.value, 2)} % {interval_and_seeds(f.measured)}"
                for f in known if f.measured)  # fmt: skip
        return " and ".join(dict.fromkeys(kept))
    text = figure(first.value, unit)
    if known[0].rule and first.low is not None and unit in SAMPLED:
        text = f"{plain_number(first.value, 2)}{text[text.index(' ') :]}"
        text += f" {interval_and_seeds(first)}"
    if known[0].at is not None and known[0].at.optimizer:
        text += f" with {optimizer_words(known[0].at.optimizer)}"
    if known[0].got == "counted" and first.low is not None and first.low != first.high:
        text = f"{plain_number(first.low, 3)} to {figure(first.interval[1], unit)}"
    return f"{text} ({span} by forecast)" if span else text


def interval_and_seeds(measured: Measured) -> str:
    """A figure's interval, and its seeds where they are few."""
    low, high = (plain_number(end, 2) for end in measured.interval)
    few = f", {words}" if (words := few_seeds(measured.seeds)) else ""
    return f"({low} to {high}{few})"


def place_words(at: Place) -> str:
    """A toy, a card with random weights, or a pretrained model."""
    kind = kind_of_model(at.model)
    if kind == "toy":
        return "toy models"
    return f"{at.device}, random weights" if kind == "random" else model_words(at.model, at.params)


def figure(value: float, unit: str) -> str:
    return with_unit(value, UNITS.get(unit, unit))


def tell_how(parts: Sequence[tuple[Part, Sequence[Finding]]]) -> str:
    """How the figures were got: counted, measured on what, forecast."""
    shown = [f for _, found in parts for f in found]
    shown.sort(key=lambda f: (f.got != "counted", f.got == "forecast"))
    ways = (f"measured on {place_words(f.at)}" if f.at else f.got for f in shown)
    return "; ".join(dict.fromkeys(ways)) or "—"
