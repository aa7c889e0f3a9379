"""The options that name a study, declared once for plan, reproduce, tune and rent.

Not covered: what each option means (studylib.commands.cli_options), the commands.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from studylib.commands.cli_options import (
    DEFAULT_RESULTS,
    ColumnsOption,
    DataOption,
    KeepOption,
    LimitOption,
    MethodsOption,
    MmluOption,
    ModelOption,
    ProfileOption,
    ResultsOption,
    SeedsOption,
    SetOption,
    StepsOption,
    is_own,
    keep_as,
    pick_profile,
    resolve_profile,
)


@dataclass(frozen=True)
class StudyOptions:
    """A study as the command line names it; each field is an option, in this order."""

    profile: ProfileOption = None
    results: ResultsOption = DEFAULT_RESULTS
    model: ModelOption = None
    data: DataOption = None
    mmlu: MmluOption = None
    methods: MethodsOption = None
    seeds: SeedsOption = None
    steps: StepsOption = None
    limit: LimitOption = None
    changes: SetOption = None
    columns: ColumnsOption = None
    keep: KeepOption = None

    @property
    def own(self) -> bool:
        """Whether MODEL or DATA is the reader's own."""
        return is_own(self.model, self.data)

    def open(
        self, unnamed: str | None = None, find_machine: Callable[[], Any] | None = None
    ) -> Any:
        """The profile with every option laid over it, and its tuned rates.

        unnamed: the profile where none is named and nothing is the reader's own; without it, the
        one that suits this machine. find_machine: as resolve_profile has it.
        """
        from studylib.forecasting.calibration import learn_from

        learn_from(self.results)
        values = asdict(self)
        keep = values.pop("keep")
        values["profile"] = self.name(unnamed)[0]
        return keep_as(resolve_profile(**values, find_machine=find_machine), keep)

    def name(self, unnamed: str | None = None) -> tuple[str, str]:
        """(the profile's name, why it was chosen, empty where it was named)."""
        if unnamed and not (self.profile or self.own):
            return unnamed, ""
        return pick_profile(self.profile, self.own)

    def folder(self, chosen: Any) -> Path:
        """Where a profile's results lie."""
        return self.results / str(chosen.name)


def takes_study(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameter `study` is StudyOptions, with an option for each of its fields."""
    own, hints = inspect.signature(command), get_type_hints(command, include_extras=True)
    field_hints = get_type_hints(StudyOptions, include_extras=True)
    options = [
        inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default,
                          annotation=field_hints[field.name])
        for field in fields(StudyOptions)
    ]  # fmt: skip
    rest = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name])
        for name, parameter in own.parameters.items()
        if name != "study"
    ]

    def called(**values: Any) -> None:
        study = StudyOptions(
            **{field.name: values.pop(field.name) for field in fields(StudyOptions)}
        )
        command(study=study, **values)

    called.__name__, called.__doc__ = command.__name__, command.__doc__
    called.__module__ = command.__module__
    called.__annotations__ = {p.name: p.annotation for p in (*options, *rest)}
    called.__signature__ = inspect.Signature([*options, *rest])  # type: ignore[attr-defined]
    return called
