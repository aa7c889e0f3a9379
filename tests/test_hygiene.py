"""Notebooks are questions: short, stored without outputs, with one cell of plain parameters."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
MOST_CELLS = 15
MOST_LINES = 12


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.name)
def notebook(request):
    return json.loads(request.param.read_text(encoding="utf-8"))


def source(cell):
    return "".join(cell["source"])


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_there_are_notebooks():
    assert "10_run.ipynb" in [path.name for path in NOTEBOOKS]


def test_is_stored_without_outputs(notebook):
    for cell in code_cells(notebook):
        assert cell["outputs"] == [] and cell["execution_count"] is None
    assert "widgets" not in notebook["metadata"]


def test_starts_with_its_question_and_what_it_needs_makes_and_takes(notebook):
    first = notebook["cells"][0]
    title, *lines = source(first).splitlines()
    assert first["cell_type"] == "markdown"
    assert title.startswith("# ") and title.endswith("?")
    told = [word for word in ("Needs", "Makes", "Takes") for line in lines if f"{word}: " in line]
    assert told == ["Needs", "Makes", "Takes"]


def test_has_few_and_short_cells(notebook):
    assert len(notebook["cells"]) <= MOST_CELLS
    for cell in code_cells(notebook):
        assert len(source(cell).splitlines()) <= MOST_LINES, source(cell)


def test_has_one_cell_of_parameters_with_plain_literals(notebook):
    tagged = [c for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", [])]
    assert len(tagged) == 1 and tagged[0]["cell_type"] == "code"
    names = []
    for statement in ast.parse(source(tagged[0])).body:
        assert isinstance(statement, ast.Assign), ast.unparse(statement)
        ast.literal_eval(statement.value)
        names += [target.id for target in statement.targets]
    assert names and all(name.isupper() for name in names) and len(set(names)) == len(names)


def test_defines_no_function_and_no_class(notebook):
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for cell in code_cells(notebook):
        assert not any(isinstance(node, kinds) for node in ast.walk(ast.parse(source(cell))))


def test_goes_from_question_to_method_to_result_to_reading(notebook):
    order = ["## Question", "## Method", "## Result", "## Reading"]
    text = "\n".join(source(c) for c in notebook["cells"] if c["cell_type"] == "markdown")
    headings = [line.strip() for line in text.splitlines() if line.strip() in order]
    assert headings == order
