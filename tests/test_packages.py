"""pyproject.toml, constraints.txt and environment.yml name the same packages."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
MODULE_OF = {"yaml": "pyyaml", "pynvml": "nvidia-ml-py", "IPython": "ipywidgets"}
# They come with what is declared: numpy with pandas, most others with transformers and lm-eval.
CARRIED = {"numpy", "huggingface_hub", "datasets", "safetensors", "tokenizers", "tqdm"}
CARRIED |= {"markupsafe", "nbclient", "nbformat", "packaging", "traitlets"}

USED_IF_THERE = {"vllm", "triton"}


def read_pyproject():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def wanted():
    project = read_pyproject()["project"]
    texts = project["dependencies"] + project["optional-dependencies"]["dev"]
    return {Requirement(text).name: Requirement(text).specifier for text in texts}


def pinned():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_conda_gives_the_same_packages_in_the_same_ranges():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    through_pip = next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    assert {Requirement(t).name: Requirement(t).specifier for t in through_pip} == wanted()
    python = next(d for d in environment["dependencies"] if str(d).startswith("python="))
    assert Requirement(
        "python" + read_pyproject()["project"]["requires-python"]
    ).specifier.contains(python.partition("=")[2])


def test_every_package_is_pinned_to_a_version_in_its_range():
    versions = pinned()
    for name, specifier in wanted().items():
        assert name in versions, f"constraints.txt lacks {name}"
        assert specifier.contains(versions[name]), f"{name}=={versions[name]} is not {specifier}"


def locked():
    """{name: (versions, how many hashes)} of lock.txt; a version may differ by Python."""
    found: dict[str, tuple[set, int]] = {}
    name = None
    for line in (ROOT / "lock.txt").read_text().splitlines():
        if match := re.match(r"([a-z0-9.-]+)(?:\[.*\])?==([^ ;]+)", line):
            name = match[1]
            found.setdefault(name, (set(), 0))[0].add(match[2])
        elif "--hash=sha256:" in line:
            found[name] = (found[name][0], found[name][1] + 1)
    return found


def test_lock_has_every_pinned_package_with_hashes_and_the_install_takes_no_other():
    found = locked()
    pins = {name: version for name, version in pinned().items() if name != "torch"}
    assert {name: found.get(name, (None,))[0] for name in pins} == {n: {v} for n, v in pins.items()}
    assert min(count for _, count in found.values()) > 0
    by_machine = re.compile(r"torch|triton|cuda-.*|nvidia-(?!ml-py).*")
    assert not [name for name in found if by_machine.fullmatch(name)]
    install = (ROOT / "tools" / "install").read_text()
    assert "--require-hashes" in install and "--no-build-isolation" in install
    assert "tools/install" in (ROOT / "tools" / "python").read_text()


def test_torch_is_pinned_and_the_ranges_take_older_images():
    assert pinned()["torch"] == "2.13.0"
    assert wanted()["torch"].contains("2.11.0")
    assert wanted()["transformers"].contains("5.17.0")


def test_every_package_that_the_code_imports_is_declared():
    declared = {name.replace("-", "_") for name in wanted()} | CARRIED | USED_IF_THERE
    for path in (ROOT / "studylib").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in (n.split(".")[0] for n in names):
                if name in sys.stdlib_module_names or name == "studylib":
                    continue
                name = MODULE_OF.get(name, name).replace("-", "_")
                assert name in declared, f"{path.name} imports {name}"


def test_files_beside_the_modules_are_installed_with_them():
    from fnmatch import fnmatch

    patterns = read_pyproject()["tool"]["setuptools"]["package-data"]["studylib"]
    package = ROOT / "studylib"
    for path in package.rglob("*"):
        inner = path.relative_to(package)
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            assert any(fnmatch(str(inner), pattern.replace("**/", "")) for pattern in patterns), (
                inner
            )
