"""The notebooks that no other test executes run top to bottom in a fresh kernel."""

from __future__ import annotations

import re

import nbformat
import pytest
from record_factory import Factory

from studylib.reporting.blocks import Heading, Picture
from studylib.reporting.report import compose_report, find_sources
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


def test_report_notebook_shows_what_the_report_and_the_page_say_and_writes_both(tmp_path):
    results = Factory(tmp_path / "cpu").study(models=("ladder:0.4m",), seeds=(0, 1))
    parameters = {"RESULTS": str(results), "REFERENCE": str(tmp_path / "none")}
    run_notebook("90_report.ipynb", tmp_path / "out.ipynb", parameters)
    assert errors_and_noise(tmp_path / "out.ipynb") == []
    page = (results / "report.html").read_text(encoding="utf-8")
    made = compose_report(find_sources(results, tmp_path / "none"))
    parts = (*made.parts.values(), *made.appendices.values())
    titles = [b.text for blocks in parts for b in blocks if isinstance(b, Heading)]
    outputs = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells
    shown = "\n\n".join(o.data.get("text/markdown", "") for cell in outputs
                        for o in cell.get("outputs", []) if "data" in o)  # fmt: skip
    headings = re.findall(r"^#+ (.*)$", shown, re.M)
    assert [title for title in headings if not title.startswith("Appendix: ")] == titles
    pictures = [b for blocks in parts for b in blocks if isinstance(b, Picture)]
    assert len(pictures) == page.count("<figure>") > 3
    assert all(f"*{picture.caption}.*" in shown for picture in pictures)


def test_failing_cell_is_no_success(tmp_path):
    from studylib.core.errors import StudyError

    with pytest.raises(StudyError, match="nowhere"):
        run_notebook("90_report.ipynb", tmp_path / "out.ipynb", {"RESULTS": "nowhere"})
