"""What the planning notebook shows: memory by part against a card, what fits where, break-even.

Menus over any of it are made here too, for the other notebooks as well.

Not covered: the forecast itself (studylib.forecasting.forecast), the reader's profile
(studylib.planning.plan).
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from studylib.forecasting.job import LOSS_WORDS, Forecast
from studylib.forecasting.job_forecast import trace_once
from studylib.forecasting.usual_recipe import usual_settings
from studylib.notebook_views.views import finish
from studylib.planning.catalog import find_gpu
from studylib.planning.plan import Plan, PlannedRun
from studylib.schema.methods import METHODS

# transformers 5 warns of names that it will change in 6; bitsandbytes of kernels for other CPUs.
warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

# One colour a part, from the Okabe-Ito palette, which colour-blind readers can tell apart.
COLOURS = {
    "weights": "#0072b2",
    "quantization_constants": "#56b4e9",
    "adapter": "#009e73",
    "gradients": "#d55e00",
    "optimizer_states": "#e69f00",
    "saved_activations": "#cc79a7",
    "logits_and_loss": "#f0e442",
    "temporaries": "#999999",
    "gathered": "#7f5539",
    "allocator": "#cccccc",
    "cuda_context": "#444444",
}
PART_WORDS = {"cuda_context": "CUDA context"}
UNKNOWN = "unknown"
FEW = 5  # choices that stand side by side; more go into a menu


def foresee_job(
    model: str,
    method: str,
    gpu: str,
    micro_batch: int = 1,
    seq_len: int = 2048,
) -> Forecast:
    """A forecast with the study's usual recipe on one card."""
    settings = usual_settings(
        model, method, gpu, 1,
        micro_batch=micro_batch, seq_len=seq_len, checkpointing=True, accumulation=1,
    )  # fmt: skip
    return trace_once(settings, True)


def plot_parts(forecasts: Sequence[Forecast], gpu: str) -> Figure:
    """One stacked bar of the peak's parts a forecast, in GB, with the card's usable memory."""
    card = find_gpu(gpu)
    figure, axes = plt.subplots(figsize=(8, 1.6 + 0.6 * len(forecasts)), layout="constrained")
    titles = [job_title(made) for made in forecasts]
    parts = pd.DataFrame([made.parts for made in forecasts], index=titles).fillna(0) / 1e9
    parts = parts.loc[:, (parts > 0).any()]
    parts.rename(columns=lambda part: PART_WORDS.get(part, part.replace("_", " "))).plot.barh(
        ax=axes, stacked=True, color=[COLOURS[part] for part in parts], edgecolor="white",
        linewidth=0.5, width=0.6, legend=False,
    )  # fmt: skip
    for row, total in enumerate(parts.sum(axis=1)):
        axes.annotate(f" {total:.1f} GB", (total, row), va="center", fontsize=9)
    usable = card.usable_bytes / 1e9
    axes.axvline(usable, color="#222222", linestyle="--", linewidth=1)
    axes.annotate(
        f"{gpu}: {usable:.1f} GB usable",
        (usable, 1),
        xycoords=axes.get_xaxis_transform(),
        xytext=(0, 3),
        textcoords="offset points",
        fontsize=8,
        ha="center",
        annotation_clip=False,
    )
    axes.tick_params(axis="y", labelsize=9)
    axes.set_ylim(len(forecasts) - 0.5, -0.5)
    axes.set_xlabel("GB at the peak of a training step (forecast)")
    axes.margins(x=0.12)
    figure.legend(fontsize=8, ncols=4, loc="outside lower center", frameon=False)
    return finish(figure)


def job_title(made: Forecast) -> str:
    job = made.settings
    return (
        f"{label_method(job.method)}\n{job.model.partition(':')[2]}, "
        f"{job.micro_batch} × {job.seq_len:,} tokens, {LOSS_WORDS[job.loss]}"
    )


def label_method(method: str) -> str:
    return METHODS[method].in_words if method in METHODS else method


def tabulate_fits(
    model: str, methods: Sequence[str], gpus: Sequence[str], micro_batch: int, seq_len: int
) -> pd.DataFrame:
    """Peak in GB, and for each card the word: fits or tight with the GB left, does not fit."""
    rows = []
    for method in methods:
        made = foresee_job(model, method, gpus[0], micro_batch, seq_len)
        row = {"model": model, "method": label_method(method), "peak GB": made.peak_bytes / 1e9}
        for gpu in gpus:
            fit = made.fits[gpu]
            left = f", {fit.headroom_bytes / 1e9:.1f}" if fit.may_run else ""
            row[gpu] = fit.word + left
        rows.append(row | {"smallest card": made.smallest_gpu or "none"})
    return pd.DataFrame(rows).set_index(["model", "method"]).round({"peak GB": 1})


def tabulate_costs(
    model: str, methods: Sequence[str], gpu: str, micro_batch: int, seq_len: int
) -> pd.DataFrame:
    """Hours and dollars of the standard Alpaca-style run, packed: low, mid and high; a word where
    it does not fit. How the hours are known stands beside them."""
    rows = []
    for method in methods:
        made = foresee_job(model, method, gpu, micro_batch, seq_len)
        row = {"model": model, "method": label_method(method), "hours": made.fit.word,
               "dollars": made.fit.word, "speed": "—"}  # fmt: skip
        if job := made.jobs.get("packed"):
            usd, hours = job.usd, job.hours
            row["hours"] = f"{hours.mid:.1f} ({hours.low:.1f} to {hours.high:.1f})"
            row["dollars"] = "no offer"
            if usd:
                row["dollars"] = f"{usd.mid:.0f} ({usd.low:.0f} to {usd.high:.0f})"
            row["speed"] = made.efficiency.source
        rows.append(row)
    return pd.DataFrame(rows).set_index(["model", "method"])


def break_even(small: Forecast, big: Forecast) -> str:
    """At which ratio of hourly prices the job on the small card costs what the big one does."""
    s, b = small.settings, big.settings
    misfits = [
        f"It does not fit {f.settings.gpu}: {label_method(f.settings.method)}."
        for f in (small, big)
        if not f.fit.may_run
    ]
    if misfits:
        return " ".join(misfits)
    ratio = small.jobs["packed"].hours.mid / big.jobs["packed"].hours.mid
    names = label_method(s.method), label_method(b.method)
    lines = [
        f"{names[0]} on {s.gpu} takes {ratio:.2f} times the hours of {names[1]} on {b.gpu}: it is "
        f"the cheaper one where an hour of {b.gpu} costs more than {ratio:.2f} times an hour of "
        f"{s.gpu}."
    ]
    costs = small.jobs["packed"].usd, big.jobs["packed"].usd
    if costs[0] and costs[1]:
        cheaper = names[0] if costs[0].mid < costs[1].mid else names[1]
        lines.append(
            f"At the median offers: {costs[0].mid:.0f} against {costs[1].mid:.0f} dollars, so "
            f"{cheaper} is cheaper there."
        )
    return " ".join(lines)


def plot_job(model: str, method: str, gpu: str) -> Figure:
    """The memory of one job by part, for menus."""
    return plot_parts([foresee_job(model, method, gpu)], gpu)


def explore(show: Callable[..., Any], **options: Sequence[Any]) -> Any:
    """Menus over `show`'s arguments; the first choices are set."""
    import ipywidgets
    from IPython.display import display

    menus = {name: make_menu(list(values)) for name, values in options.items()}
    wide = ipywidgets.Layout(width="9em")
    rows = [
        ipywidgets.HBox([ipywidgets.Label(name.replace("_", " "), layout=wide), menu])
        for name, menu in menus.items()
    ]
    answer = ipywidgets.interactive_output(lambda **chosen: display(show(**chosen)), menus)
    return ipywidgets.VBox([*rows, answer])


def make_menu(values: list[Any]) -> Any:
    """A slider over numbers in order, buttons for a few choices, a menu for many; the first set."""
    import ipywidgets

    if len(values) > 2 and all(isinstance(value, int | float) for value in values):
        steps = [(f"{value:,}", value) for value in sorted(values)]
        return ipywidgets.SelectionSlider(options=steps, value=values[0])
    labels = [(label_method(str(value)), value) for value in values]
    if len(values) > FEW:
        return ipywidgets.Dropdown(options=labels, value=values[0])
    fitting = {"button_width": "max-content"}
    return ipywidgets.ToggleButtons(options=labels, value=values[0], style=fitting)


def summarise_plan(plan: Plan) -> pd.DataFrame:
    """One row a model and method: its runs over the seeds, and what those left take."""
    groups: dict[str, list[PlannedRun]] = {}
    for run in plan.runs:
        groups.setdefault(re.sub(r"--s\d+$", "", run.run_id), []).append(run)
    rows = []
    for name, runs in groups.items():
        left = [run for run in runs if run.state != "done"]
        rows.append(
            {
                "runs": name,
                "all": len(runs),
                "left": len(left),
                "seconds of those left": add_up([run.seconds for run in left], 0),
                "dollars of those left": add_up([run.usd for run in left], 4),
                "known from": "; ".join(dict.fromkeys(run.seconds_source for run in left)) or "—",
            }
        )
    return pd.DataFrame(rows).set_index("runs")


def add_up(figures: Sequence[float | None], digits: int) -> str:
    """The sum in words; unknown where one of them is."""
    known = [figure for figure in figures if figure is not None]
    if len(known) < len(figures):
        return UNKNOWN
    return f"{sum(known):,.{digits}f}" if known else "0"
