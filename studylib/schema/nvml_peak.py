"""What the driver showed of a training on a card: one rule for tables, claims and forecasts.

Not covered: reading it (studylib.metering.nvml), torch's own counters (a record has them).
"""

from __future__ import annotations

from studylib.schema.records import Record


def nvml_bytes(record: Record) -> int | None:
    """What NVML showed of one card at the peak of training: of the process that had it to itself,
    or, of several cards or where the driver hides processes, of the whole card. So too where the
    optimizer's states are paged: the driver counts them on the card and in no process."""
    if record.train is None:
        return None
    measure = record.train.measure
    fullest = max(measure.nvml_peak_bytes_by_device.values(), default=measure.nvml_peak_bytes)
    if record.run.gpus > 1 or record.run.optimizer.startswith("paged"):
        return fullest or measure.nvml_process_peak_bytes
    return measure.nvml_process_peak_bytes or fullest
