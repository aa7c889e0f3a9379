"""Does an adapter suffice for the reader's task? One sentence a method, with what decided it.

A method suffices where the 95 % interval of what it loses against full fine-tuning lies within the
margin that the reader allows (evaluate.margin): per cent of full's gain over the base for a loss,
percentage points for a share of right answers. The first measure that was asked for judges;
without measures, the questions do. Report, terminal and notebook show these sentences.

Not covered: the rule (studylib.core.enough), tables (studylib.reporting.own_study).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from studylib.core import enough, item_stats
from studylib.core.enough import Decision
from studylib.core.metrics import decimals, percent
from studylib.core.stats import Estimate
from studylib.planning.sizing import round_up
from studylib.reporting.cells import measure_number
from studylib.reporting.measured import HELD_OUT, MeasuredFigure
from studylib.reporting.notes import at_edge, join_words
from studylib.reporting.summary import Comparison, Row, Summary
from studylib.schema.methods import UNTRAINED, WHOLE

ENDS = {"enough": "it suffices", "not enough": "it does not suffice"}


@dataclass(frozen=True)
class Judged:
    """One method's figure beside full fine-tuning's and the base's, as the rule takes it.

    what: the figure's name in a sentence. ours, full, base: as they are shown, unit left out. kept:
    of full's gain, 1 being all (a loss), or the difference to full (a share); None where full's
    gain is not told from zero, or there is no full or no base. gain: full's over the base, more
    being better; None where it is not known. noun, count: what was asked, how many of them.
    """

    what: str
    unit: str
    is_share: bool
    ours: str
    full: str | None
    base: str | None
    kept: Estimate | None
    gain: Estimate | None
    noun: str
    count: int

    @property
    def learned(self) -> bool:
        """Whether full fine-tuning gained something that shows."""
        return self.gain is not None and self.gain.low > 0

    @property
    def lost(self) -> tuple[float, float, float]:
        """What is lost against full fine-tuning, with its interval; below zero is more than it."""
        assert self.kept is not None
        whole = 0.0 if self.is_share else 1.0
        return whole - self.kept.value, whole - self.kept.high, whole - self.kept.low

    @property
    def lost_unit(self) -> str:
        return "points" if self.is_share else "%"


@dataclass(frozen=True)
class MethodVerdict:
    """A method's answer on one model and track. decision: None where nothing could be judged."""

    method: str
    decision: Decision | None
    sentence: str


def tell_verdict(summary: Summary) -> str:
    """The verdict in one line: what is not tuned, then a sentence for each method."""
    words = [untuned(summary), *(verdict.sentence for verdict in verdicts(summary)), edges(summary)]
    return " ".join(word for word in words if word)


def verdicts(summary: Summary) -> list[MethodVerdict]:
    """A verdict for each adapter method of every model and track, in their order."""
    found = []
    several = len({c.name for c in summary.comparisons}) > 1
    for comparison in summary.comparisons:
        words = [f"track {comparison.track}"] if len(summary.tracks) > 1 else []
        words += [comparison.name] if several else []
        where = f" ({', '.join(words)})" if words else ""
        opening = f"On your {'task' if comparison.measured else 'questions'}{where} "
        first, *others = judge_all(comparison)
        found += [replace(first, sentence=opening + first.sentence), *others]
    return found


def margin_of(comparison: Comparison) -> float:
    """What an adapter may lose, in per cent: as the study is planned now, else as it was run."""
    specs = [s for s in comparison.study.planned if s.track == comparison.track]
    specs += [record.run for row in comparison.rows for record in row.records]
    return specs[0].evaluate.margin


def judge_all(comparison: Comparison) -> list[MethodVerdict]:
    """The verdict on each trained method but full, or one sentence on why there is none."""
    rows = [row for row in comparison.rows if row.method.kind.trains and row.method.name != WHOLE]
    missing = dict.fromkeys(s.method.label for s in comparison.missing if s.method.kind.adapter)
    missing = {label: None for label in missing if label not in {r.method.label for r in rows}}
    if not rows and not missing:
        why = "no method was run beside full fine-tuning: there is nothing to choose between."
        return [MethodVerdict("", None, why)]
    found = [judge_row(comparison, row) for row in rows]
    return [*found, *(MethodVerdict(label, None, f"{label} was not run to its end.")
                      for label in missing)]  # fmt: skip


def judge_row(comparison: Comparison, row: Row) -> MethodVerdict:
    label = row.method.label
    if not row.complete:
        return MethodVerdict(label, None, f"{label} has no result ({row.status}).")
    figures = read_figures(comparison, row)
    if not figures:
        why = next((r.evaluate.reason for r in row.complete if r.evaluate and r.evaluate.reason),
                   "nothing was asked")  # fmt: skip
        return MethodVerdict(label, None, f"{label} cannot be judged ({why}).")
    judged, margin = figures[0], margin_of(comparison)
    shown = judged_words(judged)
    if judged.full is None:
        full = comparison.row(WHOLE)
        why = (full and full.status) or "it was not run"
        text = (f"{label} has nothing to be compared with: full fine-tuning has no result ({why}); "
                f"{shown}.")  # fmt: skip
        return MethodVerdict(label, None, text)
    decision = decide_method(judged, margin)
    if decision is None:
        text = f"{label} cannot be judged: {no_gain(judged)} ({shown}{gain_words(judged)})"
        return MethodVerdict(label, None, f"{text}: {way_to_gain(judged)}.")
    text = f"{label} {lost_words(judged)} ({shown}, {interval_words(judged)})"
    return MethodVerdict(label, decision, f"{text}: {end_words(decision, judged, margin)}.")


def decide_method(judged: Judged, margin: float) -> Decision | None:
    """Whether it keeps enough; None where full fine-tuning has no gain to be kept."""
    if judged.kept is None or not judged.learned:
        return None
    return enough.decide_enough(judged.kept, (0 if judged.is_share else 1) - margin / 100)


def read_figures(comparison: Comparison, row: Row) -> list[Judged]:
    """What a method came to by each measure on held-out examples, as they were asked, then on the
    questions: the first of them gives the verdict."""
    shown = [f for f in comparison.measured if f.of == HELD_OUT and not f.other_weights]
    ours = [f for f in shown if f.label == row.method.label and f.measure.key == f.measure.asked]
    found = [read_measure(one, [f for f in shown if f.measure is one.measure]) for one in ours]
    return [*found, *([judged_accuracy(comparison, row)] if row.accuracy else [])]


def read_measure(ours: MeasuredFigure, every: list[MeasuredFigure]) -> Judged:
    """A method's figure on held-out examples. every: each method's of the same measure."""
    measure = ours.measure
    first = {found.method: found for found in reversed(every)}
    full, base = first.get(WHOLE), first.get(UNTRAINED)
    shown = [measure_number(found.estimate.value, measure, signed=False) if found else None
             for found in (ours, full, base)]  # fmt: skip
    gain = full.gain if full else None
    if gain and measure.sign < 0:  # turned, so that more is better
        gain = replace(gain, value=-gain.value, low=-gain.high, high=-gain.low)
    return Judged(measure.label[0].lower() + measure.label[1:], measure.unit, measure.is_share,
                  shown[0] or "", shown[1], shown[2], ours.gap if measure.is_share else ours.share,
                  gain, "held-out examples", ours.estimate.clusters)  # fmt: skip


def judged_accuracy(comparison: Comparison, row: Row) -> Judged:
    """The same of right answers to questions."""
    full, base = comparison.row(WHOLE), comparison.row(UNTRAINED)
    assert row.accuracy is not None
    shown = [percent(r.accuracy.value) if r and r.accuracy else None for r in (row, full, base)]
    return Judged("right answers", "%", True, shown[0] or "", shown[1], shown[2], row.gap,
                  full.gain if full else None, "questions", row.accuracy.items)  # fmt: skip


def judged_words(judged: Judged) -> str:
    """`held-out loss 1.412 against 1.406 nats/token, base 2.003`"""
    against = "" if judged.full is None else f" against {judged.full}"
    base = "" if judged.base is None else f", base {judged.base}"
    return f"{judged.what} {judged.ours}{against} {judged.unit}{base}"


def lost_words(judged: Judged) -> str:
    lost, least = judged.lost[0], percent(abs(judged.lost[0]))
    if judged.is_share and lost < 0:
        return f"gains {least} points more than full fine-tuning"
    if judged.is_share:
        return f"loses {least} points against full fine-tuning"
    if lost < 0:
        return f"gains {least} % more than full fine-tuning does"
    return f"loses {least} % of full fine-tuning's gain"


def interval_words(judged: Judged) -> str:
    """What may be lost, on how much data, and the least that these data show."""
    assert judged.kept is not None
    low, high = (percent(end) for end in judged.lost[1:])
    least = item_stats.detectable(judged.kept)
    shows = "" if least is None else f"loss of {percent(least)} {judged.lost_unit}"
    span = f"95 % interval of what is lost {low} to {high} {judged.lost_unit}"
    return span + data_words(judged, judged.kept, least, shows)


def gain_words(judged: Judged) -> str:
    """On how much data full's gain was looked for, and the least that these data show."""
    gain = judged.gain
    if gain is None:
        return ""
    low, high = (show_gain(judged, end) for end in (gain.low, gain.high))
    least = item_stats.detectable(gain)
    shows = "" if least is None else f"gain of {show_gain(judged, least)}"
    span = f", 95 % interval of full's gain {low} to {high}"
    return span + data_words(judged, gain, least, shows)


def data_words(judged: Judged, estimate: Estimate, least: float | None, shows: str) -> str:
    """On how many items and seeds an interval rests; what these data show, unless nothing is."""
    text = f", {judged.count:,} {judged.noun}"
    text += f" × {estimate.seeds} seeds" if estimate.seeds > 1 else ", one seed"
    if least is None or (judged.is_share and least > 1):
        return text
    return f"{text}, a {shows} would have shown"


def show_gain(judged: Judged, value: float) -> str:
    return f"{percent(value)} points" if judged.is_share else decimals(value, 3)


def end_words(decision: Decision, judged: Judged, margin: float) -> str:
    kept = judged.kept
    assert kept is not None
    allowed = f"within the {margin:g} {judged.lost_unit} asked for"
    if decision.kind != "open":
        also = "" if kept.seed_se is not None else ", for these runs of one seed alone"
        return f"{ENDS[decision.kind]} {allowed}{also}"
    text = f"cannot say yet whether it suffices {allowed}"
    spread = item_stats.item_spread(kept)
    if spread and not kept.seed_se:
        need = item_stats.items_to_show(spread, margin / 100)
        if need > kept.clusters:
            text += f" (about {round_up(need):,} {judged.noun} show a loss as large as that)"
    if ways := ways_to_decide(decision, judged):
        return f"{text}: {' or '.join(ways)} would, if the loss stays what it is"
    if kept.seed_se:
        return f"{text}: it takes both more {judged.noun} and more seeds"
    return f"{text}: what was found lies at that margin itself"


def ways_to_decide(decision: Decision, judged: Judged) -> list[str]:
    """How many more items, or seeds, would decide by themselves."""
    ways = []
    if decision.times_items is not None:
        more = round_up(judged.count * (decision.times_items - 1))
        ways.append(f"about {more:,} more {judged.noun}")
    if decision.more_seeds is not None:
        many = "s" if decision.more_seeds > 1 else ""
        ways.append(f"{'' if ways else 'about '}{decision.more_seeds} more seed{many}")
    return ways


def no_gain(judged: Judged) -> str:
    if judged.base is None:
        return "the untrained model has no result"
    if judged.gain is not None and judged.gain.high < 0:
        return "full fine-tuning made it worse, so that there is no gain to lose"
    return "full fine-tuning itself gained nothing that shows"


def way_to_gain(judged: Judged) -> str:
    """What would tell whether there is a gain, or make one."""
    train = "train for more steps (STEPS=), or at other rates (SWEEP=1)"
    gain = judged.gain
    ways: list[str] = []
    if gain is not None and gain.value > 0:
        ways = ways_to_decide(enough.decide_enough(gain, 0.0), judged)
    if not ways:
        return train
    return f"{' or '.join(ways)} would tell, if the gain stays what it is; else {train}"


def untuned(summary: Summary) -> str:
    """That learning rates are not tuned, where they are the methods' defaults."""
    records = (record for record in summary.study.records if record.run.method.kind.trains)
    plain = {r.run.method.label: None for r in records if "not tuned" in r.run.learning_rate_source}
    if not plain:
        return ""
    return (f"Learning rates are not tuned ({join_words([*plain])} ran at their defaults): a "
            "method may look worse for its rate alone.")  # fmt: skip


def edges(summary: Summary) -> str:
    """That a rate in use is its sweep's lowest or highest."""
    names = dict.fromkeys(
        row.method.label for c in summary.comparisons for row in c.rows if at_edge(row)
    )
    if not names:
        return ""
    return (f"The best learning rate of {join_words([*names])} was the lowest or highest tried: a "
            "better one may lie beyond (SET=tune.extend=2 tries it).")  # fmt: skip
