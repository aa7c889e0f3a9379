"""Forecast every published case and print it beside what was measured: one line a case.

Run: python benchmarks/forecast_published.py  (about a minute, no device).
"""

from __future__ import annotations

from studylib.forecasting.published import compare, load_published


def main() -> None:
    errors = []
    for published in load_published():
        made = compare(published)
        left_out = f"  [left out: {published.not_comparable}]" if published.not_comparable else ""
        print(
            f"{made.forecast_bytes / 1e9:8.2f} GB forecast,"
            f" {published.published_bytes / 1e9:8.2f} GB"
            f" {published.counter} {made.error:+7.1%}  {published.case}{left_out}",
            flush=True,
        )
        if published.not_comparable is None:
            errors.append(abs(made.error))
    mean = sum(errors) / len(errors)
    print(f"{len(errors)} comparable cases: mean error {mean:.1%}, worst {max(errors):.1%}")


if __name__ == "__main__":
    main()
