"""How far the methods of a plan extend over their models, before any weights are loaded.

Not covered: the words (studylib.schema.extent_words), what a run records of it
(studylib.training.four_bit_form).
"""

from __future__ import annotations

from collections.abc import Sequence

from studylib.forecasting.skeleton_counts import count_ahead, count_skeleton
from studylib.schema.profile import RunSpec


def tell_extents(specs: Sequence[RunSpec]) -> list[str]:
    """One line for each model and method whose base is hardly in 4 bits or whose adapter leaves
    linear layers out. Unfit where a model cannot take its method.

    The ladder's Llamas are whole in both, and are not built to be told so.
    """
    asked = [
        spec
        for spec in {(spec.model, spec.method): spec for spec in specs}.values()
        if spec.method.kind.adapter
        and not (spec.model_ref.kind == "ladder" and spec.method.targets == "all-linear")
    ]
    count_ahead(asked)
    return [f"{spec.model}: {line}" for spec in asked for line in tell_extent(spec)]


def tell_extent(spec: RunSpec) -> list[str]:
    """The same for one run; empty where no skeleton of the model can be built."""
    return list(count_skeleton(spec.model, spec.method, spec.weights_dtype).lines)
