"""How runs differ: fields that rows of one table must share, and settings of a plan and a record.

Not covered: the records themselves (studylib.schema.records).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from studylib.schema.profile import RunSpec
from studylib.schema.records import Record

# What rows of one comparison must share. A field that one of them lacks (the base has no
# training) is not compared.
SHARED_FIELDS = (
    "data.sha256",
    "data.template",
    "data.tokens_seen",
    "data.packing",
    "evaluate.items_sha256",
    "evaluate.prompt",
    "evaluate.shots",
    "evaluate.scoring",
    "evaluate.precision",
    "held_out.items_sha256",
    "recipe.steps",
    "recipe.batch_tokens",
    "recipe.schedule",
    "recipe.dtype",
    "recipe.switches",
    "model.sha256",
    "code.sha256",
    "device.name",
)


def find_mismatches(records: Iterable[Record]) -> dict[str, dict[str, list[str]]]:
    """Fields that must be shared and are not: field -> value as text -> run ids."""
    found: dict[str, dict[str, list[str]]] = {}
    rows = list(records)
    for field in SHARED_FIELDS:
        values: dict[str, list[str]] = {}
        for record in rows:
            value = record.fingerprint.get(field)
            if value is not None:
                values.setdefault(str(value), []).append(record.run_id)
        if len(values) > 1:
            found[field] = values
    return found


def find_changes(planned: RunSpec, recorded: RunSpec) -> list[str]:
    """What a record was made with that the plan asks differently, `field: recorded -> planned`."""
    changes = changed_fields(planned, recorded)
    return [f"{field}: {old} -> {new}" for field, (old, new) in changes.items()]


def changed_fields(planned: RunSpec, recorded: RunSpec) -> dict[str, tuple[Any, Any]]:
    """field -> (recorded, planned) where they differ.

    How runs share the machine, where a learning rate was read and which weights stay do not make
    another run.
    """
    ignored = {"hardware", "keep", "learning_rate_source", "profile"}
    old = flatten_keys(recorded.model_dump(mode="json", exclude=ignored))
    new = flatten_keys(planned.model_dump(mode="json", exclude=ignored))
    used = {"learning_rates", "checkpoint_every", "margin"}
    keys = [k for k in sorted(old.keys() | new.keys()) if not used & set(k.split("."))]
    return {k: (old.get(k), new.get(k)) for k in keys if old.get(k) != new.get(k)}


def flatten_keys(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict) and value:
            flat |= flatten_keys(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
