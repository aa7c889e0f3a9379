"""The walls of the house: which floor may import which, and what no file may hold.

The table is the README's map in a form that a machine reads; a new module goes into it.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "studylib"

FLOORS = {
    "words": """__init__ errors files sealed places rungs settings serve_settings spec profile
        measure records metrics sharing stats verdicts almanac token_tree pins tuning serving
        serve_records forecast_book checks""",
    "what there is": """catalog counts cuda_terms roofline host nvml devices hub sources
        data questions plan estimate footprint case yearly_cost renting extras""",
    "machinery": """allocator tally meter live kernels optimizers chunked_loss step_clock
        flops step skeleton methods models variants tasks session prefix_lm compare_lm ladder
        forecast_text""",
    "stages": """train weights distributed train_worker evaluate serve environment run tune
        trace depth sharding forecast fitting published job_forecast prospects explore
        article_memory article_forecasts latency hot_swap mixed_batch engines serve_run
        card_forecasts check_card check_kernels check_packing check_study gpu_check""",
    "runner": "progress executor ray_desk ray_worker ray_executor runner publish rental doctor",
    "report": """study comparable costs resources summary cells panels curves claims figures
        tables exports appendix notes prose compose made_from report readme claim_sources
        views notebook_text report_views page page_pictures serve_views capacity
        forecast_tables serve_tables serve_figures evidence rank_methods turning_points
        advice_words missing_evidence article_rule advise advice_text choose_views
        compare_studies move_words""",
    "doors": """gather cli_options cli_plan cli_advise cli_article cli_serve cli_evaluate
        cli_forecast cli_gpu_check cli_rent cli_report cli_tune cli __main__""",
}
MAY_IMPORT = {
    "words": ["words"],
    "what there is": ["words", "what there is"],
    "machinery": ["words", "what there is", "machinery"],
    "stages": ["words", "what there is", "machinery", "stages"],
    "runner": ["words", "what there is", "machinery", "stages", "runner"],
    "report": ["words", "what there is", "report"],
    "doors": list(FLOORS),
}
LIGHT = ("words", "what there is", "report")
HEAVY = {"torch", "transformers", "lm_eval", "peft", "bitsandbytes", "accelerate", "trl"}
LONGEST_MODULE_LINES = 350
LONGER = {"stats": 550}  # one method and its derivation; nothing else is excused

FLOOR_OF = {name: floor for floor, names in FLOORS.items() for name in names.split()}
MODULES = sorted(PACKAGE.glob("*.py"))


def imports_of(path):
    """Every name that a module imports, inside functions too, but for type checkers only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} imports relatively"
            yield node.module
            if node.module == "studylib":
                yield from (f"studylib.{alias.name}" for alias in node.names)


def own_imports(path):
    return {n.split(".")[1] for n in imports_of(path) if n.startswith("studylib.")}


def tracked_texts():
    """(path, text) of every tracked text file."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs a git checkout")
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if path.is_file() and path.suffix not in (".safetensors", ".parquet", ".png"):
            yield name, path.read_text(encoding="utf-8")


def test_every_module_stands_on_one_floor():
    names = [name for names in FLOORS.values() for name in names.split()]
    assert len(set(names)) == len(names)
    modules = {path.stem for path in MODULES}
    assert modules - set(names) == set(), "give these a floor"
    assert set(names) - modules == set(), "these are gone"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_module_imports_only_from_floors_it_may(path):
    floor = FLOOR_OF.get(path.stem, "words")
    wrong = {
        f"{name} ({FLOOR_OF.get(name)})"
        for name in own_imports(path)
        if FLOOR_OF.get(name) not in MAY_IMPORT[floor]
    }
    assert not wrong, f"{path.stem} ({floor}) imports {wrong}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_reading_planning_and_reporting_never_import_torch(path):
    if FLOOR_OF.get(path.stem) in LIGHT:
        assert {name.split(".")[0] for name in imports_of(path)} & HEAVY == set()


def test_no_modules_import_each_other_in_a_circle():
    graph = {path.stem: own_imports(path) for path in MODULES}
    while graph:
        free = [name for name, wants in graph.items() if not wants & graph.keys()]
        assert free, f"a circle among {sorted(graph)}"
        for name in free:
            del graph[name]


def test_command_line_starts_without_torch():
    code = "import studylib.cli, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_module_is_short_and_says_what_it_is_for(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGER.get(path.stem, LONGEST_MODULE_LINES)
    assert ast.get_docstring(ast.parse(text))


def test_no_tracked_file_names_a_private_place_or_a_registry():
    # Written in parts, so that this file does not hold what it forbids.
    places = "|".join(("wo" + "rk", "ro" + "ot", "ho" + "me", "tmp/" + "v", "Us" + "ers"))
    hosts = "|".join(("pypi" + r"\.org", "python" + "hosted", "index" + "-url", "artifact" + "ory"))
    pattern = re.compile(rf"(?<![\w./-])/({places})/|{hosts}")
    found = [
        f"{name}:{number}: {line.strip()[:80]}"
        for name, text in tracked_texts()
        for number, line in enumerate(text.split("\n"), 1)
        if pattern.search(line)
    ]
    assert not found, "\n".join(found)


def test_every_module_has_its_tests():
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("*.py"))
    named = set(re.findall(r"studylib\.(\w+)", tests))
    named |= {
        name.strip()
        for names in re.findall(r"from studylib import ([\w, ]+)", tests)
        for name in names.split(",")
    }
    reached, left = set(), named & {path.stem for path in MODULES}
    while left:  # a module that a tested one is built of is tested with it
        name = left.pop()
        reached.add(name)
        left |= own_imports(PACKAGE / f"{name}.py") - reached
    untested = {path.stem for path in MODULES} - reached - {"__init__", "__main__"}
    assert untested == set(), "no test reaches these"
