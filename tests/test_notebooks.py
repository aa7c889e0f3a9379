"""The notebooks that no other test executes run top to bottom in a fresh kernel."""

from __future__ import annotations

import nbformat
import pytest
from record_factory import Factory

from studylib.running.runner import run_notebook


def errors_and_noise(path):
    notebook = nbformat.read(path, as_version=4)
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    return [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]


def test_planning_notebook_executes_for_a_small_model(tmp_path):
    parameters = {"MODEL": "shape:smollm2-135m", "SEQ_LEN": 256, "METHODS": ["lora", "qlora"]}
    run_notebook("00_plan.ipynb", tmp_path / "out.ipynb", parameters)
    assert errors_and_noise(tmp_path / "out.ipynb") == []
    text = (tmp_path / "out.ipynb").read_text(encoding="utf-8")
    assert "times the hours" in text and "image/png" in text


def test_report_notebook_executes_and_writes_the_report(tmp_path):
    results = Factory(tmp_path / "cpu").study(models=("ladder:0.4m",), seeds=(0, 1))
    parameters = {"RESULTS": str(results), "REFERENCE": str(tmp_path / "none")}
    run_notebook("90_report.ipynb", tmp_path / "out.ipynb", parameters)
    assert errors_and_noise(tmp_path / "out.ipynb") == []
    assert (results / "REPORT.md").is_file()


def test_failing_cell_is_no_success(tmp_path):
    from studylib.core.errors import StudyError

    with pytest.raises(StudyError, match="nowhere"):
        run_notebook("90_report.ipynb", tmp_path / "out.ipynb", {"RESULTS": "nowhere"})
