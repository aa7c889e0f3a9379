"""What is counted on a model of one method without its weights: built once, kept on disk.

Not covered: what is said of the counts (studylib.forecasting.extent, studylib.forecasting.disk).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache, partial
from typing import Any

from studylib.core.errors import StudyError, Unfit
from studylib.forecasting.job_forecast import find_config
from studylib.forecasting.kept_forecasts import config_mark, keep_forecast, may_be_kept
from studylib.forecasting.side_by_side import make_ahead
from studylib.schema.extent_words import tell_base, tell_reach
from studylib.schema.frozen import Frozen
from studylib.schema.settings import MethodSettings
from studylib.schema.spec import RunSpec


class Counted(Frozen):
    """Empty where no skeleton of the model can be built.

    lines: what an adapter leaves out. trained: parameters, their bytes while they are trained,
    bytes of the tensors of their file. A file may hold more: tied weights twice, for example.
    """

    lines: tuple[str, ...] = ()
    trained: tuple[int, int, int] | None = None


@lru_cache(maxsize=64)
def count_skeleton(model: str, method: MethodSettings, dtype: str) -> Counted:
    """dtype: in which the weights are loaded. Unfit where the model cannot take its method."""
    question = ask(model, method, dtype)
    return keep_forecast(question, Counted, lambda: build_skeleton(model, method, dtype))


def count_ahead(specs: Iterable[RunSpec]) -> None:
    """Count what is not kept yet, on all cores."""
    asked = dict.fromkeys((spec.model, spec.method, spec.weights_dtype) for spec in specs)
    new = [one for one in asked if may_be_kept(ask(*one), Counted)]
    make_ahead([partial(count_skeleton, *one) for one in new])


def ask(model: str, method: MethodSettings, dtype: str) -> dict[str, Any]:
    return {
        "model": model,
        "method": method.model_dump(mode="json"),
        "dtype": dtype,
        "config": config_mark(model, True),
    }


def build_skeleton(model: str, method: MethodSettings, dtype: str) -> Counted:
    from studylib.modelling.added import named_state
    from studylib.modelling.four_bit import four_bit_share
    from studylib.modelling.reach import reach
    from studylib.modelling.skeleton import build_meta

    try:
        built = build_meta(find_config(model, True), method, dtype, "sdpa")
    except Unfit:
        raise
    except StudyError:  # nor a forecast: that is said beside the run
        return Counted()
    own = [p for p in built.parameters() if p.requires_grad]
    params, held = sum(p.numel() for p in own), sum(p.numel() * p.element_size() for p in own)
    if not method.kind.adapter:
        return Counted(trained=(params, held, held))
    from peft import get_peft_model_state_dict

    named = named_state(built)
    state = get_peft_model_state_dict(built, state_dict=named, save_embedding_layers=False)
    doubled = 2 if method.kind.converted else 1  # it is kept beside what it began with
    size = doubled * sum(t.numel() * t.element_size() for t in state.values())
    share = four_bit_share(built) if method.kind.quantized else None
    lines = (tell_base(method.label, share), tell_reach(method.label, reach(built), method.rank))
    return Counted(lines=tuple(filter(None, lines)), trained=(params, held, size))
