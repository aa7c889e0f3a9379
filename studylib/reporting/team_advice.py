"""Three sentences a team can act on, by rules over what was found; and what was not done.

The first is on a small change, the second on a deep one (a new language), the third on memory. Each
names the evidence that it rests on, its seeds where they are few. The rule for what is learned is
article.yaml's: a method is enough where its interval lies above a share of full fine-tuning's gain
in so many seeds, and falls short where it lies below.

Not covered: the figures (studylib.reporting.kept, claims), advice for a reader's own case
(`study advise`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from studylib.core.metrics import byte_size
from studylib.reporting.article_table import HOLDS, best_findings, settle_part
from studylib.reporting.claims import Finding, Place, read_claims
from studylib.reporting.evidence_kinds import (
    is_article_size,
    kind_of_model,
    model_words,
    optimizer_words,
)
from studylib.reporting.glossary import enough_rule, few_seeds, word_link
from studylib.reporting.kept import KeptGain, best_evidence, read_kept
from studylib.reporting.notes import count_of, join_words
from studylib.reporting.summary import Comparison, Summary
from studylib.schema.methods import METHODS, WHOLE

ADAPTERS = [row.label for row in METHODS.values() if row.article and row.adapter]
ENOUGH_LINK = f"[enough]({word_link('enough')})"


@dataclass(frozen=True)
class TeamAdvice:
    """The three sentences, and one on what was not done."""

    small: str
    deep: str
    memory: str
    not_done: str


def advise_teams(studies: Sequence[Summary], findings: Sequence[Finding]) -> TeamAdvice:
    found = best_evidence(studies)
    return TeamAdvice(
        small=advise_small([c for c in found if not is_deep(c)]),
        deep=advise_deep([c for c in found if is_deep(c)]),
        memory=advise_memory(findings),
        not_done=tell_not_done(studies),
    )


def is_deep(comparison: Comparison) -> bool:
    """Whether a track teaches what the article calls a deep shift."""
    parts = [p for p in read_claims()["C8"]["parts"] if p["key"].startswith("deep")]
    return any(comparison.track in part["source"]["tracks"] for part in parts)


# What is learned ----------------------------------------------------------------------------------


def by_method(comparisons: Sequence[Comparison]) -> dict[str, list[KeptGain]]:
    """Method -> what it keeps in each comparison; full fine-tuning left out."""
    found: dict[str, list[KeptGain]] = {}
    for comparison in comparisons:
        for kept in read_kept(comparison):
            if not kept.is_full:
                found.setdefault(METHODS[kept.method.name].label, []).append(kept)
    return found


class Share(Protocol):
    """A share of full fine-tuning's gain, by the ends of its interval, and its number of seeds."""

    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    @property
    def seeds(self) -> int: ...


def grade_kept(kept: Sequence[Share]) -> str:
    """enough, once (enough, in too few seeds), short (of it), poor, or open."""
    rule = enough_rule()
    if all(k.low >= rule.share for k in kept):
        return "once" if any(k.seeds < rule.seeds for k in kept) else "enough"
    if all(k.high < rule.poor for k in kept):
        return "poor"
    return "short" if any(k.high < rule.share for k in kept) else "open"


def advise_small(comparisons: Sequence[Comparison]) -> str:
    """For a small change: whether an adapter is enough."""
    methods = by_method(comparisons)
    if not methods:
        return (
            "**Small change:** nothing was measured here that says which method learns more. "
            f"Start with {join_words(ADAPTERS, 'or')}, and test on your own data."
        )
    words = {label: grade_kept(kept) for label, kept in methods.items()}
    enough = {label: methods[label] for label, word in words.items() if word == "enough"}
    if enough:
        who = "It" if len(enough) == 1 else "They"
        return (
            f"**Small change:** use {join_words([*enough], 'or')}. {who} kept "
            f"{tell_shares(comparisons, enough)}."
        )
    every, told = join_words([*methods]), tell_shares(comparisons, methods)
    able = [label for label, word in words.items() if word != "poor"]
    if not able:
        return f"**Small change:** use full fine-tuning. {every} kept only {told}."
    text = f"**Small change:** start with {join_words(able, 'or')}, and test on your own data."
    if "short" in words.values():
        return f"{text} Expect to lose some gain: {every} kept {told}."
    return f"{text} These runs are too few to tell: {every} kept {told}."


def advise_deep(comparisons: Sequence[Comparison]) -> str:
    """For a new language: whether anything but full fine-tuning will do."""
    methods = by_method(comparisons)
    if not methods:
        return (
            "**Deep change**, such as a new language: nothing was measured here. Keep to the "
            "article's rule, full fine-tuning, until you have tested it."
        )
    words = {label: grade_kept(kept) for label, kept in methods.items()}
    told = {"enough": "{} was {}.", "once": "try {} first, not yet shown to be {}."}
    for asked, found in told.items():
        able = {label: methods[label] for label, word in words.items() if word == asked}
        if able:
            names = join_words([*able], "or")
            return (
                f"**Deep change**, such as a new language: {found.format(names, ENOUGH_LINK)} It "
                f"kept {tell_shares(comparisons, able)}."
            )
    of = f" of its gain ({evidence(comparisons, methods)})"
    text = "**Deep change**, such as a new language: plan for full fine-tuning."
    for grades, end in ((("poor", "short"), ""), (("open",), ", too unsteady to count on")):
        labels = [label for label, word in words.items() if word in grades]
        if labels:
            shares = share_range(k.share for label in labels for k in methods[label])
            text += f" {join_words(labels)} kept {shares}{of}{end}."
            of = ""
    return text


def tell_shares(comparisons: Sequence[Comparison], methods: dict[str, list[KeptGain]]) -> str:
    """What some methods kept, and on which evidence."""
    shares = share_range(k.share for kept in methods.values() for k in kept)
    return f"{shares} of full fine-tuning's gain ({evidence(comparisons, methods)})"


def share_range(shares: Iterable[float]) -> str:
    """75 %, or 6 to 75 %: the smallest and the largest of shares."""
    known = sorted(round(100 * share) for share in shares)
    ends = dict.fromkeys((known[0], known[-1]))
    return f"{' to '.join(str(end) for end in ends)} %".replace("-", "−")


def evidence(comparisons: Sequence[Comparison], methods: dict[str, list[KeptGain]]) -> str:
    """On which model it was seen, the largest of its kind; a toy leads to what it is. How many
    seeds, where some of these methods have few."""
    first = comparisons[0]
    seeds = tell_seeds([k.seeds for kept in methods.values() for k in kept])
    if kind_of_model(first.model) == "toy":
        return f"seen in one [toy model]({word_link('toy model')}) only{seeds}"
    return f"measured on {model_words(first.model, first.total_params)}{seeds}"


def tell_seeds(seeds: Sequence[int]) -> str:
    """`, one seed` or `, 1 to 3 seeds` where the fewest are few; else nothing."""
    least, most = min(seeds), max(seeds)
    few = few_seeds(least)
    return "" if not few else f", {few}" if least == most else f", {least} to {most} seeds"


# Memory -------------------------------------------------------------------------------------------


def advise_memory(findings: Sequence[Finding]) -> str:
    """What to rent for a 13B model: measured where it was, else what forecasts span."""
    parts: list[str] = []
    verdicts: set[str] = set()
    places: list[Place | None] = []
    for part in read_claims()["C2"]["parts"]:
        own = [f for f in findings if (f.claim, f.part) == ("C2", part["key"])]
        found = best_findings(part, own)
        if not found:
            continue
        at = found[0].at
        sizes = [f.measured.value for f in (found[:1] if at else found) if f.measured]
        ends = dict.fromkeys(byte_size(1e9 * size, 2) for size in (min(sizes), max(sizes)))
        way = "in full" if part["key"] == WHOLE else f"with {METHODS[part['key']].label}"
        way += f" with {optimizer_words(at.optimizer)}" if at and at.optimizer else ""
        parts.append(f"{' to '.join(ends)} {way}")
        places.append(at)
        verdicts.add(settle_part(part, found))
    if not parts:
        return "**Memory:** nothing was measured or forecast of a 13B model here."
    rule = "the article's figures hold" if verdicts == {HOLDS} else (
        "rent by method, and not by the article's figures")  # fmt: skip
    verb = "took" if any(places) else "takes"
    return f"**Memory:** {rule}. A 13B model {verb} {join_words(parts)} ({tell_places(places)})."


def tell_places(places: Sequence[Place | None]) -> str:
    """Measured on which card and at how many tokens, or forecast."""
    known = [at for at in places if at is not None]
    if not known:
        return "by forecast"
    text = f"measured on one {join_words(sorted({at.device for at in known}))}"
    text += ", or forecast" if None in places else ""
    rows = {at.rows for at in known}
    return text + (f", {rows.pop()} tokens at once" if len(rows) == 1 else "")


# What was not done --------------------------------------------------------------------------------


def tell_not_done(studies: Sequence[Summary]) -> str:
    """Which evidence is missing, in a sentence or two."""
    seen = {(c.model, c.total_params) for s in studies for c in s.comparisons}
    trained = {(m, p) for m, p in seen if kind_of_model(m) != "random"}
    real = [(m, p) for m, p in trained if kind_of_model(m) == "pretrained"]
    random = any(kind_of_model(m) == "random" and is_article_size(p) for m, p in seen)
    if any(is_article_size(p) for _, p in real):
        return ""
    text = "**Not done:** no 13B model was fine-tuned on real data"
    weights = f"[random weights]({word_link('random weights')})"
    text += f", it ran with {weights}." if random else "."
    if not real and trained:
        text += f" What is said of learning comes from {count_of(len(trained), 'toy model')} alone."
    elif real:
        largest = max(real, key=lambda found: (found[1] or 0, found[0]))
        text += f" What was learned was seen on {model_words(*largest)} and may differ there."
    return text
