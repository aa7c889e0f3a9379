"""Run the tests of every kind of fault and write what was seen: `make faults` makes docs/faults.md.

    tools/python tests/faults/write_table.py [--to FILE] [--only WORD …]

A kind whose test fails or is skipped makes the command end with 1, and stands so in the table.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parent)]
from table import FAULTS  # noqa: E402

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "faults.md"
COLUMNS = ("kind", "how it is injected", "what is promised", "what was seen", "test")
HEAD = """# Faults

What happens to a study when something around it breaks. Each fault is injected for real, as the
second column says, and the last but one says what was seen when this page was made, by
`make faults`; the last tests took {minutes:.0f} minutes. `make soak MINUTES=60` goes on
with kills at random moments.

"""


class Seen:
    """A plugin of pytest: the outcome of each test, and what it told by record_property."""

    def __init__(self) -> None:
        self.outcomes: dict[str, list[str]] = {}
        self.told: dict[str, list[str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        for name in {report.nodeid, report.nodeid.partition("[")[0]}:
            self.outcomes.setdefault(name, []).append(report.outcome)
            self.told.setdefault(name, [])
            self.told[name] += [str(v) for k, v in report.user_properties if k == "seen"]

    def spell(self, test: str) -> str:
        outcomes = self.outcomes.get(test, ["not run"])
        bad = sorted({outcome for outcome in outcomes if outcome != "passed"})
        if bad:
            return f"**{', '.join(bad)}**"
        return "; ".join(dict.fromkeys(self.told[test])) or f"held, {len(outcomes)} cases"


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def read_seen(page: Path) -> dict[str, str]:
    """What a page says was seen, by kind."""
    lines = page.read_text(encoding="utf-8").splitlines() if page.is_file() else []
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    return {row[0]: row[3] for row in rows[2:]}


def compose(seen: Seen, minutes: float, before: dict[str, str]) -> str:
    """before: what was seen of the kinds that were not tried now."""
    rows = [COLUMNS, ("---",) * len(COLUMNS)]
    for fault in FAULTS:
        now = cell("; ".join(dict.fromkeys(seen.spell(test) for test in fault.tests)))
        shown = before.get(fault.kind, now)
        files = dict.fromkeys(test.partition("::")[0] for test in fault.tests)
        where = ", ".join(f"[{Path(file).name}](../{file})" for file in files)
        rows.append((fault.kind, cell(fault.how), cell(fault.promise), shown, where))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return HEAD.format(minutes=minutes) + "\n".join(lines) + "\n"


def main() -> int:
    words = argparse.ArgumentParser(description="Run the faults, write the table.")
    words.add_argument("--to", type=Path, default=PAGE)
    words.add_argument("--at-once", default="auto", help="how many files of tests at a time")
    words.add_argument("--only", nargs="*", help="kinds with these words; other rows stay")
    asked = words.parse_args()
    tried = [f for f in FAULTS if not asked.only or any(word in f.kind for word in asked.only)]
    before = read_seen(asked.to) if asked.only else {}
    for fault in tried:
        before.pop(fault.kind, None)
    seen, began = Seen(), time.monotonic()
    tests = list(dict.fromkeys(test for fault in tried for test in fault.tests))
    options = ["-m", "", "-q", "--rootdir", str(ROOT), "-n", asked.at_once, "--dist", "loadfile"]
    code = pytest.main([*options, *(str(ROOT / test) for test in tests)], plugins=[seen])
    asked.to.write_text(compose(seen, (time.monotonic() - began) / 60, before))
    print(f"{asked.to}: {len(FAULTS)} kinds")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
