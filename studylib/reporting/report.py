"""REPORT.md and report.html with figures and tables: a pure function of the records.

The same records give the same bytes, in whatever order they are read. Two reports are made: a
reader's own, results/PROFILE/REPORT.md, which sets the reader's figures beside the reference's;
and the repository's, REPORT.md at the top, from the reference records alone. The report notebook
shows either and writes it; the README's first screen is made of the same blocks.

Pandas, scipy and matplotlib are imported only where a report is really made: finding that nothing
changed takes a fraction of a second.

Not covered: running anything: the report knows records and nothing of how they came to be.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from studylib.core.errors import StudyError
from studylib.reporting.blocks import Block, to_markdown
from studylib.reporting.made_from import PAGE, REPORT, Files, hash_inputs, remember
from studylib.schema.forecast_book import FORECASTS, read_book
from studylib.schema.profile import Profile, RunSpec, read_profile, shipped_profiles
from studylib.schema.records import explain_write_error, write_atomically

if TYPE_CHECKING:
    from studylib.reporting.compose import Report

REFERENCE = Path("results") / "reference"
README = "README.md"
ENDINGS = (".svg", ".csv", ".md")
START = "<!-- findings: written by `make report` from the reference records -->"
END = "<!-- /findings -->"


@dataclass(frozen=True)
class Sources:
    """What a report is made from, and the folder that it goes to.

    folders: the results folders that it tells of. beside: another one that is set beside the first.
    book: the file of forecasts. planned, failed: what the profile asks and what is known of
    failures, for the words not run and failed. shipped: the report is the repository's and not a
    reader's. own: it is about the reader's own data, and is short; article: it judges the article's
    claims as well. instead_of: results that were asked for and are not there; then the report is
    shown and not written.
    """

    out: Path
    folders: tuple[Path, ...]
    beside: Path | None = None
    book: Path | None = None
    planned: tuple[RunSpec, ...] | None = None
    failed: Mapping[str, str] = field(default_factory=dict)
    shipped: bool = False
    own: bool = False
    article: bool = False
    instead_of: Path | None = None

    @property
    def inputs(self) -> str:
        """One hash of all of it."""
        folders = [*self.folders, *([self.beside] if self.beside else [])]
        book = read_book(self.book) if self.book else None
        asked = (self.planned, sorted(self.failed.items()), self.own, self.article)
        return hash_inputs(folders, *asked, book and book.digest)


def find_sources(
    results: Path, reference: Path, failed: Mapping[str, str] | None = None
) -> Sources:
    """The sources that two folders give: results/PROFILE (or results/reference) and the reference.

    Where `results` is the reference itself, the repository's report; where no run of the reader's
    lies there yet, the same, to be shown only. StudyError: neither has runs.
    """
    if has_runs(results):
        return own_sources(results, reference / results.name, failed=failed)
    if results.resolve() == reference.resolve():
        return reference_sources(reference_root(reference))
    if not any(has_runs(folder) for folder in reference.glob("*")):
        raise StudyError(results, "no record lies below its runs folder",
                         "Run the study first: make reproduce.")  # fmt: skip
    return reference_sources(reference_root(reference), instead_of=results)


def own_sources(
    results: Path,
    reference: Path | None = None,
    planned: Iterable[RunSpec] | None = None,
    failed: Mapping[str, str] | None = None,
) -> Sources:
    """results: results/PROFILE with its runs. reference: results/reference/PROFILE, set beside it
    where it exists; forecasts beside its folder are shown. planned: None takes the profile that
    lies beside the runs.
    """
    file = results / "profile.yaml"
    profile = read_profile(str(file)) if file.is_file() else None
    if planned is None and profile is not None:
        planned = profile.runs()
    return Sources(
        out=results,
        folders=(results,),
        beside=reference if reference is not None and has_runs(reference) else None,
        book=None if reference is None else reference.parent / FORECASTS,
        planned=None if planned is None else tuple(planned),
        failed=dict(failed or {}),
        own=profile is not None and is_readers(profile),
        article=profile is not None and profile.article,
    )


def is_readers(profile: Profile) -> bool:
    """Whether a study is about the reader's own data, by a profile that the project does not ship.

    The almanac is the project's instrument, whoever asks about it.
    """
    shipped = set(shipped_profiles()) - {"custom"}
    own_data = any(not track.data.source.startswith("almanac:") for track in profile.tracks)
    return own_data and (profile.origin or profile.name) not in shipped


def reference_sources(root: Path, instead_of: Path | None = None) -> Sources:
    """All profiles below results/reference, cpu first: a reader can make it on any machine.
    Studies of pretrained models and a card's come before it."""
    folders = [f for f in (root / REFERENCE).glob("*") if has_runs(f)]
    if not folders:
        raise StudyError(root / REFERENCE, "there are no reference records",
                         "Run a study and publish it: make publish PROFILE=cpu.")  # fmt: skip
    folders.sort(key=lambda folder: (folder.name != "cpu", folder.name))
    book = root / REFERENCE / FORECASTS
    return Sources(root, tuple(folders), book=book, shipped=True, instead_of=instead_of)


def reference_root(reference: Path) -> Path:
    """The repository in which a folder of reference records lies."""
    return Path(os.path.normpath(reference / ".." / ".."))


def compose_report(sources: Sources) -> Report:
    """All parts and files of the report. StudyError: no records, an untrusted record."""
    from studylib.reporting.claims import evaluate_claims
    from studylib.reporting.compose import build_report
    from studylib.reporting.forecast_tables import forecast_claims
    from studylib.reporting.kept import is_pretrained
    from studylib.reporting.own_study import compose_own, has_verdict
    from studylib.reporting.study import read_study
    from studylib.reporting.summary import summarise_study

    book = read_book(sources.book) if sources.book else None
    if sources.shipped:
        links = [relative_path(folder, sources.out) for folder in sources.folders]
        pairs = zip(sources.folders, links, strict=True)
        studies = [summarise_study(read_study(folder, link)) for folder, link in pairs]
        studies.sort(key=lambda s: (not is_pretrained(s), s.study.card is None))
        findings = evaluate_claims(studies, forecast_claims(book))
        return replace(build_report(studies, findings, None, book=book), folder=sources.out)
    own = summarise_study(read_study(sources.out, "", sources.planned, sources.failed))
    short = sources.own and has_verdict(own)
    judged = sources.article or not short
    findings = evaluate_claims([own], forecast_claims(book)) if judged else []
    if short:
        return replace(compose_own(own, findings), folder=sources.out)
    other = None
    if sources.beside is not None:
        link = relative_path(sources.beside, sources.out)
        other = summarise_study(read_study(sources.beside, link, planned=()))
    made = build_report([own], findings, other, own_folder="", book=book)
    return replace(made, folder=sources.out)


def write_report(sources: Sources, report: Report) -> Path:
    """Write REPORT.md, report.html, figures and tables; returns the first one's path.

    Nothing is written of a report that is shown instead of another. StudyError: a folder that
    cannot be written.
    """
    if sources.instead_of is not None:
        return sources.out / REPORT
    from studylib.reporting.page import render_page

    files = with_readme(sources, report) | {PAGE: render_page(report)}
    path = write_files(sources.out, files)
    if not sources.shipped:
        remember(sources.out, sources.inputs, files)
    return path


def check_reference_report(root: Path) -> list[str]:
    """What is stale: one line for each file that is missing, differs or should not be there.

    A picture made by another version of matplotlib is not compared byte by byte.
    """
    from studylib.reporting.panels import made_elsewhere

    sources = reference_sources(root)
    expected = with_readme(sources, compose_report(sources))
    stale = []
    for name, content in sorted(expected.items()):
        path = root / name
        if not path.is_file():
            stale.append(f"{name} is missing")
        elif path.read_bytes() != content and not made_elsewhere(path, content):
            stale.append(f"{name} is not what the records give")
    stale += [f"{name} belongs to no record" for name in leftovers(root, expected)]
    return stale


def with_readme(sources: Sources, report: Report) -> Files:
    """The report's files and, beside the repository's own, the README with its findings."""
    path = sources.out / README
    if not sources.shipped or not path.is_file():
        return dict(report.files)
    _title, _heading, *findings = report.parts["answer"]
    text = fill_findings(path.read_text(encoding="utf-8"), findings)
    return report.files | {README: text.encode()}


def opening_of(path: Path) -> str:
    """The verdict in the first line of a report on a reader's own study; empty in any other's."""
    with path.open(encoding="utf-8") as file:
        first = file.readline().strip()
    return first.strip("*") if first.startswith("**") else ""


def has_runs(folder: Path) -> bool:
    return any((folder / "runs").glob("*/record.json"))


def relative_path(target: Path, start: Path) -> str:
    return Path(os.path.relpath(target.resolve(), start.resolve())).as_posix()


def write_files(out: Path, files: Files) -> Path:
    """Write what changed and remove pictures and tables that no record gives any more."""
    for name, content in files.items():
        path = out / name
        if path.is_file() and path.read_bytes() == content:
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explain_write_error(path, error) from error
        write_atomically(path, content)
    for name in leftovers(out, files):
        (out / name).unlink()
    return out / REPORT


def leftovers(out: Path, files: Files) -> list[str]:
    """Pictures, tables and appendices in the report's own folders that are none of its files."""
    folders = {(out / name).parent for name in files} - {out}
    found = [p for folder in sorted(folders) for p in folder.glob("*") if p.suffix in ENDINGS]
    return sorted(n for p in found if (n := p.relative_to(out).as_posix()) not in files)


def fill_findings(readme: str, findings: Sequence[Block]) -> str:
    """The README with what stands between its two marks made anew from the report's blocks."""
    before, start, rest = readme.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise StudyError("README.md", "the marks around its findings are missing",
                         f"Put {START} and {END} on lines of their own.")  # fmt: skip
    return f"{before}{START}\n{to_markdown(findings)}{END}{after}"
