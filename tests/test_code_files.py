"""A hash of code moves whenever code that a figure depends on does, and only then."""

import shutil
import sys

import pytest

from studylib.core.places import PACKAGE
from studylib.metering.code_files import FORECASTING, RUN, SERVING, code_sha256, reached_files


@pytest.fixture
def package(tmp_path):
    """A copy of the package's code, to be edited."""
    copy = tmp_path / "studylib"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("bundled", "__pycache__"))
    return copy


def edit(package, name):
    with (package / name).open("a", encoding="utf-8") as file:
        file.write("\n")


REACHED = [
    (RUN, "metering/live.py"),
    (RUN, "modelling/skeleton.py"),
    (RUN, "inputs/questions.py"),
    (RUN, "metering/session.py"),
    (RUN, "training/train_worker.py"),
    (SERVING, "serving/latency.py"),
    (SERVING, "modelling/methods.py"),
    (FORECASTING, "metering/live.py"),
    (FORECASTING, "modelling/methods.py"),
    (FORECASTING, "shapes.json"),
]
NOT_REACHED = [
    (RUN, "reporting/prose.py"),
    (RUN, "prices.csv"),
    (SERVING, "training/tune.py"),
    (FORECASTING, "claims.yaml"),
]


@pytest.mark.parametrize(
    ("entries", "name", "moves"),
    [(*case, True) for case in REACHED] + [(*case, False) for case in NOT_REACHED],
)
def test_an_edit_moves_the_hash_of_an_entry_that_reaches_it_alone(package, entries, name, moves):
    before = code_sha256(entries, package)
    edit(package, name)
    code_sha256.cache_clear()
    assert (code_sha256(entries, package) != before) == moves


@pytest.mark.parametrize("entries", [RUN, SERVING, FORECASTING])
def test_every_module_of_the_package_that_an_entry_loads_is_reached(entries):
    import importlib

    for name in entries:
        importlib.import_module("studylib." + name.removesuffix(".py").replace("/", "."))
    first = sys.modules["studylib." + entries[0].removesuffix(".py").replace("/", ".")]
    seen, left = set(), [first]
    while left:  # what its objects come from, whatever the imports were spelled like
        module = left.pop()
        if module.__name__ in seen:
            continue
        seen.add(module.__name__)
        homes = {getattr(value, "__module__", None) for value in vars(module).values()}
        left += [sys.modules[name] for name in homes if str(name).startswith("studylib.")]
    files = {name.replace(".", "/") + ".py" for name in seen}
    reached = {f"studylib/{name}" for name in reached_files(entries)}
    assert files - reached == set()


def test_an_import_inside_a_function_counts_and_one_for_type_checkers_does_not(tmp_path):
    package = tmp_path / "studylib"
    (package / "part").mkdir(parents=True)
    for name in ("__init__.py", "part/__init__.py", "part/late.py", "part/typed.py"):
        (package / name).touch()
    (package / "entry.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from studylib.part import typed\n"
        "def work():\n    from studylib.part import late\n"
    )
    assert reached_files(("entry.py",), package) == (
        "__init__.py", "entry.py", "part/__init__.py", "part/late.py",
    )  # fmt: skip
