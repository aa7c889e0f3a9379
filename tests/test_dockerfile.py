"""The image: linted, of a fixed base, without root, secrets or more than the study needs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / "Dockerfile"
LARGEST_CONTEXT_BYTES = 60_000_000

pytestmark = pytest.mark.skipif(
    not DOCKERFILE.is_file(), reason="the image does not hold its own Dockerfile"
)


def steps():
    """(instruction, arguments) of the Dockerfile, continued lines joined."""
    text = re.sub(r"\\\n", " ", re.sub(r"(?m)^\s*#.*\n", "", DOCKERFILE.read_text()))
    found = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    return [(word.upper(), " ".join(rest.split())) for word, rest in found]


def arguments(instruction):
    return [rest for word, rest in steps() if word == instruction]


def lint(path):
    return subprocess.run(
        [Path(sys.executable).with_name("hadolint"), "--no-color", path],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def ignore_rules():
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def fits(rule, name):
    """Whether a rule names this file or a folder above it, as Docker reads rules."""
    pattern = re.escape(rule).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
    return re.fullmatch(f"{pattern}(?:/.*)?", name) is not None


def travels(name):
    """Whether a file is sent to the build: the last rule that fits decides."""
    fitting = [rule for rule in ignore_rules() if fits(rule.removeprefix("!"), name)]
    return not fitting or fitting[-1].startswith("!")


def test_linter_finds_nothing(tmp_path):
    done = lint(DOCKERFILE)
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "Dockerfile").write_text("FROM ubuntu\nRUN apt-get install make\n")
    assert "DL3006" in lint(tmp_path / "Dockerfile").stdout, "the linter does not lint"


def test_base_is_nvidias_runtime_of_a_fixed_version():
    (base,) = arguments("FROM")
    assert re.fullmatch(r"nvidia/cuda:13\.0\.\d+-runtime-ubuntu24\.04", base)


def test_study_does_not_run_as_root():
    users = [(word, rest) for word, rest in steps() if word in ("USER", "CMD")]
    assert users[-2:] == [("USER", "1000"), ("CMD", '["make", "reproduce"]')]


def test_packages_are_the_pinned_ones_and_come_before_the_code():
    runs = [f"{word} {rest}" for word, rest in steps()]
    assert not [run for run in runs if "pip install" in run], "tools/install alone knows how"
    (install,) = [run for run in runs if run.startswith("RUN") and "tools/install" in run]
    assert "tools/install python ." in install and "PIP_NO_CACHE_DIR=1" in install
    copied = runs.index("COPY --chown=study:study tools/install tools/install")
    assert copied < runs.index(install)
    assert runs.index(install) < runs.index("COPY --chown=study:study . .")


def test_results_and_the_hubs_cache_outlive_the_container():
    assert arguments("VOLUME") == ['["/results", "/cache"]']
    (environment,) = arguments("ENV")
    assert "RESULTS=/results" in environment and "HF_HOME=/cache/" in environment


def test_no_secret_is_built_into_the_image():
    for rest in arguments("ENV") + arguments("ARG") + arguments("RUN"):
        assert not re.search(r"token|secret|password|api_?key", rest, re.IGNORECASE)


def test_context_is_what_the_study_needs_and_small():
    kept = ("studylib/training/run.py", "studylib/profiles/cpu.yaml", "tools/python", "Makefile")
    for name in (*kept, "results/reference/cpu/runs/x/record.json", "tests/conftest.py"):
        assert travels(name), name
    for name in (".git/config", ".venv/bin/python", ".venv-sky/bin/sky", "results/gpu/runs/x.json",
                 "studylib/__pycache__/run.pyc", "token.txt", ".env", "notes/x",
                 "results/reference/cpu/runs/x/executed.ipynb"):  # fmt: skip
        assert not travels(name), name
    excepted = [ROOT / rule[1:] for rule in ignore_rules() if rule.startswith("!")]
    assert all(path.exists() for path in excepted)
    files = [f for path in excepted for f in ([path] if path.is_file() else path.rglob("*"))]
    sent = [f for f in files if f.is_file() and travels(str(f.relative_to(ROOT)))]
    assert sum(f.stat().st_size for f in sent) < LARGEST_CONTEXT_BYTES


def test_copied_files_are_in_the_context():
    for rest in arguments("COPY"):
        *sources, _ = [word for word in rest.split() if not word.startswith("--")]
        for source in sources:
            assert source == "." or ((ROOT / source).is_file() and travels(source)), source
