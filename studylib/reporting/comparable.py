"""Which records may stand in one table: those that share what must be shared.

The weights that a method is scored on must be the same over its seeds; methods differ in them by
their nature. Runs on other data, questions, recipes, code or devices are not averaged away: they
get tables of their own, and the report names each field that differs, with both values.

Not covered: which fields those are (studylib.schema.differences.SHARED_FIELDS).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from studylib.reporting.study import PER_SEED_FIELDS
from studylib.schema.differences import SHARED_FIELDS
from studylib.schema.records import Record

SAME_FOR_ALL = tuple(field for field in SHARED_FIELDS if field not in PER_SEED_FIELDS)
Values = dict[str, object]


@dataclass(frozen=True)
class Refusal:
    """A field that the runs of one track and model do not share: value -> run ids."""

    track: str
    model: str
    field: str
    values: dict[str, list[str]]


def shared_values(record: Record) -> Values:
    """The values by which a run is told from others; those of one seed carry the seed's number."""
    marks: Values = {f: record.fingerprint.get(f) for f in SAME_FOR_ALL}
    for field in PER_SEED_FIELDS:
        marks[f"{field} (seed {record.run.seed})"] = record.fingerprint.get(field)
    scored = f"evaluate.weights ({record.run.method.slug})"
    marks[scored] = record.fingerprint.get("evaluate.weights")
    return {field: value for field, value in marks.items() if value is not None}


def split_comparable(records: Iterable[Record]) -> list[list[Record]]:
    """Records of one track and model as sets in which all that both have agrees, largest first.

    A record joins the largest set that it agrees with. The base, which lacks the training's
    fields, joins every set that it agrees with: each table needs it.
    """
    rows = sorted(records, key=lambda r: (not r.run.method.kind.trains, r.run_id))
    trained = [r for r in rows if r.run.method.kind.trains]
    sets: list[tuple[Values, list[Record]]] = []
    for record in sorted(trained, key=lambda r: -len(shared_values(r))):
        place_record(record, sets)
    sets.sort(key=lambda entry: (-len(entry[1]), min(r.run_id for r in entry[1])))
    for record in rows:
        if record.run.method.kind.trains:
            continue
        own = shared_values(record)
        homes = [members for values, members in sets if agrees(own, values)]
        for members in homes:
            members.append(record)
        if not homes:
            sets.append((own, [record]))
    return [sorted(members, key=lambda r: r.run_id) for _, members in sets]


def place_record(record: Record, sets: list[tuple[Values, list[Record]]]) -> None:
    """Put a record into the largest set that it agrees with, or open a new one."""
    own = shared_values(record)
    fitting = [entry for entry in sets if agrees(own, entry[0])]
    if not fitting:
        sets.append((own, [record]))
        return
    values, members = max(fitting, key=lambda entry: len(entry[1]))
    members.append(record)
    for field, value in own.items():
        values.setdefault(field, value)


def agrees(one: Values, other: Values) -> bool:
    return all(value == other[field] for field, value in one.items() if field in other)


def name_refusals(track: str, model: str, records: Iterable[Record]) -> list[Refusal]:
    """Every field that the runs of one track and model do not share, with its values."""
    found: dict[str, dict[str, list[str]]] = {}
    for record in records:
        for field, value in shared_values(record).items():
            found.setdefault(field, {}).setdefault(str(value), []).append(record.run_id)
    return [
        Refusal(track, model, field, values)
        for field, values in sorted(found.items())
        if len(values) > 1
    ]
