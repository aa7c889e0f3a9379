"""Which files of the package a measured or forecast figure depends on, by what imports what.

A list kept by hand forgets: a hash over it stays the same while code that counts bytes has changed.
So the files are those that the imports of an entry reach, inside functions too; for a forecast also
the tables that any of them names (`shapes.json`). What a run takes from a table is in its record.

Not covered: other packages (their versions are on record), the notebook that calls the stages.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from studylib.core.places import PACKAGE
from studylib.core.sealed import canonical
from studylib.schema.records import file_sha256

# Where a run, a serving run and a forecast begin. Report, figures and command line cannot change
# what they give.
RUN = ("training/run.py", "training/train_worker.py", "modelling/convert_gguf.py")
SERVING = ("serving/serve_run.py",)
FORECASTING = ("forecasting/article_forecasts.py", "forecasting/run_forecasts.py")
TABLES = (".csv", ".json", ".yaml")


@lru_cache(maxsize=8)
def reached_files(entries: tuple[str, ...], package: Path = PACKAGE) -> tuple[str, ...]:
    """The package's files that the entries reach, themselves included, as sorted relative paths.

    Those that begin at a forecast come with the tables that they name.
    """
    found: set[str] = set()
    tables: set[str] = set()
    left = list(entries)
    while left:
        name = left.pop()
        if name in found:
            continue
        found.add(name)
        tree = ast.parse((package / name).read_bytes())
        left += [file for file in own_imports(tree, package) if file not in found]
        if entries == FORECASTING:
            tables.update(named_tables(tree, package))
    return tuple(sorted(found | tables))


def own_imports(tree: ast.Module, package: Path) -> Iterator[str]:
    """The package's modules that a module imports, with the packages that hold them; what is there
    for type checkers only is left out."""
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for branch in node.body
        for inner in ast.walk(branch)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            first, *parts = name.split(".")
            if first == package.name:
                yield from module_files(parts, package)


def module_files(parts: list[str], package: Path) -> Iterator[str]:
    """The file of a module, and the __init__ of each package on the way to it."""
    for depth in range(len(parts) + 1):
        place = Path(*parts[:depth])
        for file in (place / "__init__.py", place.with_suffix(".py") if depth else None):
            if file is not None and (package / file).is_file():
                yield file.as_posix()


def named_tables(tree: ast.Module, package: Path) -> Iterator[str]:
    """The package's tables whose file names stand in a module's code."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            name = node.value
            if name.endswith(TABLES) and "/" not in name and (package / name).is_file():
                yield name


@lru_cache(maxsize=8)
def code_sha256(entries: tuple[str, ...] = RUN, package: Path = PACKAGE) -> str:
    """One hash of all that the entries reach, as it is at the first call: call it at the start."""
    marks = [[name, file_sha256(package / name)] for name in reached_files(entries, package)]
    return hashlib.sha256(canonical(marks)).hexdigest()
