"""Mappings of a profile laid over each other: what changes it, what its tracks inherit, and what it
states for a machine without a card.

Not covered: what the keys mean (studylib.schema.settings), which file is read
(studylib.schema.profile).
"""

from __future__ import annotations

from typing import Any

from studylib.core.errors import StudyError

TRACK_DEFAULTS = ("models", "methods", "seeds", "seeds_of", "data", "train", "evaluate", "tune")


def merge_mappings(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it, mappings merged, everything else replaced."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge_mappings(merged[key], value) if both else value
    return merged


def choose_device(content: dict[str, Any], on_card: bool) -> dict[str, Any]:
    """A profile's mapping without its on_cpu, and each track's without its own: laid over the rest
    for a machine without a card, else left out."""
    content = dict(content)
    tracks = [dict(track) for track in check_tracks(content.get("tracks") or [])]
    shared, *own = (part.pop("on_cpu", {}) for part in (content, *tracks))
    if not all(isinstance(changes, dict) for changes in (shared, *own)):
        raise StudyError(
            "on_cpu", "this is a mapping of keys to values", "Write on_cpu: {train: {…}}."
        )
    if not on_card:
        content = merge_mappings(content, shared)
        inherited = {key: shared[key] for key in TRACK_DEFAULTS if key in shared}
        both = zip(tracks, own, strict=True)
        tracks = [
            merge_mappings(merge_mappings(track, inherited), changes) for track, changes in both
        ]
    return content | ({"tracks": tracks} if tracks else {})


def change_profile(content: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`changes` over the profile and over what its tracks state themselves."""
    content = merge_mappings(content, changes)
    if {"models", "seeds"} & changes.keys() and "seeds_of" not in changes:
        for part in (content, *check_tracks(content.get("tracks") or [])):
            part.pop("seeds_of", None)  # seeds that are asked for go to all models
    if "tracks" not in changes and content.get("tracks"):
        inherited = {key: changes[key] for key in TRACK_DEFAULTS if key in changes}
        content["tracks"] = [
            merge_mappings(track, inherited) for track in check_tracks(content["tracks"])
        ]
    return content


def check_tracks(tracks: Any) -> list[dict[str, Any]]:
    if not isinstance(tracks, list) or not all(isinstance(track, dict) for track in tracks):
        raise StudyError("tracks", "this is a list of mappings", "Write - name: … for each track.")
    return tracks
