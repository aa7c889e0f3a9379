"""How far the methods of a plan extend over their models, before any weights are loaded.

Not covered: the words (studylib.schema.extent_words), what a run records of it
(studylib.training.four_bit_form).
"""

from __future__ import annotations

from collections.abc import Sequence

from studylib.core.errors import StudyError, Unfit
from studylib.forecasting.job_forecast import find_config
from studylib.forecasting.kept_forecasts import config_mark, keep_forecast
from studylib.schema.extent_words import tell_base, tell_reach
from studylib.schema.frozen import Frozen
from studylib.schema.profile import RunSpec


def tell_extents(specs: Sequence[RunSpec]) -> list[str]:
    """One line for each model and method whose base is hardly in 4 bits or whose adapter leaves
    linear layers out. Unfit where a model cannot take its method.

    The ladder's Llamas are whole in both, and are not built to be told so.
    """
    lines = []
    for spec in {(spec.model, spec.method): spec for spec in specs}.values():
        known = spec.model_ref.kind == "ladder" and spec.method.targets == "all-linear"
        if spec.method.kind.adapter and not known:
            lines += [f"{spec.model}: {line}" for line in tell_extent(spec)]
    return lines


class Told(Frozen):
    """Lines on one model and method."""

    lines: tuple[str, ...]


def tell_extent(spec: RunSpec) -> list[str]:
    """The same for one run, kept on disk; empty where no skeleton of the model can be built."""
    question = {
        "model": spec.model,
        "method": spec.method.model_dump(mode="json"),
        "dtype": spec.train.dtype,
        "config": config_mark(spec.model, True),
    }
    return list(keep_forecast(question, Told, lambda: Told(lines=tuple(find_extent(spec)))).lines)


def find_extent(spec: RunSpec) -> list[str]:
    from studylib.modelling.four_bit import four_bit_share
    from studylib.modelling.reach import reach
    from studylib.modelling.skeleton import build_meta

    try:
        model = build_meta(find_config(spec.model, True), spec.method, spec.train.dtype, "sdpa")
    except Unfit:
        raise
    except StudyError:  # nor a forecast: that is said beside the run
        return []
    label = spec.method.label
    lines = [tell_reach(label, reach(model), spec.method.rank)]
    if spec.method.kind.quantized:
        lines.insert(0, tell_base(label, four_bit_share(model)))
    return [line for line in lines if line]
