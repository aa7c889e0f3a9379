"""`study data`: bring in the data of a profile that the study does not ship.

Not covered: where they come from and how they are made (studylib.inputs.origins).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from studylib.commands.cli_options import ProfileOption
from studylib.core.errors import StudyError


def data(
    profile: ProfileOption = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", help="A folder that has them, or what they are made of."),
    ] = None,
) -> None:
    """Make the files that a profile reads, of public files or a folder's, by their hashes."""
    from studylib.inputs.origins import bring_data
    from studylib.schema.profile import read_profile

    if not profile:
        raise StudyError("data", "it needs a profile", "Write make data PROFILE=real.")
    bring_data(read_profile(profile), source and source.expanduser(), print)
