"""How many runs one card carried at a time: what a shared card's clock says of a method is nothing.

Answers and the memory of torch's allocator are a run's own on a shared card. Its seconds, and all
that follows from them (speed, utilisation, energy, dollars), are those of the crowd.

Not covered: putting runs on cards (studylib.running.executor), a processor's cores, of which each
run has its own.
"""

from __future__ import annotations

from studylib.schema.records import Record


def runs_on_card(record: Record) -> int:
    """Runs that were on this one's card at a time, itself included; 1 on a card of its own and
    without a card."""
    environment = record.environment
    if environment.device.startswith("CPU"):
        return 1
    return max(1, min(record.run.hardware.runs_per_card, environment.concurrent_runs))
