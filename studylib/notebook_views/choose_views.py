"""What the choosing notebook shows: the ranking, dollars against variants, the rule against it.

Every function takes a case and evidence and returns Markdown, a table or a figure.

Not covered: the advice itself (studylib.advice.advise) and its text for a terminal
(studylib.advice.advice_text).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from studylib.advice.advice_text import describe_case
from studylib.advice.advice_words import name_failings, span_words
from studylib.advice.advise import Advice, advise
from studylib.advice.article_rule import compare_with_article, grid_cases, tabulate_disagreement
from studylib.advice.option import Option
from studylib.advice.rank_methods import rank_options
from studylib.advice.turning_points import MOST_VARIANTS, capital, name_option
from studylib.core.metrics import MISSING, decimals
from studylib.notebook_views.report_views import dollar_signs
from studylib.notebook_views.views import finish
from studylib.planning.case import CHANGE_WORDS, Case, Evidence, JobForecast, parse_cards
from studylib.reporting.blocks import GLUE, Table, figures, named, words
from studylib.schema.methods import METHODS
from studylib.schema.ranges import NOTHING, Range

ANY = "any"
LABEL_GAP = 0.07  # of the axes' height
GRID_CARDS = ((1, "rtx4090-24gb"), (8, "a100-80gb"))
MEASURED = {"points": "points behind full", "latency": "latency overhead (%)"}


def change_case(case: Case, **changes: Any) -> Case:
    """The case with other values; cards may be written 8xa100-80gb, or None for any on offer."""
    if "cards" in changes:
        cards = changes.pop("cards")
        count, name = parse_cards(cards) if cards else (1, None)
        changes |= {"gpus": count, "gpu": name}
    if changes.get("change", case.change) != "knowledge":
        changes["facts"] = None
    return Case.model_validate(case.model_dump() | changes)


def choose_by_menus(case: Case, evidence: Evidence) -> Callable[..., Any]:
    """A function of four menus that shows the answer and the ranking of the changed case."""

    def show(change: str, variants: int, margin_pp: Any, cards: Any) -> Any:
        return show_choice(
            case, evidence, change=change, variants=variants,
            max_accuracy_loss_pp=None if margin_pp == ANY else margin_pp,
            cards=None if cards == ANY else cards,
        )  # fmt: skip

    return show


def offer(first: Any, others: Sequence[Any]) -> list[Any]:
    """Choices of a menu, the first one first, each once; None reads `any`."""
    return list(dict.fromkeys(ANY if value is None else value for value in [first, *others]))


def show_choice(case: Case, evidence: Evidence, **changes: Any) -> Any:
    """The answer and the ranking of a changed case, as Markdown."""
    from IPython.display import Markdown

    changed = change_case(case, **changes)
    advice = advise(changed, evidence)
    return Markdown(
        f"**{dollar_signs(advice.answer.text)}**\n\n"
        f"{dollar_signs(tabulate_ranking(changed, advice).markdown())}\n\n"
        f"{dollar_signs(advice.article_says.sentence)}"
    )


def tabulate_ranking(case: Case, advice: Advice) -> Table:
    """One row an option: dollars a year, points lost, latency, cards, whether it fits."""
    header = (named("Method"),
              *figures("$ a year ↓", "Points lost (pp) ↓", "Latency overhead (%) ↓"),
              *words("Trains on", "Fits"))  # fmt: skip
    rows = [
        (
            capital(name_option(option, case)),
            "no price" if option.cost is None else usd_words(option.cost.usd),
            span_cell(option.accuracy_loss, 1),
            span_cell(option.latency_overhead, 0),
            "—" if option.cost is None else fit_words(option.cost.job),
            "yes" if option.fits else "no: " + "; ".join(name_failings(case, option)),
        )
        for option in advice.ranking
    ]
    return Table(header, tuple(rows))


def fit_words(job: JobForecast) -> str:
    """fits 2 × a100-80gb, 60.5 GB of 85.0 GB (forecast)."""
    size = f"{job.fit.least_bytes / 1e9:.1f} GB of {job.fit.usable_bytes / 1e9:.1f} GB"
    return f"{job.fit.word} {job.gpus} × {job.gpu}, {size} (forecast)"


def usd_words(usd: Range) -> str:
    return f"{usd.mid:,.0f} ({usd.low:,.0f} to {usd.high:,.0f})".replace(" ", GLUE)


def span_cell(span: Range | None, digits: int) -> str:
    """The middle and the interval, 0 where it is nothing, a word where it is unknown."""
    if span is None:
        return MISSING
    return "0" if span == NOTHING else span_words(span, digits).replace(" ", GLUE)


def format_figure(value: float | None, digits: int) -> str:
    """A dash where there is no figure."""
    return "—" if value is None or pd.isna(value) else decimals(value, digits)


def list_reasons(case: Case, advice: Advice) -> str:
    """Every reason of every option, and below them the ids that they rest on, as Markdown."""
    notes: dict[str, int] = {}
    lines = []
    for option in advice.ranking:
        lines.append(f"- {capital(name_option(option, case))}")
        for reason in option.reasons:
            numbers = sorted(notes.setdefault(i, len(notes) + 1) for i in reason.evidence)
            marks = f" <sup>{', '.join(map(str, numbers))}</sup>" if numbers else ""
            lines.append(f"    - {reason.text}{marks}")
    lines += ["", "What they rest on:", ""]
    lines += [f"{number}. `{i}`" for i, number in notes.items()]
    return dollar_signs("\n".join(lines))


def list_changes(advice: Advice) -> str:
    """What would change the answer, then what nothing tells, with the commands, as Markdown."""
    lines = [f"- {flip.sentence}" for flip in advice.changes_if]
    lines += ["", "Nothing here tells:", ""]
    lines += [f"- {gap.what}  \n  `{gap.command}`" for gap in advice.missing_evidence]
    return dollar_signs("\n".join(lines))


def tabulate_evidence(evidence: Evidence) -> pd.DataFrame:
    """The measured gaps and overheads that the advice may use, each with the runs it is from."""
    rows = [
        {
            "measured": MEASURED["points"],
            "model": a.model if a.against == a.model else f"{a.model} against {a.against}",
            "method": METHODS[a.method].in_words + (", merged" if a.merged else ""),
            "on": CHANGE_WORDS[a.change] + ("" if a.facts is None else f", {a.facts:,} facts"),
            "value": span_cell(a.loss_pp, 1),
            "from": run_words(a.ids),
            "records": len(a.ids),
        }
        for a in evidence.accuracy
    ]
    rows += [
        {
            "measured": MEASURED["latency"],
            "model": row.model,
            "method": METHODS[row.method].in_words,
            "on": row.device,
            "value": span_cell(row.overhead_percent, 1),
            "from": run_words((row.id,)),
            "records": 1,
        }
        for row in evidence.latency
    ]
    columns = ["measured", "model", "method", "on", "value", "from", "records"]
    return pd.DataFrame(rows, columns=columns).set_index(columns[:2])


def run_words(ids: Sequence[str]) -> str:
    """The study and the run of the first record, without its seed."""
    study, _, run = ids[0].removeprefix("record:").replace("/serve/", "/runs/").partition("/runs/")
    return f"{study.rpartition('/')[2]}: {re.sub(r'--s[0-9]+$', '', run)}"


def plot_variants(case: Case, evidence: Evidence) -> Figure:
    """Dollars a year against the number of variants, a line an option; dashed where it fails."""
    counts = np.unique(np.geomspace(1, min(1000, MOST_VARIANTS), 40).astype(int))
    lines: dict[tuple[str, str], list[Option]] = {}
    for count in counts:
        for option in rank_options(change_case(case, variants=int(count)), evidence):
            lines.setdefault((option.model, option.method), []).append(option)
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    ends = {}
    for (model, method), options in lines.items():
        usd = [np.nan if o.usd_per_year is None else o.usd_per_year for o in options]
        own = model == case.model
        colour = METHODS[method].colour if own else "#6b6b6b"
        style = "-" if all(o.fits for o in options) else "--"
        axes.plot(counts, usd, style, color=colour, linewidth=2 if own else 1.2)
        if np.isfinite(usd[-1]):
            label = METHODS[method].in_words + ("" if own else f",\n{model.partition(':')[2]}")
            ends[label] = (usd[-1], colour)
    axes.axvline(case.variants, color="#bbbbbb", linewidth=1)
    axes.set(xscale="log", xlabel="variants kept ready", ylabel="$ a year")
    axes.set_xlim(1, counts[-1])
    if ends:
        axes.set_yscale("log")
    else:  # a misspelt model, a card without an offer: the ranking above says which
        axes.set(yticks=[])
        axes.text(0.5, 0.5, "no option has a known price", ha="center", transform=axes.transAxes)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    if ends:
        label_ends(axes, ends)
    return finish(figure)


def label_ends(axes: Axes, ends: dict[str, tuple[float, str]]) -> None:
    """Names at the lines' right ends, moved up where two would touch."""
    low, high = np.log(axes.get_ylim())
    place = -1.0
    for label, (value, colour) in sorted(ends.items(), key=lambda end: end[1][0]):
        place = max((np.log(value) - low) / (high - low), place + LABEL_GAP)
        axes.annotate(
            label, (1.01, place), xycoords="axes fraction", color=colour, va="center", fontsize=9,
            annotation_clip=False,
        )  # fmt: skip


def caption_variants(case: Case) -> str:
    """What the lines are, for the case that they were drawn for."""
    return dollar_signs(
        f"Dollars a year against variants: {describe_case(case)} Dashed: an option that fails what "
        "was asked for at some number of variants. The grey line marks this case."
    )


def compare_rule(case: Case, evidence: Evidence) -> pd.DataFrame:
    """The grid of cases around the reader's model, each with both choices."""
    return compare_with_article(grid_cases([case.model], [None, *GRID_CARDS]), evidence)


def caption_rule(grid: pd.DataFrame) -> str:
    """In how many cases the two part ways, and what the article's choice costs there."""
    apart = grid[~grid["agree"]]
    nothing = int((grid["ours"] == "nothing fits").sum())
    fails = apart[~apart["article_fits"] & (apart["ours"] != "nothing fits")]
    both = apart[apart["article_fits"]]
    dearer, close = both["usd_more"].dropna(), int(both["close"].sum())
    text = (
        f"The two differ in {len(apart):,} of {len(grid):,} cases. In {nothing:,} of them nothing "
        f"is shown to fit; in {len(fails):,} the article's choice is not shown to fit and another "
        "is"
    )
    if len(dearer):
        text += (
            f"; in {len(dearer):,} both fit and the article's choice costs ${dearer.median():,.0f} "
            f"a year more in the middle of them (${dearer.min():,.0f} to ${dearer.max():,.0f}), "
            f"which in {close:,} of these is less than the forecast hours are uncertain by"
        )
    return dollar_signs(f"{text}.")


def show_disagreement(grid: pd.DataFrame) -> pd.DataFrame:
    """By both choices, in words and whole dollars: cases, dollars and points between them."""
    table = tabulate_disagreement(grid)
    words = {name: row.in_words for name, row in METHODS.items()} | {"nothing fits": "nothing fits"}
    shown = pd.DataFrame(
        {
            "the article says": table["article"].map(words),
            "the evidence says": table["ours"].map(words),
            "cases": [f"{n:,}" for n in table["cases"]],
            "its choice is not shown to fit": [f"{n:,}" for n in table["article_does_not_fit"]],
            "$ a year more, median": [format_figure(x, 0) for x in table["usd_more_median"]],
            "$ a year more, most": [format_figure(x, 0) for x in table["usd_more_most"]],
            "points lost more, median": [format_figure(x, 1) for x in table["points_more_median"]],
        }
    )
    return shown.set_index(["the article says", "the evidence says"])
