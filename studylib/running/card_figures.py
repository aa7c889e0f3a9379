"""The few figures of a card's study that matter, from the files that its steps leave; its table.

Figures are in base units (bytes, seconds, joules) under names that say so; only the table spells
gigabytes and per cent. A figure that was not read is left out.

Not covered: reports of finished studies (studylib.reporting).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from studylib.core.errors import StudyError
from studylib.core.sealed import read_sealed
from studylib.schema.card_study import CardStudy, Part, StepTaken
from studylib.schema.checks import CHECKS_VERSION, GpuChecks
from studylib.schema.nvml_peak import nvml_bytes
from studylib.schema.records import read_record
from studylib.schema.serve_records import read_serve_record

Figures = dict[str, float | str]
WARM_UP_STEPS = 3  # of a peer, not counted (benchmarks/peers.py)


def known(figures: dict[str, Any]) -> Figures:
    return {name: value for name, value in figures.items() if value is not None}


def run_figures(path: Path, bf16_peak: float | None) -> Figures:
    """A run's memory, speed and energy, from its record. bf16_peak: operations by second as
    measured; `arithmetic_share` counts what checkpointing computes again, `model_share` not."""
    record = read_record(path)
    train = record.train
    if train is None:
        return known({"status": record.status, "why": record.reason})
    measure, rate = train.measure, train.tokens_per_second
    model, again = train.model_flops_per_token, train.recomputed_flops_per_token
    shares: dict[str, float] = {}
    if bf16_peak and rate and model is not None:
        shares["arithmetic_share"] = rate * (model + (again or 0.0)) / bf16_peak
        shares["model_share"] = rate * model / bf16_peak
    # A run that went on after a kill has spent more than its tokens tell.
    joules = measure.energy_joules if record.environment.sessions == 1 else None
    return known({
        "status": record.status,
        "why": record.reason,
        "allocated_bytes": measure.torch_peak_allocated_bytes or measure.live_tensor_peak_bytes,
        "reserved_bytes": measure.torch_peak_reserved_bytes,
        "nvml_bytes": nvml_bytes(record),
        "tokens_per_second": rate,
        "step_seconds": train.clean_step_seconds,
        "clean_steps": train.clean_steps,
        **shares,
        "utilisation_percent": measure.mean_utilisation_percent,
        "joules_per_token": joules / train.tokens_seen if joules and train.tokens_seen else None,
    })  # fmt: skip


def serve_figures(path: Path) -> Figures:
    """Each variant's time between tokens over its base's, by batch, and the median of a swap."""
    record = read_serve_record(path)
    found: dict[str, Any] = {"status": record.status, "why": record.reason}
    for row in record.measures.latency:
        stem = f"{row.variant}_{row.decoding}_batch_{row.batch}"
        if row.between_tokens_ratio is not None:
            found[f"{stem}_ratio"] = row.between_tokens_ratio.value
        else:
            found[f"{stem}_tokens_per_second"] = row.decode_tokens_per_second
    if (swap := record.measures.swap) is not None:
        found["swap_seconds"] = swap.switch_seconds.p50
        found["answers_after_swap"] = "equal" if swap.proven else "NOT equal"
    return known(found)


def command_figures(path: Path) -> Figures:
    """Of the file that a command left: a self-check's, peers' or MMLU's; else none."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    if isinstance(content, dict) and "results" in content:
        return check_figures(path)
    if isinstance(content, dict) and "peers" in content:
        return peer_figures(content["peers"])
    if isinstance(content, list):
        return {key: value for one in content for key, value in mmlu_figures(one).items()}
    return {}


def check_figures(path: Path) -> Figures:
    try:
        checks = read_sealed(path, GpuChecks, CHECKS_VERSION, "the check", "Check anew.")
    except StudyError as error:
        return {"why": str(error)}
    failed = [result.name for result in checks.results if not result.passed]
    return {
        "checks_passed": len(checks.results) - len(failed),
        "checks_failed": len(failed),
        **({"failed": ", ".join(failed)} if failed else {}),
    }


def peer_figures(peers: dict[str, list[dict[str, Any]]]) -> Figures:
    """Tokens by second of each peer, over the first one's, and its peak over the first one's."""
    found: dict[str, Any] = {}
    first: tuple[float, float | None] | None = None
    for name, results in peers.items():
        result = results[0]
        seconds = sum(result["seconds"][WARM_UP_STEPS:])
        if result["status"] != "complete" or not seconds:
            found[f"{name}_status"] = result["status"]
            continue
        rate = sum(result["tokens"][WARM_UP_STEPS:]) / seconds
        peak = (result["measure"] or {}).get("torch_peak_allocated_bytes")
        found[f"{name}_tokens_per_second"], found[f"{name}_allocated_bytes"] = rate, peak
        first = first or (rate, peak)
        if first != (rate, peak):
            found[f"{name}_ratio"] = rate / first[0]
    return known(found)


def mmlu_figures(one: dict[str, Any]) -> Figures:
    return known({
        f"{one.get('dtype')}_{key}": one.get(name)
        for key, name in (("stock_over_ours", "time_ratio"),
                          ("largest_difference", "max_abs_loglikelihood_difference"),
                          ("answers_changed", "answers_changed"))
    })  # fmt: skip


COLUMNS = ("", "state", "s", "alloc", "reserved", "NVML GB", "tokens/s", "of peak", "J/token")


def tabulate(study: CardStudy) -> str:
    """Every step and its processes: state, seconds, memory in GB, speed, share of the card's bf16
    peak as measured (what is computed again included), energy; other figures stand behind."""
    rows = [list(COLUMNS)]
    for step in study.steps:
        rows.append(step_row(step))
        rows += [part_row(part) for part in step.parts]
    # The last cell of a row is free text: it makes no column wide.
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), row[1].ljust(widths[1]),
                   *(cell.rjust(width) for cell, width in zip(row[2:len(COLUMNS)], widths[2:],
                                                              strict=True)),
                   *row[len(COLUMNS):]]).rstrip()
        for row in rows
    ]  # fmt: skip
    return "\n".join(lines)


def step_row(step: StepTaken) -> list[str]:
    row = [step.name, step.state, f"{step.seconds:.0f}", *[""] * (len(COLUMNS) - 3)]
    return [*row, step.reason or step.answers]


def part_row(part: Part) -> list[str]:
    found = dict(part.figures)
    status = found.pop("status", part.state)
    state = str(status) if part.state == "done" and status != "complete" else part.state
    gigabytes = [found.pop(f"{name}_bytes", None) for name in ("allocated", "reserved", "nvml")]
    cells = [
        "  " + part.name,
        state,
        "" if part.seconds is None else f"{part.seconds:.0f}",
        *("" if value is None else f"{float(value) / 1e9:.3g}" for value in gigabytes),
        spell_value(found.pop("tokens_per_second", None), ",.0f"),
        spell_value(found.pop("arithmetic_share", None), ".0%"),
        spell_value(found.pop("joules_per_token", None), ".3g"),
    ]
    for name in ("clean_steps", "model_share", "utilisation_percent"):
        found.pop(name, None)
    rest = [
        f"{name.replace('_', ' ')} {spell_value(value, '.4g')}" for name, value in found.items()
    ]
    return [*cells, "; ".join([*([part.reason] if part.reason else []), *rest])]


def spell_value(value: float | str | None, form: str) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else format(value, form)
