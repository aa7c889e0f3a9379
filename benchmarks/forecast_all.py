"""Forecast every shape of the catalog with every method: no error, totals right, how long.

Run: python benchmarks/forecast_all.py  (some minutes on two cores, no device). Prints one line a
forecast and exits with 1 if a shape fails or its parameters do not add up to its table.
"""

from __future__ import annotations

import resource
import sys
import time

from studylib.core.errors import StudyError
from studylib.forecasting.forecast import ForecastSettings, forecast
from studylib.planning.catalog import load_shapes

METHODS = ("full", "lora", "qlora")


def main() -> int:
    faults = 0
    for shape in load_shapes().values():
        for method in METHODS:
            started = time.perf_counter()
            try:
                made = forecast(ForecastSettings(model=f"shape:{shape.name}", method=method))
            except StudyError as error:
                print(f"{shape.name:14} {method:6} FAILED {error}", flush=True)
                faults += 1
                continue
            right = made.total_params == shape.total_params
            faults += not right
            print(
                f"{shape.name:14} {method:6} {made.peak_bytes / 1e9:8.2f} GB "
                f"{made.smallest_gpu or 'no card':14} {time.perf_counter() - started:5.1f} s"
                + ("" if right else f" WRONG TOTAL {made.total_params}"),
                flush=True,
            )
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{faults} faults, host memory {host / 1e9:.2f} GB")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
