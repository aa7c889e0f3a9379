"""The names of the methods that train, for help texts.

They are read without a check of their rows, for which pydantic is imported: that takes as long as
all else that `study --help` does.

Not covered: the rows (studylib.schema.methods).
"""

from __future__ import annotations

from functools import lru_cache

from studylib.core.files import read_mapping
from studylib.core.places import PACKAGE

METHODS_TABLE = PACKAGE / "methods.yaml"


@lru_cache(maxsize=1)
def name_methods() -> str:
    """Those that have a learning rate, in words and in the table's order."""
    rows = read_mapping(METHODS_TABLE, "the table of methods").items()
    *most, last = [n for n, r in rows if isinstance(r, dict) and "default_learning_rate" in r]
    return f"{', '.join(most)} or {last}"
