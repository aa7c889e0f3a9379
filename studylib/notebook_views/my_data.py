"""What the notebook on a reader's own data shows: examples as the model reads them, what the runs
will take, and the weights that they leave.

Not covered: the study under way (studylib.notebook_views.live), its verdict (studylib.reporting).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from studylib.forecasting.prospects import Prospect
from studylib.inputs.data import prepare_data
from studylib.inputs.sources import model_folder
from studylib.modelling.models import load_tokenizer
from studylib.modelling.preflight import folder_here
from studylib.notebook_views.views import quote, show_tokens
from studylib.planning.estimate import StudyEstimate, price
from studylib.planning.plan import Plan
from studylib.schema.profile import Profile
from studylib.schema.ranges import Range
from studylib.schema.records import read_records

UNKNOWN = "unknown"


def show_data(profile: Profile, told: Sequence[str]) -> str:
    """What was found in the data, and a few examples with what is learned in colour, as Markdown.

    told: the plan's own lines on it (studylib.commands.check_all).
    """
    lines = [f"- {quote(line)}" for line in told] or [f"- {profile.tracks[0].data.source}"]
    spec = next(run for run in profile.runs() if run.method.kind.trains)
    ref = spec.model_ref
    folder = model_folder(ref)[0] if ref.kind == "ladder" else folder_here(ref)
    if folder is None:
        return "\n".join([*lines, "", f"Examples are shown once {quote(str(ref))} is here."])
    recipe = spec.train.model_copy(update={"steps": 1})
    tokenizer = load_tokenizer(folder)
    data = prepare_data(spec.data, recipe, tokenizer, spec.seed)
    head = f"Template {data.template}; what is learned is bold and in colour."
    return "\n".join([*lines, "", head, "", show_tokens(data.rows[0][:3], tokenizer)])


def tabulate_takes(
    made: Plan,
    estimate: StudyEstimate | None,
    prospects: Mapping[str, Prospect],
    on_cpu: Mapping[str, Range] | None = None,
) -> pd.DataFrame:
    """A row a run: its state, the time and dollars that it should take, its peak of memory.

    on_cpu: seconds by forecast, of runs that were never measured.
    """
    rows = []
    for run in made.runs:
        hours = estimate.runs.get(run.run_id) if estimate else None
        seconds = hours.total.mid * 3600 if hours else run.seconds
        if seconds is None and on_cpu and run.run_id in on_cpu:
            seconds = on_cpu[run.run_id].mid
        cost = price(hours.total, estimate.gpu, hours.gpus) if estimate and hours else None
        usd, found = cost.mid if cost else run.usd, prospects.get(run.run_id)
        rows.append({
            "run": run.run_id,
            "state": run.state,
            "minutes": UNKNOWN if seconds is None else f"{seconds / 60:,.1f}",
            "dollars": UNKNOWN if usd is None else f"{usd:,.4f}",
            "peak (GB, forecast)": f"{found.peak_bytes / 1e9:.2f}" if found else "—",
            "fits": found.in_words if found else "—",
        })  # fmt: skip
    return pd.DataFrame(rows).set_index("run")


def tabulate_kept(folder: Path) -> pd.DataFrame | str:
    """The weights that lie in a study's runs: where, how large, on which base."""
    rows = [
        {
            "run": record.run_id,
            "weights": str(folder / "runs" / record.run_id / record.kept.folder),
            "MB": round(record.kept.file_bytes / 1e6, 2),
            "base": record.kept.base_model,
        }
        for record in read_records(folder / "runs")
        if record.kept is not None and record.kept.folder is not None
    ]
    return pd.DataFrame(rows).set_index("run") if rows else "No weights were kept."


def tell_failures(failed: Mapping[str, Any]) -> str:
    """Runs without a record, each with its message or the log to read; empty where all ended."""
    return "\n".join(
        f"- **{run_id} failed**: {quote(why)}" for run_id, why in name_failures(failed).items()
    )


def name_failures(failed: Mapping[str, Any]) -> dict[str, str]:
    """Run id -> what the report says of a run that failed."""
    return {run_id: one.message or str(one.log) for run_id, one in failed.items()}
