"""REPORT.md with its figures and tables: a pure function of the records.

The same records give the same bytes, in whatever order they are read. Two reports are made: a
reader's own, results/PROFILE/REPORT.md, which sets the reader's figures beside the reference's;
and the repository's, REPORT.md at the top, from the reference records alone.

Pandas, scipy and matplotlib are imported only where a report is really made: finding that nothing
changed takes a fraction of a second.

Not covered: running anything. The report knows records and nothing of how they came to be.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from studylib.errors import StudyError
from studylib.forecast_book import FORECASTS, read_book
from studylib.made_from import REPORT, Files, hash_inputs, is_fresh, remember
from studylib.profile import RunSpec
from studylib.records import explain_write_error, write_atomically

REFERENCE = Path("results") / "reference"
README = "README.md"


def build_report(
    results: Path,
    reference: Path | None = None,
    out: Path | None = None,
    planned: Iterable[RunSpec] | None = None,
    failed: Mapping[str, str] | None = None,
) -> Path:
    """Write REPORT.md, figures and tables of a results folder; returns the report's path.

    results: results/PROFILE with its runs. reference: results/reference/PROFILE, set beside it
    where it exists. out: another folder to write to; links then still lead to the records.
    planned, failed: what the profile asks and what is known of failures, for the words not run and
    failed. Forecasts that lie beside the reference's folder are shown. StudyError: no records, an
    untrusted record, a folder that cannot be written.
    """
    out = out or results
    planned = None if planned is None else tuple(planned)
    beside = reference if reference is not None and has_runs(reference) else None
    folders = [results] if beside is None else [results, beside]
    book = None if reference is None else read_book(reference.parent / FORECASTS)
    inputs = hash_inputs(folders, planned, sorted((failed or {}).items()), book and book.digest)
    if is_fresh(out, inputs):
        return out / REPORT

    from studylib.claims import evaluate_claims
    from studylib.compose import compose
    from studylib.forecast_tables import forecast_claims
    from studylib.study import read_study
    from studylib.summary import summarise

    link = "" if out == results else relative(results, out)
    own = summarise(read_study(results, link, planned, failed))
    other = None
    if beside is not None:
        other = summarise(read_study(beside, relative(beside, out), planned=()))
    findings = evaluate_claims([own], forecast_claims(book))
    files = compose([own], findings, other, own_folder="", book=book)
    path = write_files(out, files)
    remember(out, inputs, files)
    return path


def build_reference_report(root: Path) -> Path:
    """Write the repository's REPORT.md from results/reference/* alone, figures beside records."""
    return write_files(root, compose_reference(root))


def check_reference_report(root: Path) -> list[str]:
    """What is stale: one line for each file that is missing, differs or should not be there.

    A picture made by another version of matplotlib is not compared byte by byte.
    """
    from studylib.panels import made_elsewhere

    expected = compose_reference(root)
    stale = []
    for name, content in sorted(expected.items()):
        path = root / name
        if not path.is_file():
            stale.append(f"{name} is missing")
        elif path.read_bytes() != content and not made_elsewhere(path, content):
            stale.append(f"{name} is not what the records give")
    stale += [f"{name} belongs to no record" for name in leftovers(root, expected)]
    return stale


def compose_reference(root: Path) -> Files:
    from studylib.claims import evaluate_claims
    from studylib.compose import compose
    from studylib.forecast_tables import forecast_claims
    from studylib.study import read_study
    from studylib.summary import summarise

    folders = sorted(f for f in (root / REFERENCE).glob("*") if has_runs(f))
    if not folders:
        raise StudyError(root / REFERENCE, "there are no reference records",
                         "Run a study and publish it: make publish PROFILE=cpu.")  # fmt: skip
    # cpu first: it is what a reader can make again on any machine
    folders.sort(key=lambda folder: (folder.name != "cpu", folder.name))
    studies = [summarise(read_study(f, (REFERENCE / f.name).as_posix())) for f in folders]
    book = read_book(root / REFERENCE / FORECASTS)
    files = compose(studies, evaluate_claims(studies, forecast_claims(book)), None, book=book)
    return files | fill_readme(root, files[REPORT].decode())


def fill_readme(root: Path, report: str) -> Files:
    """The README, where there is one, with the report's findings on its first screen."""
    from studylib.readme import fill_findings

    path = root / README
    if not path.is_file():
        return {}
    return {README: fill_findings(path.read_text(encoding="utf-8"), report).encode()}


def has_runs(folder: Path) -> bool:
    return any((folder / "runs").glob("*/record.json"))


def relative(target: Path, start: Path) -> str:
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
    """Pictures and tables in the report's own folders that are not among its files."""
    folders = {(out / name).parent for name in files if name != REPORT}
    found = [p for folder in sorted(folders) for p in folder.glob("*") if p.suffix in ENDINGS]
    return sorted(n for p in found if (n := p.relative_to(out).as_posix()) not in files)


ENDINGS = (".svg", ".csv")
