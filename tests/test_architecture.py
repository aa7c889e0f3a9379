"""The walls of the house: which package may import which, and what no file may hold."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from studylib.commands.cli import app
from studylib.schema.methods import METHODS

ROOT = Path(__file__).parents[1]
CODE = ROOT / "studylib"

# From the ground up: a package may import those before it, and itself.
HEIGHTS = [
    "core",
    "schema",
    "inputs",
    "planning",
    "metering",
    "modelling",
    "scoring",
    "forecasting",
    "training",
    "serving",
    "checking",
    "running",
    "reporting",
    "advice",
    "notebook_views",
    "commands",
]
# Read, plan and report without torch: what these may import is light as well.
LIGHT = ("core", "schema", "inputs", "planning", "reporting", "advice")
HEAVY = {"torch", "transformers", "lm_eval", "peft", "bitsandbytes", "accelerate", "trl"}
LONGEST_MODULE_LINES = 350
LONGER = {"core.stats": 530}  # one method and its derivation; nothing else is excused

DOORS = [CODE / "__init__.py", CODE / "__main__.py"]
MODULES = sorted(path for path in CODE.rglob("*.py") if path not in DOORS)


def name_of(path):
    """`core.stats` of studylib/core/stats.py, `core` of studylib/core/__init__.py."""
    return ".".join(path.relative_to(CODE).with_suffix("").parts).removesuffix(".__init__")


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
            if node.module.startswith("studylib"):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(path):
    """Our modules that a module imports, as `package.module`."""
    known = {name_of(path) for path in MODULES}
    names = {name.removeprefix("studylib.") for name in imports_of(path)}
    return {name for name in names if "." in name} & known


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


def test_every_package_has_its_height():
    assert {name_of(path).split(".")[0] for path in MODULES} == set(HEIGHTS)


def breaches(graph):
    """What a module imports from above its own package, for {module: our modules it imports}."""
    light = [name for name in HEIGHTS if name in LIGHT]
    for module, imported in graph.items():
        package = module.split(".")[0]
        below = light if package in LIGHT else HEIGHTS
        allowed = below[: below.index(package) + 1]
        wrong = sorted(name for name in imported if name.split(".")[0] not in allowed)
        if wrong:
            yield f"{module} imports {', '.join(wrong)}"


def test_modules_import_only_from_packages_below_their_own():
    assert list(breaches({name_of(path): own_imports(path) for path in MODULES})) == []


def test_a_planted_breach_of_the_walls_is_seen():
    assert list(breaches({"core.stats": {"training.run"}})) == ["core.stats imports training.run"]
    assert list(breaches({"planning.plan": {"metering.meter"}})), "heavy packages are no light ones"


def test_reading_planning_and_reporting_never_import_torch():
    heavy = {
        name_of(path): {name.split(".")[0] for name in imports_of(path)} & HEAVY
        for path in MODULES
        if name_of(path).split(".")[0] in LIGHT
    }
    assert {name: found for name, found in heavy.items() if found} == {}


def test_no_modules_import_each_other_in_a_circle():
    graph = {name_of(path): own_imports(path) for path in MODULES}
    while graph:
        free = [name for name, wants in graph.items() if not wants & graph.keys()]
        assert free, f"a circle among {sorted(graph)}"
        for name in free:
            del graph[name]


def test_command_line_starts_without_what_only_commands_need():
    code = "import studylib.commands.cli, sys; sys.exit(bool({'torch', 'numpy', 'pydantic'} & "
    code += "sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_modules_are_short_and_say_what_they_are_for():
    texts = {path: path.read_text(encoding="utf-8") for path in (*DOORS, *MODULES)}
    lines = {name_of(path): len(text.splitlines()) for path, text in texts.items()}
    most = {name: LONGER.get(name, LONGEST_MODULE_LINES) for name in lines}
    assert {name: count for name, count in lines.items() if count > most[name]} == {}
    assert [name_of(p) for p, text in texts.items() if not ast.get_docstring(ast.parse(text))] == []


# Words that are methods' names and mean something else here: a loss in full, a norm of full width.
OTHER_MEANINGS = {
    "forecasting.job": {"full"},
    "forecasting.job_forecast": {"full"},
    "planning.catalog": {"full"},
    "planning.counts": {"full"},
    "schema.settings": {"full"},
    "training.train": {"full"},
}


def named_methods(text, names):
    """The methods that a module's strings name: alone, or with a rank, or within a text where the
    name is no English word. Docstrings and comments may."""
    tree = ast.parse(text)
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    told = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, owners) and isinstance(node.body[0], ast.Expr)
    }
    whole = re.compile(rf"({'|'.join(map(re.escape, names))})(-r\d+)?")
    within = "|".join(map(re.escape, sorted(set(names) - {"full"}, key=len, reverse=True)))
    within = re.compile(rf"(?<![\w.-])({within})(-r\d+)?(?![\w:-]|\.\w)")
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
            continue
        if id(node) in told:
            continue
        if match := whole.fullmatch(node.value):
            yield match[1]
        else:
            yield from (match[1] for match in within.finditer(node.value))


def trained_methods():
    return [name for name, row in METHODS.items() if row.trains]


def test_no_module_names_a_method():
    found = {
        name_of(path): set(named_methods(path.read_text(encoding="utf-8"), trained_methods()))
        for path in MODULES
    }
    wrong = {name: words - OTHER_MEANINGS.get(name, set()) for name, words in found.items()}
    assert {name: words for name, words in wrong.items() if words} == {}, "ask the row"
    stale = {name for name, words in OTHER_MEANINGS.items() if not words <= found[name]}
    assert stale == set(), "these no longer need to be excused"


@pytest.mark.parametrize(
    ("code", "named"),
    [
        ('if method.name == "lora": pass', {"lora"}),
        ('x = f"use {y} or qlora-r16."', {"qlora"}),
        ('x = "full"', {"full"}),
        ('x = {"lora-embed": 1}', {"lora-embed"}),
        ('"""Of full and lora."""', set()),
        ('x = "in full", "lora.targets", "lora_A", "explora"', set()),
    ],
)
def test_a_planted_name_of_a_method_is_seen(code, named):
    assert set(named_methods(code, trained_methods())) == named


def shared_names(texts, commands):
    """Names of a module's functions and classes that stand for more than one thing.

    Spared: `main`, which says only where a program starts, and a command's function in
    `commands`: it is called what the reader types, as the work that it calls may be.
    """
    places: dict[str, list[str]] = {}
    for module, text in texts.items():
        for node in ast.parse(text).body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            typed = module.startswith("commands.") and node.name in commands
            if node.name != "main" and not typed:
                places.setdefault(node.name, []).append(module)
    return {name: found for name, found in places.items() if len(found) > 1}


def test_the_name_of_a_class_or_a_function_stands_for_one_thing():
    commands = {command.callback.__name__ for command in app.registered_commands}
    assert "forecast" in commands
    texts = {name_of(path): path.read_text(encoding="utf-8") for path in MODULES}
    assert shared_names(texts, commands) == {}


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        ("def tell(): pass", "def tell(): pass", {"tell"}),
        ("class Job: pass", "async def Job(): pass", {"Job"}),
        ("def plan(): pass", "def plan(): pass", {"plan"}),
        ("class A:\n    def tell(self): pass", "def tell(): pass", set()),
        ("def main(): pass", "def main(): pass", set()),
    ],
)
def test_a_planted_name_of_two_things_is_seen(one, other, shared):
    assert shared_names({"core.one": one, "advice.other": other}, {"plan"}).keys() == shared
    assert shared_names({"core.one": one, "commands.other": other}, {"plan"}).keys() == (
        shared - {"plan"}
    )


def test_no_tracked_file_names_a_private_place_or_a_registry():
    # Written in parts, so that this file does not hold what it forbids.
    rooted = "|".join(("wo" + "rk", "ro" + "ot", "ho" + "me", "Us" + "ers"))
    places = f"{rooted}|tmp/(v|pytest-[^/]*)"
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
    files = {name_of(path): path for path in MODULES if path.stem != "__init__"}
    named = {name for path in (ROOT / "tests").glob("*.py") for name in own_imports(path)}
    texts = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("*.py"))
    named |= set(re.findall(r"studylib\.(\w+\.\w+)", texts)) & files.keys()
    reached, left = set(), named
    while left:  # a module that a tested one is built of is tested with it
        name = left.pop()
        reached.add(name)
        left |= own_imports(files[name]) - reached
    assert files.keys() - reached == set(), "no test reaches these"
