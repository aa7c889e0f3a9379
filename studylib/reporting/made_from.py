"""Whether a report is still what its records give, without making it again.

A hidden file beside the report holds one hash of everything that it was made from (records, their
tables, the report's code and page template, the plan) and one of each file that was
written. If all agree, making the report again would write the same bytes, and a second
`make reproduce` need not wait for it.

Not covered: whether the records themselves can be trusted (studylib.schema.records reads them).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from studylib.core.places import PACKAGE
from studylib.core.sealed import canonical
from studylib.schema.card_study import CARD_FILES
from studylib.schema.records import file_sha256, write_atomically

REPORT, PAGE = "REPORT.md", "report.html"
PAGE_FOLDER = PACKAGE / "page"  # the page's template, style and script
Files = dict[str, bytes]  # path relative to the report's folder -> content
STATE = ".made-from.json"
CODE = ("*.py", "*.yaml", "*.csv", "*.json")  # whatever changes, the report is made again
TABLES = ("runs/*/record.json", "runs/*/*.parquet", "tune/*.json", "serve/*/serve.json",
          "run_forecasts.json", *CARD_FILES)  # fmt: skip


def hash_inputs(folders: Iterable[Path], *others: object) -> str:
    """One hash of the runs below some results folders, of this code and of what else is asked.

    others: anything whose text says what it is (planned runs, failures, forecasts).
    """
    code = sorted(path for pattern in CODE for path in PACKAGE.rglob(pattern))
    code += sorted(PAGE_FOLDER.iterdir())
    marks = [[path.name, file_sha256(path)] for path in code]
    for folder in folders:
        found = sorted(path for name in TABLES for path in folder.glob(name))
        marks.append([str(folder.resolve())])
        marks += [[path.relative_to(folder).as_posix(), file_sha256(path)] for path in found]
    return hashlib.sha256(canonical([marks, [repr(other) for other in others]])).hexdigest()


def is_fresh(out: Path, inputs: str) -> bool:
    """Whether report and page below `out` were made from these inputs and not touched since."""
    try:
        state = json.loads((out / STATE).read_bytes())
        files = state["files"]
        return state["inputs"] == inputs and all(
            file_sha256(out / name) == digest for name, digest in files.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def remember(out: Path, inputs: str, files: Mapping[str, bytes]) -> None:
    """Keep what a report was made from and what was written."""
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    state = {"files": digests, "inputs": inputs}
    write_atomically(out / STATE, json.dumps(state, indent=1, sort_keys=True).encode() + b"\n")
