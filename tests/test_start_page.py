"""The page on which `make lab` opens leads to every notebook, and to nothing that is not there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "notebooks" / "README.md"
NOTEBOOKS = sorted(PAGE.parent.glob("*.ipynb"))


def links():
    return re.findall(r"\]\(([^)#:]+)\)", PAGE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_every_notebook_has_one_row_with_its_question_needs_and_makes(notebook):
    rows = [r for r in PAGE.read_text(encoding="utf-8").splitlines() if f"({notebook.name})" in r]
    assert len(rows) == 1
    cells = [cell.strip() for cell in rows[0].strip("|").split(" | ")]
    assert len(cells) == 5 and all(cells) and cells[0].endswith("?")


def test_every_link_leads_to_a_file():
    assert [link for link in links() if not (PAGE.parent / link).is_file()] == []


def test_lab_shows_the_page_to_this_machine_alone_and_keeps_its_token():
    config = (ROOT / "tools/lab/config.py").read_text(encoding="utf-8")
    assert 'ServerApp.ip = "127.0.0.1"' in config and "tree/notebooks/README.md" in config
    assert not re.search(r"token\s*=|password|disable_check_xsrf|allow_unauthenticated", config)
    viewers = json.loads((ROOT / "tools/lab/overrides.json").read_text(encoding="utf-8"))
    plugin = viewers["@jupyterlab/docmanager-extension:plugin"]
    assert plugin["defaultViewers"]["markdown"] == "Markdown Preview"
    assert "tools/lab/config.py" in (ROOT / "Makefile").read_text(encoding="utf-8")
