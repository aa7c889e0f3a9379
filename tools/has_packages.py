"""Exit with 0 if this Python has every package that pyproject.toml names, in its range."""

import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
try:
    ok = all(
        Requirement(text).specifier.contains(version(Requirement(text).name), prereleases=True)
        for text in wanted
    )
except PackageNotFoundError:
    ok = False
sys.exit(0 if ok else 1)
