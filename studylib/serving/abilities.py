"""What a method cannot do when it is served: a result with its reason, beside what it can.

A row of the table of methods may say so; where it says nothing the part is tried, and what peft
answers is the reason.

Not covered: the parts themselves (studylib.serving.hot_swap, studylib.serving.mixed_batch).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from studylib.core.errors import first_line
from studylib.modelling.methods import raised_by_peft
from studylib.schema.method_names import METHODS_TABLE
from studylib.schema.methods import Ability, Method

Attempt = Callable[[str, Ability, Callable[[], Any]], Any]


class NotPossible(Exception):
    """Something that a method cannot do when served, with the reason."""


def attempt(method: Method, ability: Ability, work: Callable[[], Any]) -> Any:
    """What work gives; NotPossible where the row leaves the ability out or peft refuses."""
    if ability not in method.serve:
        raise NotPossible(f"{method.label} cannot {ability} (its row in {METHODS_TABLE.name})")
    try:
        return work()
    except (ValueError, TypeError, AttributeError, NotImplementedError) as error:
        if not raised_by_peft(error):
            raise
        raise NotPossible(first_line(error)) from error
