"""Find a run's record by its id among the results of all profiles.

Not covered: reading all records of a study (studylib.schema.records.read_records).
"""

from __future__ import annotations

from pathlib import Path

from studylib.core.errors import StudyError
from studylib.schema.records import RECORD, Record, check_files, read_record
from studylib.schema.settings import nearest


def find_record(results: Path, run_id: str, profile: str | None = None) -> tuple[Record, Path]:
    """(the record, the run's folder). run_id: an id, or the folder itself.

    profile: the name of a folder in `results`; without it all are looked through, and a run that
    several of them have is refused. StudyError names the nearest ids.
    """
    if not run_id.strip():
        raise StudyError(
            "RUN", "no run is named", "Write the id of a finished one: `make plan` lists them."
        )
    folder = Path(run_id)
    if (folder / RECORD).is_file():
        return read_whole(folder)
    place = f"{profile}/runs" if profile else "*/runs"
    known = [path.parent for path in sorted(results.glob(f"{place}/*/{RECORD}"))]
    found = [folder for folder in known if folder.name == run_id]
    if not found:
        where = results / profile if profile else results
        if not known:
            raise StudyError(where, "there are no finished runs", suggest_study(results, profile))
        remedy = nearest(run_id, sorted({folder.name for folder in known}))
        raise StudyError(run_id, f"no finished run of this name is in {where}", remedy)
    if len(found) > 1:
        names = [folder.parents[1].name for folder in found]
        raise StudyError(
            run_id,
            f"several studies have a run of this name: {', '.join(names)}",
            f"Name one: PROFILE={names[0]} (--profile {names[0]}).",
        )
    return read_whole(found[0])


def suggest_study(results: Path, profile: str | None = None) -> str:
    """The remedy where a profile has no finished runs: the studies that have some (one of a
    reader's own has a longer name than its profile), or how to begin."""
    studies = sorted({path.parents[2].name for path in results.glob(f"*/runs/*/{RECORD}")})
    if profile and studies:
        return f"PROFILE= (--profile) names a study's folder. {nearest(profile, studies)}"
    return f"Run `make reproduce{f' PROFILE={profile}' if profile else ''}` first."


def read_whole(folder: Path) -> tuple[Record, Path]:
    record = read_record(folder / RECORD)
    check_files(folder, record)
    return record, folder
