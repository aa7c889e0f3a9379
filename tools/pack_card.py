"""Pack what a machine with a card and no package index lacks: built/card, to be carried there.

    tools/python tools/pack_card.py [FILE_OR_FOLDER …]

site.tar.gz holds the packages of tools/card_wheels.txt, ready to import, and below `with/` the
files and folders named here (questions, say, that lie outside this checkout). provenance.sh tells
the commit, for records made from a copy without its history: pack again after every commit. Wheels
are downloaded once, into built/wheels. tools/card_machine.sh is the other end.

Not covered: torch, transformers and what else an image with PyTorch has (card_wheels.txt names it);
processors other than x86-64, a Python other than 3.12.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tarfile
import tempfile
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple
from zipfile import ZipFile

from studylib.core.errors import StudyError
from studylib.core.places import ROOT
from studylib.metering.environment import COMMIT_VARIABLE, DIRTY_VARIABLE, git_state

LIST = ROOT / "tools" / "card_wheels.txt"
WHEELS, PACKED = ROOT / "built" / "wheels", ROOT / "built" / "card"
PYTHON = "3.12"
# pip takes each for itself: a wheel for an older glibc names no newer one.
PLATFORMS = [f"manylinux_2_{n}_x86_64" for n in (5, 12, 17, 24, 26, 27, 28, 31, 34, 35)]
PLATFORMS += [f"manylinux{year}_x86_64" for year in (1, 2010, 2014)]


class Wheel(NamedTuple):
    """One package, and the patterns of the files in it that stay behind."""

    requirement: str
    without: list[str]
    but: list[str]

    def keeps(self, path: str) -> bool:
        cut = any(fnmatch(path, pattern) for pattern in self.without)
        return not cut or any(fnmatch(path, pattern) for pattern in self.but)


def read_wheels(text: str) -> list[Wheel]:
    """The lines of card_wheels.txt; StudyError for one that says anything else."""
    wheels = []
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if not words:
            continue
        lists: dict[str, list[str]] = {"without": [], "but": []}
        chosen = None
        for word in words[1:]:
            if word in lists:
                chosen = lists[word]
            elif chosen is None:
                rule = "after NAME==VERSION come `without` or `but`, and their patterns"
                raise StudyError(line, rule, f"Mend {LIST.name}.")
            else:
                chosen.append(word)
        if "==" not in words[0]:
            raise StudyError(line, "a package has one version: NAME==VERSION", f"Mend {LIST.name}.")
        wheels.append(Wheel(words[0], **lists))
    return wheels


def download(wheel: Wheel, folder: Path) -> Path:
    """The file of a wheel, fetched where it is not there yet."""
    name, _, version = wheel.requirement.partition("==")
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    if not (found := sorted(folder.glob(pattern))):
        options = [word for platform in PLATFORMS for word in ("--platform", platform)]
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "-qq", "--no-deps",
             "--only-binary=:all:", "--python-version", PYTHON, "--implementation", "cp",
             *options, "--dest", str(folder), wheel.requirement],
            check=True,
        )  # fmt: skip
        found = sorted(folder.glob(pattern))
    return found[0]


def unpack(wheel: Wheel, file: Path, site: Path) -> None:
    """Install a wheel into a folder of packages, without what it leaves behind.

    Scripts are left out, files of the scheme `data` (Jupyter's kernels) lie where pip's --target
    has them: in the folder itself.
    """
    with ZipFile(file) as archive:
        for name in archive.namelist():
            if name.endswith("/") or not wheel.keeps(name):
                continue
            top, _, inner = name.partition("/")
            if top.endswith(".data"):
                scheme, _, inner = inner.partition("/")
                if scheme not in ("data", "purelib", "platlib"):
                    continue
            else:
                inner = name
            target = site / inner
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(name))


def pack(wheels: list[Wheel], companions: list[Path]) -> Path:
    """Write site.tar.gz and provenance.sh anew; returns their folder."""
    WHEELS.mkdir(parents=True, exist_ok=True)
    PACKED.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=PACKED.parent) as work:
        site = Path(work) / "site"
        for wheel in wheels:
            unpack(wheel, download(wheel, WHEELS), site)
        with tarfile.open(Path(work) / "site.tar.gz", "w:gz") as archive:
            archive.add(site, "site")
            for companion in companions:
                archive.add(companion, f"with/{companion.resolve().name}")
        shutil.move(Path(work) / "site.tar.gz", PACKED / "site.tar.gz")
    commit, dirty = git_state()
    lines = [
        f"export {COMMIT_VARIABLE}={commit or ''}",
        f"export {DIRTY_VARIABLE}={int(bool(dirty))}",
    ]
    (PACKED / "provenance.sh").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return PACKED


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("companions", nargs="*", type=Path, metavar="FILE_OR_FOLDER")
    companions = parser.parse_args(words).companions
    try:
        for path in companions:
            if not path.exists():
                raise StudyError(path, "there is no such file or folder", "Name what goes along.")
        folder = pack(read_wheels(LIST.read_text(encoding="utf-8")), companions)
    except StudyError as error:
        print(error, file=sys.stderr)
        return 2
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder.relative_to(ROOT)}: {size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
