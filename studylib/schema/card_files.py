"""What a study under a clock leaves beside its records: card.json, other libraries' figures, MMLU
by two ways, the card's self-check.

All but card.json are optional, and what is missing is not spoken of. A rehearsal, which had no
card, is told as any other study.

Not covered: the records (studylib.reporting.study), what is said of all this
(studylib.reporting.card_section).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studylib.core.errors import StudyError
from studylib.schema.card_study import CARD_STUDY, CardStudy, read_card_study
from studylib.schema.checks import GpuChecks, read_checks

PEERS, MMLU, CHECKS = "peers*.json", "mmlu*.json", "gpu-check/*.json"
CARD_FILES = (CARD_STUDY, PEERS, MMLU, CHECKS)


@dataclass(frozen=True)
class CardFiles:
    """All of them. peers: what benchmarks/peers.py writes, one mapping a file. mmlu: what
    benchmarks/mmlu_prefix.py writes, one mapping a precision."""

    study: CardStudy
    peers: tuple[dict[str, Any], ...] = ()
    mmlu: tuple[dict[str, Any], ...] = ()
    checks: tuple[GpuChecks, ...] = ()


def read_card_files(folder: Path) -> CardFiles | None:
    """Those of a results folder; None where it is no card's. StudyError: one cannot be trusted."""
    if not (folder / CARD_STUDY).is_file():
        return None
    study = read_card_study(folder)
    if study.rehearsal:
        return None
    return CardFiles(
        study=study,
        peers=tuple(one for path in sorted(folder.glob(PEERS)) for one in read_objects(path)),
        mmlu=tuple(one for path in sorted(folder.glob(MMLU)) for one in read_objects(path)),
        checks=tuple(read_checks(path) for path in sorted(folder.glob(CHECKS))),
    )


def read_objects(path: Path) -> list[dict[str, Any]]:
    """The objects of a file: a list, or one or several after each other. StudyError: no JSON."""
    text, found = path.read_text(encoding="utf-8").strip(), []
    decoder = json.JSONDecoder()
    try:
        while text:
            content, end = decoder.raw_decode(text)
            found += content if isinstance(content, list) else [content]
            text = text[end:].lstrip()
        return [dict(content) for content in found]
    except (ValueError, TypeError):
        rule = "this is not JSON, or is cut off"
        raise StudyError(path, rule, "Restore it, or move it away.") from None
