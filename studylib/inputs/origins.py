"""The data that a profile needs and the study does not ship: made of public files, hash by hash.

A file that is here stays. One that is not is taken from a folder that has it, or what it is made
of; else its sources are fetched, kept in the cache until it is made, and checked by the hash of
what was made. So the same files come out either way, or none.

Not covered: how files are made of their sources (studylib.inputs.recipes); data of a hub
(studylib.inputs.hub).
"""

from __future__ import annotations

import hashlib
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from pydantic import Field, field_validator

from studylib.core.errors import StudyError
from studylib.core.files import file_sha256, read_mapping, write_atomically
from studylib.core.places import PACKAGE, cache_folder
from studylib.inputs.hub import HUB_TIMEOUT_SECONDS, RETRY_WAITS_SECONDS
from studylib.inputs.questions import MMLU_SUBJECTS
from studylib.inputs.recipes import RECIPES
from studylib.schema.profile import Profile
from studylib.schema.settings import Frozen

ORIGINS = PACKAGE / "profiles" / "origins"
NEIGHBOUR = Path("../shared/data")  # taken from without a word of the user, where it has all
LARGEST_SOURCE_BYTES = 32_000_000
FROM_FOLDER = "take the data from a folder that has them: make data FROM=FOLDER"


class Origin(Frozen):
    """A folder of one commit of a public repository. also_named: NAME -> as what a folder of data
    may hold it."""

    repository: str
    commit: str = Field(pattern=r"[0-9a-f]{40}")
    folder: str
    licence: str
    also_named: dict[str, str] = Field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.repository}@{self.commit[:7]}"


class MadeFile(Frozen):
    """One file of a profile's data, below where commands are given. sources: ORIGIN/NAME, and
    {subject} in it stands for each of MMLU's."""

    path: str
    sha256: str = Field(pattern=r"[0-9a-f]{64}")
    recipe: str
    sources: tuple[str, ...]
    keep: tuple[str, ...] = ()

    @field_validator("path")
    @classmethod
    def stays_below(cls, path: str) -> str:
        if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            raise ValueError("a path below the working directory")
        return path

    @property
    def in_folder(self) -> str:
        """Its place in a folder of data, which `data/` here stands for."""
        return str(PurePosixPath(*PurePosixPath(self.path).parts[1:]))

    @property
    def names(self) -> list[str]:
        return [
            source.format(subject=subject)
            for source in self.sources
            for subject in (MMLU_SUBJECTS if "{subject}" in source else [""])
        ]


class DataList(Frozen):
    """What the data of one profile are, which others may read too."""

    address: str
    origins: dict[str, Origin]
    files: tuple[MadeFile, ...]

    def find(self, name: str) -> tuple[Origin, str]:
        """(origin, name in it) of a source."""
        key, _, rest = name.partition("/")
        return self.origins[key], rest


def read_lists() -> dict[str, DataList]:
    """Every list of data, by the name of the profile that reads all of it."""
    return {
        path.stem: DataList.model_validate(read_mapping(path, "the list of data"))
        for path in sorted(ORIGINS.glob("*.yaml"))
    }


class NeededFile(NamedTuple):
    """A file that a profile reads and the study does not ship; list_name: of `listed`."""

    list_name: str
    listed: DataList
    file: MadeFile


def needed_files(profile: Profile) -> list[NeededFile]:
    """Those that a profile's settings read, here or not, in the lists' order."""
    asked = {
        source
        for track in profile.tracks
        for source in (*track.data.sources, *track.evaluate.sources)
    }
    return [
        NeededFile(name, listed, file)
        for name, listed in read_lists().items()
        for file in listed.files
        if asked & {file.path, *map(str, PurePosixPath(file.path).parents)}
    ]


def take_data(profile: Profile) -> list[str]:
    """Bring in what a profile lacks, in a line, where the neighbouring folder has all of it.

    StudyError, with the command that fetches them, where it has not.
    """
    missing = [one for one in needed_files(profile) if not Path(one.file.path).is_file()]
    if not missing:
        return []
    try:
        made = [make_file(one, [NEIGHBOUR], refuse_to_fetch) for one in missing]
    except NotHere:
        raise StudyError(
            missing[0].file.path,
            f"{len(missing)} files that profile {profile.origin or profile.name} reads are not "
            "here",
            f"Fetch them: make data PROFILE={missing[0].list_name}.",
        ) from None
    for one, (content, _) in zip(missing, made, strict=True):
        keep_file(one.file, content)
    return [f"data: {len(made)} files taken from {NEIGHBOUR}, hashes as expected"]


def bring_data(profile: Profile, folder: Path | None, say: Callable[[str], None]) -> None:
    """Make all files here that a profile reads; `say` is told of each where it came from.

    folder: the user's, asked before the neighbouring one and the origins. What is whole is kept,
    so that a call after an interrupted one goes on. StudyError, one message, for each fault.
    """
    needed = needed_files(profile)
    if not needed:
        raise StudyError(
            f"PROFILE={profile.name}", "all data of this profile are shipped, or your own",
            f"A profile with data to fetch: {', '.join(read_lists())}.",
        )  # fmt: skip
    if folder is not None and not folder.is_dir():
        raise StudyError(f"FROM={folder}", "there is no such folder", "Check the path.")
    for one in needed:
        address = check_address(os.environ.get("STUDY_ORIGINS") or one.listed.address)
        path = Path(one.file.path)
        if path.is_file():
            if file_sha256(path) != one.file.sha256:
                raise StudyError(
                    path, "it is here, with another content than the study was written for",
                    "Move it away.",
                )  # fmt: skip
            say(f"{path}: is here")
            continue
        folders = [f for f in (folder, NEIGHBOUR) if f is not None and f.is_dir()]
        used: list[Path] = []

        def fetch(
            origin: Origin, source: str, address: str = address, used: list[Path] = used
        ) -> bytes:
            return fetch_once(address, origin, source, used)

        content, whence = make_file(one, folders, fetch)
        keep_file(one.file, content, used)
        say(f"{path}: {whence}")


class NotHere(Exception):
    """A source that no folder has, where nothing is fetched."""


def refuse_to_fetch(origin: Origin, source: str) -> bytes:
    raise NotHere(source)


def make_file(
    needed: NeededFile, folders: list[Path], fetch: Callable[[Origin, str], bytes]
) -> tuple[bytes, str]:
    """(content, where that came from in words): copied from a folder that has it, else made of its
    sources, those in a folder before those that `fetch` brings."""
    _, listed, file = needed
    for folder in folders:
        content = read_bounded(folder / file.in_folder)
        if content is not None and sha256(content) == file.sha256:
            return content, f"taken from {folder}"
    sources, whence = dict[str, bytes](), dict[str, None]()
    for name in file.names:
        origin, rest = listed.find(name)
        content = None
        for folder in folders if rest in origin.also_named else []:
            content = read_bounded(folder / origin.also_named[rest])
            if content is not None:
                whence[f"made of {folder / origin.also_named[rest]}"] = None
                break
        if content is None:
            content = fetch(origin, rest)
            whence[f"made of {origin}"] = None
        sources[name] = content
    return RECIPES[file.recipe](sources, file.keep), ", ".join(whence)


def keep_file(file: MadeFile, content: bytes, used: Iterable[Path] = ()) -> None:
    """Write a made file if its hash is right; its sources leave the cache either way."""
    for path in used:
        path.unlink(missing_ok=True)
    found = sha256(content)
    if found != file.sha256:
        raise StudyError(
            file.path,
            f"what was made has SHA-256 {found[:12]}…, not {file.sha256[:12]}…: its sources "
            f"({', '.join(file.sources)}) are damaged or were changed",
            f"Run it again, or {FROM_FOLDER}.",
        )
    path = Path(file.path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def read_bounded(path: Path) -> bytes | None:
    if not path.is_file() or path.stat().st_size > LARGEST_SOURCE_BYTES:
        return None
    return path.read_bytes()


def check_address(address: str) -> str:
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise StudyError(
            f"STUDY_ORIGINS={address}", "this is no address of a web server",
            "Write https://HOST, or unset it.",
        )  # fmt: skip
    return address.rstrip("/")


def fetch_once(address: str, origin: Origin, name: str, used: list[Path]) -> bytes:
    """A source's content, from the cache where an interrupted call left it. used: gets its place
    in the cache."""
    where = quote(f"{origin.repository}/{origin.commit}/{origin.folder}/{name}")
    url = f"{address}/{where}"
    place = cache_folder("origins") / sha256(url.encode())
    used.append(place)
    if place.is_file():
        return place.read_bytes()
    content = fetch_again(url)
    write_atomically(place, content)
    return content


def fetch_again(url: str) -> bytes:
    """What a web server gives; asked again after a passing fault. StudyError for every other."""
    for wait_seconds in (*RETRY_WAITS_SECONDS, None):
        try:
            return fetch_url(url)
        except urllib.error.HTTPError as error:
            if wait_seconds is None or (error.code not in (408, 429) and error.code < 500):
                rule = f"the origin does not give this file (HTTP {error.code})"
                raise StudyError(url, rule, f"Check STUDY_ORIGINS, or {FROM_FOLDER}.") from None
        except (OSError, HTTPException, Broken) as error:
            if wait_seconds is None:
                reason = getattr(error, "reason", error)
                rule = f"the download fails again and again ({reason or type(error).__name__})"
                raise StudyError(
                    url, rule, f"Run it again, what came whole is kept, or {FROM_FOLDER}."
                ) from None
        time.sleep(wait_seconds)
    raise AssertionError("the last try returns or raises")


class Broken(Exception):
    """A line that ended before the length that was announced."""


def fetch_url(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=HUB_TIMEOUT_SECONDS) as response:
        content: Any = response.read(LARGEST_SOURCE_BYTES + 1)
        announced = response.headers.get("Content-Length")
    if len(content) > LARGEST_SOURCE_BYTES:
        rule = f"the file is longer than the {LARGEST_SOURCE_BYTES:,} bytes that are read of one"
        raise StudyError(url, rule, f"Check STUDY_ORIGINS, or {FROM_FOLDER}.")
    if announced is not None and announced.isdigit() and len(content) != int(announced):
        raise Broken(f"{len(content):,} of {int(announced):,} bytes came")
    return content
