"""Try a model before a study is built on it: one column after another, each by itself.

A fault in one column is that cell's word and never the end of the others; which columns a method
needs stands in studylib.schema.model_report.

Not covered: the columns (studylib.checking.training_columns, adapter_columns), all kinds at once
(studylib.checking.models_page).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.metadata import version

import torch

from studylib.checking import adapter_columns, training_columns
from studylib.checking.model_subject import Subject
from studylib.core.errors import StudyError, name_error
from studylib.inputs.examples import shorten
from studylib.inputs.sources import read_object
from studylib.schema.model_report import COLUMNS, Cell, ModelReport
from studylib.schema.settings import ModelRef

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "lm_eval")
LONGEST_WORD = 160
CHECKS: dict[str, Callable[[Subject], Cell]] = {
    "loads": training_columns.loads_column,
    "whole": training_columns.whole_column,
    "attention": training_columns.attention_column,
    "causal": training_columns.causal_column,
    "packing": training_columns.packing_column,
    "loss": training_columns.loss_column,
    "chunked": training_columns.chunked_column,
    "four_bit": adapter_columns.four_bit_column,
    "four_bit_error": adapter_columns.four_bit_error_column,
    "qlora_gradient": adapter_columns.qlora_gradient_column,
    "lora_merged": adapter_columns.lora_merged_column,
    "qlora_merged": adapter_columns.qlora_merged_column,
    "prefixes": training_columns.prefixes_column,
    "lora_reach": adapter_columns.lora_reach_column,
    "forecast": training_columns.forecast_column,
}
NOT_TRIED = Cell(text="–")


def check_model(ref: ModelRef, columns: Iterable[str] = COLUMNS) -> ModelReport:
    """Try a model in every column; a model that does not load is tried in no other.

    Raises StudyError where there is no such checkpoint.
    """
    subject = Subject(ref)
    cells = {"loads": run_column("loads", subject)}
    opened = cells["loads"].fault is None
    for name in columns:
        if name != "loads":
            cells[name] = run_column(name, subject) if opened else NOT_TRIED
    kind, name, parameters = identify_model(subject)
    return ModelReport(
        model=str(ref),
        model_type=kind,
        model_class=name,
        parameters=parameters,
        versions={name: version(name) for name in LIBRARIES},
        cells=cells,
    )


def run_column(name: str, subject: Subject) -> Cell:
    """One column's cell; what it raises is what it says."""
    torch.manual_seed(0)
    try:
        return CHECKS[name](subject)
    except StudyError as error:
        word = shorten(error.rule, LONGEST_WORD)
        return Cell(text="refused", note=word, fault=word)
    except (torch.OutOfMemoryError, MemoryError) as error:  # of this machine, not of the model
        return Cell(
            text="not tried", note=f"out of memory ({shorten(name_error(error), LONGEST_WORD)})"
        )
    except Exception as error:  # a fault of any code under test is a finding about the model
        word = shorten(name_error(error), LONGEST_WORD)
        return Cell(text="error", note=word, fault=word)


def identify_model(subject: Subject) -> tuple[str, str, int]:
    """Type, class and parameters; of a model that does not open, the type that its file names."""
    try:
        model = subject.reference[0]
    except Exception:  # whatever stops it is what the first column says
        kind = str(read_object(subject.folder / "config.json").get("model_type"))
        return kind, "not opened", 0
    return model.config.model_type, type(model).__name__, sum(p.numel() for p in model.parameters())
