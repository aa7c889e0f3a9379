"""docs/faults.md has exactly the kinds of tests/faults/table.py, and each has its tests."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests" / "faults"))

from table import FAULTS  # noqa: E402
from write_table import COLUMNS, cell  # noqa: E402


def test_page_has_the_kinds_of_the_suite_and_none_failed():
    lines = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8").splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    assert tuple(rows[0]) == COLUMNS
    told = [(kind, how, promise) for kind, how, promise, *_ in rows[2:]]
    assert told == [(fault.kind, cell(fault.how), cell(fault.promise)) for fault in FAULTS]
    assert not any("**" in seen for _, _, _, seen, _ in rows[2:])
    assert len(told) >= 20 and len({kind for kind, *_ in told}) == len(told)


def test_every_kind_names_tests_that_there_are():
    for fault in FAULTS:
        for test in fault.tests:
            file, _, name = test.partition("::")
            tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
            known = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
            assert name.partition("[")[0] in known, test
