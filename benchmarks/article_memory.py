"""Print the article's memory figures beside forecasts of jobs that meet them and that do not.

Run: python benchmarks/article_memory.py  (about half a minute, no device).
"""

from __future__ import annotations

from studylib.forecasting.article_forecasts import CASES, forecast_case
from studylib.forecasting.fitting import largest_that_fits
from studylib.forecasting.forecast import ForecastSettings


def main() -> None:
    for case in CASES:
        made = forecast_case(case)
        total = made.peak_bytes * made.settings.gpus
        error = total / 1e9 / case.article_gb - 1
        each = f" ({made.settings.gpus} × {made.peak_bytes / 1e9:.1f})" * (made.settings.gpus > 1)
        print(f"{case.article_gb:4.0f} GB claimed, {total / 1e9:6.1f} GB forecast {error:+5.0%}  "
              f"{case.words}{each}", flush=True)  # fmt: skip
    for method in ("lora", "qlora"):
        for checkpointing in (True, False):
            settings = ForecastSettings(
                model="shape:llama-2-13b", method=method, seq_len=512, checkpointing=checkpointing
            )
            print(method, "checkpointing" if checkpointing else "no checkpointing",
                  largest_that_fits(settings, "rtx4090-24gb"), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
