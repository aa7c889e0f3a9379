"""Batches of packed rows: examples side by side, each with positions of its own.

Not covered: which examples share a row (studylib.inputs.data), whether a model keeps them apart
(studylib.modelling.packing).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from studylib.inputs.data import IGNORED, Row


class PackedCollator:
    """Examples side by side in their rows, with positions that restart at every example.

    Short rows are filled up, to a `multiple` of tokens, with some that see only each other and
    teach nothing. one_row: all rows become one, as kernels that read where examples begin want it;
    a mask over one long row would grow with its square, those of several rows with their number.
    """

    def __init__(self, one_row: bool = False, multiple: int = 1) -> None:
        from transformers import DataCollatorWithFlattening

        self.one_row, self.multiple = one_row, multiple
        self.flatten = DataCollatorWithFlattening()

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        if self.one_row:
            rows = [[example for row in rows for example in row]]
        flat = [self.flatten(row) for row in rows]
        longest = max(row["input_ids"].shape[1] for row in flat)
        longest += -longest % self.multiple
        return {
            name: torch.cat([fill_up(name, row[name], longest) for row in flat])
            for name in ("input_ids", "labels", "position_ids")
        }


def fill_up(name: str, row: torch.Tensor, length: int) -> torch.Tensor:
    """One of a batch's tensors [1, tokens] with as many more tokens as a row of `length` lacks."""
    missing = length - row.shape[1]
    if name == "position_ids":  # they begin anew, as those of one more example would
        return torch.cat([row, torch.arange(missing)[None]], dim=1)
    return nn.functional.pad(row, (0, missing), value=IGNORED if name == "labels" else 0)
