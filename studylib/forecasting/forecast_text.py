"""A forecast as text for people: the parts of the peak, the cards, time and dollars.

Not covered: the notebook's and the report's pictures.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from studylib.forecasting.forecast import Forecast, Job
    from studylib.planning.roofline import Range

STAGES = {"forward": "the forward pass", "loss": "the loss", "backward": "the backward pass",
          "optimizer": "the optimizer's update"}  # fmt: skip


def gb(count_bytes: float) -> str:
    return f"{count_bytes / 1e9:,.2f} GB"


def spread(values: Range, form: str) -> str:
    return f"{values.mid:{form}} ({values.low:{form}} to {values.high:{form}})"


def format_forecast(f: Forecast) -> str:
    """Some thirty lines: memory with its parts, sizes, cards that fit, time and dollars."""
    s = f.settings
    cards = f"{s.gpus} cards, {s.sharding} sharding, bytes of one card" if s.gpus > 1 else "1 card"
    lines = [
        f"Forecast: {s.model}, {s.method}, micro-batch {s.micro_batch} × {s.seq_len}, {cards}",
        "",
        f"Peak memory  {gb(f.peak_bytes)} as the driver shows it, in {STAGES[f.peak_stage]}",
    ]
    lines += [f"  {gb(b):>12}  {name.replace('_', ' ')}" for name, b in f.parts.items() if b]
    lines += [
        f"  torch would count {gb(f.peak_allocated_bytes)} as allocated",
        f"  {gb(f.least_bytes)} is the least with which it runs: what must fit",
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
    lines += [
        f"  {name:<16} {'fits' if fit.fits else 'does not fit'}, {gb(abs(fit.headroom_bytes))} "
        + ("left" if fit.fits else "missing")
        for name, fit in f.fits.items()
    ]
    lines += ["", f"Time on {s.gpu}   {spread(f.seconds_per_step, '.3g')} s a step, "
              f"{f.flops_per_step / 1e12:,.1f} TFLOP a step and card",
              f"  share of the roofline's speed: {f.efficiency.source}"]  # fmt: skip
    lines += [f"Alpaca-style run, {form}: {describe_job(job)}" for form, job in f.jobs.items()]
    return "\n".join([*lines, f"Traced in {f.trace_seconds:.1f} s"])


def describe_job(job: Job) -> str:
    hours = f"{job.tokens / 1e6:.1f}M tokens, {spread(job.hours, '.3g')} h"
    return hours + (f", ${spread(job.usd, '.3g')}" if job.usd else ", no offer of this card")
