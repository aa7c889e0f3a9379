"""The article's rule on a case, and where it and the evidence part ways over a grid of cases.

The rule: default to LoRA or QLoRA; full fine-tuning for a deep shift or for the last 1 to 2 points.
Read here as: full for a new language or for a margin below 1 point; else the better of LoRA and
QLoRA by this very evidence, for the rule leaves that open (studylib.advice.rank_methods).

Not covered: whether the rule's own figures hold (studylib.reporting.claims).
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import Any, get_args

import pandas as pd

from studylib.advice.option import ArticleSays, Option
from studylib.advice.rank_methods import article_method, rank_options, too_close
from studylib.advice.turning_points import money
from studylib.planning.case import Case, Change, Evidence
from studylib.schema.methods import METHODS


def find_option(options: Iterable[Option], model: str, method: str) -> Option:
    return next(o for o in options if (o.model, o.method) == (model, method))


def apply_article(case: Case, options: tuple[Option, ...]) -> ArticleSays:
    """What the rule says here, whether the evidence agrees, and the difference in dollars."""
    method, why = article_method(case, options)
    theirs = find_option(options, case.model, method)
    best = options[0] if options[0].fits else None
    agrees = best is not None and (best.model, best.method) == (case.model, method)
    difference = None
    if best is not None and theirs.usd_per_year is not None:
        difference = theirs.usd_per_year - best.usd
    text = f"The article's rule says {METHODS[method].in_words}: {why}."
    if agrees:
        text += " The evidence agrees."
    elif best is None:
        text += " Nothing fits by the evidence."
    else:
        ours = f"{METHODS[best.method].in_words} of {best.model}"
        text += f" The evidence says {ours}{cost_words(difference)}."
    ids = dict.fromkeys([*theirs.evidence, *(best.evidence if best else ())])
    return ArticleSays(
        method=method,
        model=case.model,
        sentence=text,
        agrees=agrees,
        usd_difference=difference,
        evidence=tuple(ids),
    )


def cost_words(difference: float | None) -> str:
    if difference is None:
        return "; the rule's choice fits no allowed card"
    more = "more" if difference >= 0 else "less"
    return f"; the rule's choice costs {money(abs(difference))} a year {more}"


GRID_KEYS = ("gpus", "gpu", "change", "tokens", "variants", "retrains_per_year",
             "max_accuracy_loss_pp", "max_latency_overhead_percent")  # fmt: skip


def grid_cases(models: Iterable[str], cards: Iterable[tuple[int, str] | None]) -> list[Case]:
    """A few thousand cases around the article's: every mixture of these values."""
    axes: tuple[tuple[Any, ...], ...] = (
        tuple(models), tuple(cards), get_args(Change),
        (10**6, 10**7, 10**8), (1, 5, 50, 500), (1.0, 12.0, 52.0), (None, 0.5, 2.0, 10.0),
        (None, 5.0),
    )  # fmt: skip
    return [
        Case(model=model, **dict(zip(GRID_KEYS, (*(card or (1, None)), *rest), strict=True)))
        for model, card, *rest in product(*axes)
    ]


def compare_with_article(cases: Iterable[Case], evidence: Evidence) -> pd.DataFrame:
    """One row a case: both choices, whether they agree, dollars and points between them.

    usd_more and points_more: what the article's choice costs and loses beyond ours; null where
    either is unknown. article_fits: whether its choice keeps all that the case asks for. close: the
    dollars between them are within what the forecast hours are uncertain by.
    """
    rows = []
    for case in cases:
        options = rank_options(case, evidence)
        method, _ = article_method(case, options)
        theirs, best = find_option(options, case.model, method), options[0]
        ours = best if best.fits else None
        our_usd, our_points = (ours.usd_per_year, ours.points_lost) if ours else (None, None)
        rows.append(
            {
                "model": case.model,
                **{key: getattr(case, key) for key in GRID_KEYS},
                "ours": f"{ours.method}, {ours.model}" if ours else "nothing fits",
                "article": f"{method}, {case.model}",
                "agree": ours is not None and ours == theirs,
                "article_fits": theirs.fits,
                "close": ours is not None and theirs.fits and too_close(ours, theirs),
                "usd_more": difference_of(theirs.usd_per_year, our_usd),
                "points_more": difference_of(theirs.points_lost, our_points),
            }
        )
    return pd.DataFrame(rows)


def difference_of(theirs: float | None, ours: float | None) -> float | None:
    return None if theirs is None or ours is None else theirs - ours


def tabulate_disagreement(grid: pd.DataFrame) -> pd.DataFrame:
    """By both choices: how many cases, and the median and largest dollars and points between."""
    apart = grid[~grid["agree"]]
    groups = apart.assign(
        ours=apart["ours"].str.partition(",")[0], article=apart["article"].str.partition(",")[0]
    ).groupby(["article", "ours"])
    table = groups.agg(
        cases=("agree", "size"),
        article_does_not_fit=("article_fits", lambda fits: int((~fits).sum())),
        usd_more_median=("usd_more", "median"),
        usd_more_most=("usd_more", "max"),
        points_more_median=("points_more", "median"),
    )
    return table.sort_values("cases", ascending=False).reset_index()
