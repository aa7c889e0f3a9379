"""A study carried to a machine without a package index: what is packed, what comes back."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from zipfile import ZipFile

import pytest
from waiting import LONG_SECONDS

from studylib.core.errors import StudyError

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))
import pack_card  # noqa: E402

sys.path.pop(0)


def test_list_names_one_version_of_each_package_and_those_of_the_constraints():
    wheels = pack_card.read_wheels(pack_card.LIST.read_text())
    versions = dict(wheel.requirement.split("==") for wheel in wheels)
    assert len(versions) == len(wheels)
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert {n: v for n, v in versions.items() if pinned.get(n, v) != v} == {}


def test_one_library_of_4_bit_kernels_is_packed_beside_all_of_the_packages_code():
    wheels = pack_card.read_wheels(pack_card.LIST.read_text())
    (wheel,) = (wheel for wheel in wheels if wheel.requirement.startswith("bitsandbytes="))
    names = ["nn/modules.py", *(f"libbitsandbytes_{kind}.so" for kind in ("cpu", "cuda130"))]
    others = [f"libbitsandbytes_{kind}.so" for kind in ("cuda128", "cuda132", "rocm72", "xpu2026")]
    kept = [n for n in names + others if wheel.keeps(f"bitsandbytes/{n}")]
    assert kept == names


@pytest.mark.parametrize("line", ["torch", "torch>=2", "torch==2 lib/*"])
def test_line_that_says_something_else_is_refused(line):
    with pytest.raises(StudyError):
        pack_card.read_wheels(line)


def test_wheel_is_unpacked_as_pip_would_without_what_stays_behind(tmp_path):
    with ZipFile(tmp_path / "a.whl", "w") as archive:
        for name in (
            "a/__init__.py",
            "a/big.so",
            "a-1.data/data/share/jupyter/kernel.json",
            "a-1.data/scripts/a",
            "a-1.data/purelib/b.py",
            "a-1.dist-info/METADATA",
        ):
            archive.writestr(name, name)  # fmt: skip
    pack_card.unpack(pack_card.Wheel("a==1", ["a/*.so"], []), tmp_path / "a.whl", tmp_path / "s")
    found = sorted(str(p.relative_to(tmp_path / "s")) for p in (tmp_path / "s").rglob("*.*"))
    assert found == ["a-1.dist-info", "a/__init__.py", "b.py", "share/jupyter/kernel.json"]


def run_there(tmp_path, command, seconds=600):
    """card_machine.sh in a copy of a checkout whose python3 has nothing to import."""
    for folder in ("tools", "built/card", "bin", "site"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    shutil.copy(ROOT / "tools" / "card_machine.sh", tmp_path / "tools")
    (tmp_path / "bin" / "python3").write_text("#!/bin/sh\nexit 0\n")
    (tmp_path / "bin" / "python3").chmod(0o755)
    with tarfile.open(tmp_path / "built/card/site.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "site", "site")
    (tmp_path / "built/card/provenance.sh").write_text("export STUDY_GIT_COMMIT=abc\n")
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [tmp_path / "tools" / "card_machine.sh", "out", str(seconds), command],
        env={"PATH": path, "STUDY_CARD_PLACE": str(tmp_path / "place")},
        cwd=tmp_path, capture_output=True, text=True, timeout=LONG_SECONDS, check=False,
    )  # fmt: skip
    parts = sorted((tmp_path / "out").glob("results.tar.gz.*"))
    with tarfile.open(fileobj=io.BytesIO(b"".join(p.read_bytes() for p in parts))) as archive:
        found = {
            m.name: archive.extractfile(m).read().decode().strip() for m in archive if m.isfile()
        }
    return done.returncode, found, (tmp_path / "out" / "log.txt").read_text()


def test_results_of_a_command_that_fails_come_back_with_its_code_and_log(tmp_path):
    command = 'mkdir $RESULTS/a; echo "$STUDY_GIT_COMMIT" >$RESULTS/a/b; echo said; exit 3'
    code, found, log = run_there(tmp_path, command)
    assert (code, found) == (3, {"./a/b": "abc"})
    assert "said" in log


def test_results_of_a_command_that_is_cut_off_come_back(tmp_path):
    code, found, _ = run_there(tmp_path, "echo 1 >$RESULTS/first; sleep 600", seconds=3)
    assert (code, found) == (124, {"./first": "1"})


def test_what_is_too_large_to_come_back_is_named(tmp_path):
    code, found, log = run_there(tmp_path, "truncate -s 16000000 $RESULTS/model.safetensors")
    assert (code, found) == (0, {})
    assert "left behind: ./model.safetensors, 16000000 bytes" in log
