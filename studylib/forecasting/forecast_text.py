"""A forecast as text for people: the asked card first, then parts, other cards, time and dollars.

Not covered: the notebook's and the report's pictures.
"""

from __future__ import annotations

from studylib.forecasting.job import Forecast, Job
from studylib.planning.fit import Fit
from studylib.schema.ranges import Range

STAGES = {"forward": "the forward pass", "loss": "the loss", "backward": "the backward pass",
          "optimizer": "the optimizer's update"}  # fmt: skip
FORMS = {"packed": "Alpaca-style run, packed", "padded": "Alpaca-style run, padded",
         "yours": "Your training"}  # fmt: skip


def gb(count_bytes: float) -> str:
    return f"{count_bytes / 1e9:,.2f} GB"


def range_words(values: Range, form: str) -> str:
    return f"{values.mid:{form}} ({values.low:{form}} to {values.high:{form}})"


def format_forecast(f: Forecast) -> str:
    """Some thirty lines: the asked card's word, hours and dollars; memory by part; other cards."""
    s = f.settings
    cards = f", {s.gpus} cards, {s.sharding} sharding, bytes of one card" if s.gpus > 1 else ""
    lines = [
        f"Forecast: {s.in_words}{cards}",
        "",
        card_fit_line(s.gpu, f.fit),
        *describe_time(f),
        "",
        f"Peak memory  {gb(f.peak_bytes)} as the driver shows it, in {STAGES[f.peak_stage]}",
    ]
    lines += [f"  {gb(b):>12}  {name.replace('_', ' ')}" for name, b in f.parts.items() if b]
    lines += [
        f"  torch would count {gb(f.peak_allocated_bytes)} as allocated",
        f"  {gb(f.least_bytes)} is the least with which it runs: what must fit",
        f"  context: {f.context_source}",
    ]
    if f.paged_bytes:
        lines.append(f"  {gb(f.paged_bytes)} of paged optimizer states may leave the card")
    share = f.trainable_params / f.total_params
    lines += [
        "",
        f"Parameters   {f.trainable_params:,} trainable of {f.total_params:,} ({share:.2%})",
        f"On disk      checkpoint {gb(f.checkpoint_bytes)}"
        + (f", adapter {f.adapter_bytes / 1e6:,.1f} MB" if f.adapter_bytes else ""),
        "",
        f"Smallest card that fits: {f.smallest_gpu or 'none in the catalog'}",
    ]
    lines += [f"  {card_fit_line(name, fit)}" for name, fit in f.fits.items() if name != s.gpu]
    return "\n".join([*lines, f"Traced in {f.trace_seconds:.1f} s"])


def card_fit_line(gpu: str, fit: Fit) -> str:
    """rtx4090-24gb  fits, 3.71 GB left."""
    state = "left" if fit.headroom_bytes >= 0 else "missing"
    return f"{gpu:<16} {fit.in_words}, {gb(abs(fit.headroom_bytes))} {state}"


def describe_time(f: Forecast) -> list[str]:
    """Hours and dollars on the asked card, and how its speed is known; where it may run."""
    if not f.fit.may_run:
        return ["  no hours and no dollars: it does not run there"]
    return [
        f"  {range_words(f.seconds_per_step, '.3g')} s a step, "
        f"{f.flops_per_step / 1e12:,.1f} TFLOP a step and card",
        f"  share of the roofline's speed: {f.efficiency.source}",
        *(f"  {FORMS[form]}: {job_line(job)}" for form, job in f.jobs.items()),
    ]


def job_line(job: Job) -> str:
    hours = f"{job.tokens / 1e6:,.1f}M tokens, {range_words(job.hours, '.3g')} h"
    return hours + (f", ${range_words(job.usd, '.3g')}" if job.usd else ", no offer of this card")
