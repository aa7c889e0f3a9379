"""Talk with a hub: ask again after a passing fault, check what came, one message for each answer.

Not covered: which repositories a study needs and what must be in them (studylib.inputs.sources).
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from studylib.core.errors import StudyError
from studylib.schema.records import file_sha256

HUB_TIMEOUT_SECONDS = 10.0
RETRY_WAITS_SECONDS = (1.0, 2.0, 4.0)
Answer = TypeVar("Answer")


def ask_again(ask: Callable[[], Answer]) -> Answer:
    """What `ask` gives; asked again where the hub had a passing fault or the line broke."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalEntryNotFoundError

    for wait_seconds in RETRY_WAITS_SECONDS:
        try:
            return ask()
        except (HTTPError, LocalEntryNotFoundError) as error:
            status = status_of(error)
            broke = isinstance(error, HTTPError) and not isinstance(error, HfHubHTTPError)
            if not broke and (status is None or (status not in (408, 429) and status < 500)):
                raise
        time.sleep(wait_seconds)
    return ask()


@contextmanager
def hub_errors(ref: object, instead: str = "use path:FOLDER or ladder:NAME") -> Iterator[None]:
    """Turn what a hub may answer into one message each; where it does not, use its cache alone."""
    check_endpoint()
    from huggingface_hub.errors import HFValidationError, HTTPError

    # Retries are announced one by one; the message at the end says it all.
    for name in ("utils._http", "file_download"):
        logging.getLogger(f"huggingface_hub.{name}").setLevel(logging.ERROR)
    with nullcontext() if hub_answers() else cache_only():
        try:
            yield
        except (OSError, HTTPError, HFValidationError) as error:
            message = explain_hub_error(error, ref, instead)
            if message is None:
                raise
            raise message from error


def check_endpoint() -> None:
    """Raise where HF_ENDPOINT is no address: the hub's clients would end in a traceback."""
    address = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        parts = urlsplit(address)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise StudyError(
            f"HF_ENDPOINT={address}",
            "this is no address of a hub",
            "Write https://HOST, or unset it.",
        )


def hub_answers() -> bool:
    """Whether there is a hub at HF_ENDPOINT, whatever it answers."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HTTPError, OfflineModeIsEnabled
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT_SECONDS)
    except (HTTPError, OfflineModeIsEnabled):
        return False
    return True


@contextmanager
def cache_only() -> Iterator[None]:
    """Let the hub's clients look in their caches alone; else they try for half a minute first."""
    from datasets import config
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE = before


def explain_hub_error(error: Exception, ref: object, instead: str) -> StudyError | None:
    """The message for a hub's answer, or None for what is none."""
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub import errors

    missing = (errors.RepositoryNotFoundError, errors.RevisionNotFoundError)
    status = status_of(error)
    if any(isinstance(cause, errors.GatedRepoError) for cause in causes(error)):
        return StudyError(
            ref,
            "the hub gives this to registered readers only",
            "Accept its licence on its page and set HF_TOKEN to a token of that account.",
        )
    if isinstance(error, (*missing, errors.HFValidationError, DatasetNotFoundError)):
        return StudyError(
            ref,
            "the hub has no such repository or revision",
            "Check the name, ORGANISATION/NAME; a private one needs HF_TOKEN.",
        )
    if isinstance(error, errors.RemoteEntryNotFoundError):
        return StudyError(
            ref, "the repository lacks a file that is needed", "Choose a whole checkpoint."
        )
    if status in (401, 403):
        return StudyError(
            ref,
            f"the hub refuses it (HTTP {status})",
            "Set HF_TOKEN to a valid token of an account that may read it, or unset it.",
        )
    if status is not None and status >= 400:
        return StudyError(
            ref, f"the hub has a fault (HTTP {status})", f"Try again later, or {instead}."
        )
    if "Consistency check failed" in str(error):
        return StudyError(
            ref,
            "a file came longer or shorter than the hub announced",
            "Run it again: the file will be downloaded anew.",
        )
    # By name: these are of the HTTP package, which is not the same in every version of the client.
    if type(error).__name__ in ("RemoteProtocolError", "ReadError"):
        return StudyError(
            ref,
            "the download broke off again and again",
            "Run it again: files that came whole are kept.",
        )
    lost = (errors.LocalEntryNotFoundError, errors.HTTPError, ConnectionError, TimeoutError)
    if isinstance(error, lost):
        return StudyError(
            ref,
            "the hub cannot be reached",
            f"Check the network and HF_ENDPOINT, or {instead}.",
        )
    return None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def root_cause(error: BaseException) -> BaseException:
    """What an error was raised from, first of all: a library's own words hide it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an error of the hub's clients, if it was an answer."""
    responses = (getattr(cause, "response", None) for cause in causes(error))
    return next((r.status_code for r in responses if r is not None), None)


def check_contents(folder: Path, ref: object) -> None:
    """Raise where a file of a snapshot is not what the hub announced; it is then removed.

    The hub's cache calls each content by the hash that the hub gave for it, and does not compute
    it. What is found right is marked, so that tens of gigabytes are read for this only once.
    """
    marks = folder.parents[1] / "verified"
    for link in sorted(path for path in folder.iterdir() if path.is_symlink()):
        blob = folder / link.readlink()
        if (marks / blob.name).exists():
            continue
        if not has_hash(blob, blob.name):
            blob.unlink()
            link.unlink()
            raise StudyError(
                f"{ref}, {link.name}",
                "the content has another checksum than the hub announced",
                "Run it again: the file is removed and will be downloaded anew.",
            )
        with suppress(OSError):  # a cache that others own may be read-only
            marks.mkdir(exist_ok=True)
            (marks / blob.name).touch()


def has_hash(path: Path, announced: str) -> bool:
    """Whether a file has this SHA-256 (64 digits) or git hash (40); others cannot be checked."""
    if len(announced) == 64:
        return file_sha256(path) == announced
    if len(announced) == 40:
        content = path.read_bytes()  # git keeps only small files itself
        header = f"blob {len(content)}\0".encode()
        return hashlib.sha1(header + content, usedforsecurity=False).hexdigest() == announced
    return True


def resolve_dataset(name: str, revision: str | None) -> str | None:
    """The commit of a data set that the hub gives us; without an answer the revision as it is."""
    from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        info = ask_again(
            lambda: HfApi().dataset_info(name, revision=revision, timeout=HUB_TIMEOUT_SECONDS)
        )
    except OfflineModeIsEnabled:
        return revision
    if info.siblings:  # the hub describes a gated data set to all
        file = info.siblings[0].rfilename
        url = hf_hub_url(name, file, repo_type="dataset", revision=info.sha)
        ask_again(lambda: get_hf_file_metadata(url, timeout=HUB_TIMEOUT_SECONDS))
    return info.sha
