"""The page of all model types: make the zoo, try each one, write the table that users read.

The table holds words and shares, never timings, so that two runs on one set of versions differ
by their date alone. Long reasons stand once, numbered, below it.

Not covered: the columns themselves (studylib.checking.check_model), the page's last section,
which people write and which is left as it is.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import logging
import multiprocessing
import os
import re
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from studylib.checking.zoo import make_model, zoo_names
from studylib.core.files import write_atomically
from studylib.schema.methods import ADAPTER, METHODS, QUANTIZED, WHOLE
from studylib.schema.model_report import COLUMNS, NEEDED, Cell, ModelReport

PAGE = Path("docs") / "models.md"
KEPT = "## What the libraries do"  # from here on the page is people's
HEADINGS = [heading for heading, _ in COLUMNS.values()]
# What differs from kind to kind in one reason, and in its last digits between machines.
FIGURE = re.compile(r" (by|are|is) (up to )?[\d.e+-]+( standard deviations)?(?= |,|$)")
SET = re.compile(r"\{[^}]*(\}|…)")  # a library's own spelling, in an order of chance
Outcome = ModelReport | str


def check_zoo(folder: Path) -> dict[str, Outcome]:
    """Each model type's report, or why it cannot be made; a line is printed as each is done.

    folder: where the tiny models lie while they are tried.
    """
    wanted, processes = zoo_names(), min(os.cpu_count() or 1, 8)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # the processes share the cores
    context = multiprocessing.get_context("spawn")
    outcomes: dict[str, Outcome] = {}
    with ProcessPoolExecutor(processes, mp_context=context) as pool:
        tasks = {pool.submit(check_kind, folder, name): name for name in wanted}
        for task in as_completed(tasks):
            name = tasks[task]
            outcomes[name] = task.result()
            found = outcomes[name]
            said = f"not made: {found}" if isinstance(found, str) else found.verdict
            print(f"{len(outcomes):3} of {len(wanted)}  {name}: {said}")
    return {name: outcomes[name] for name in wanted}


def check_kind(folder: Path, name: str) -> Outcome:
    """One tiny model, made and tried in silence."""
    from studylib.checking.check_model import check_model
    from studylib.schema.settings import ModelRef

    quieten()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        made = make_model(folder / name, name)
        if isinstance(made, str):
            return made
        return check_model(ModelRef(kind="path", name=str(made)))


def quieten() -> None:
    """What libraries say of models that are tried on purpose is not for the screen."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    os.environ.setdefault("TQDM_DISABLE", "1")


def write_page(outcomes: dict[str, Outcome], path: Path = PAGE) -> Path:
    """Write the table anew, and leave what people wrote below it."""
    text = compose_models_page(outcomes, datetime.datetime.now(datetime.UTC).date().isoformat())
    if path.is_file():
        _, mark, kept = path.read_text(encoding="utf-8").partition(f"\n{KEPT}")
        text += mark + kept
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, text.encode())
    return path


def compose_models_page(outcomes: dict[str, Outcome], date: str) -> str:
    """The page as Markdown."""
    reports = {name: found for name, found in outcomes.items() if isinstance(found, ModelReport)}
    left = {name: found for name, found in outcomes.items() if isinstance(found, str)}
    versions = next(iter(reports.values())).versions
    reasons: list[str] = []
    rows = [format_row(name, report, reasons) for name, report in sorted(reports.items())]
    usable = {
        method: sum(report.reason(method) is None for report in reports.values())
        for method in NEEDED
    }
    rows_of = (METHODS[name] for name in (WHOLE, ADAPTER, QUANTIZED))
    words = ", ".join(f"{row.in_words}: {usable[row.label]}" for row in rows_of)
    lines = [
        "# Which models the study can be used on",
        "",
        f"Made by `make check-models` on {date} with "
        + ", ".join(f"{name} {number}" for name, number in versions.items())
        + ". Of any model of your own: `study check-model MODEL`.",
        "",
        f"A tiny random model of each of {len(reports)} of the {len(outcomes)} model types that "
        "transformers opens as causal language models went through the study's own loading, "
        "training, merging and scoring, and was compared with references that do not: "
        "transformers' own load with each example alone, formulas written by hand, the original "
        f"weights. Usable for {words}. A tiny model shows what the code does with an "
        "architecture, not what a checkpoint of that kind is worth.",
        "",
        "Exact: as near as float32 comes (1e-4 of a standard deviation or relative, 2e-5 for the "
        "loss). **Bold**: a fault, not to be built on. Numbers in brackets: notes below the table.",
        "",
        *(f"- {heading}: {meaning}." for heading, meaning in COLUMNS.values()),
        "",
        "| " + " | ".join(["model type", "class", *NEEDED, *HEADINGS]) + " |",
        "|" + " --- |" * (2 + len(NEEDED) + len(HEADINGS)),
        *rows,
        "",
        *(f"{number}. {reason}" for number, reason in enumerate(reasons, 1)),
        "",
        "## Not made",
        "",
        *(f"- {name}: {reason}." for name, reason in sorted(left.items())),
    ]
    return "\n".join(lines) + "\n"


def format_row(name: str, report: ModelReport, reasons: list[str]) -> str:
    """A row of the table; new reasons are added to the list that the numbers count."""
    words = [name, report.model_class]
    words += ["yes" if report.reason(method) is None else "no" for method in NEEDED]
    own = report.model_class
    words += [format_cell(report.cells.get(column), own, reasons) for column in COLUMNS]
    return "| " + " | ".join(words) + " |"


def format_cell(cell: Cell | None, model_class: str, reasons: list[str]) -> str:
    if cell is None:
        return ""
    text = cell.text if cell.fault is None else f"**{cell.text}**"
    if cell.note is None:
        return text
    note = cell.note.replace("|", "/").replace(model_class, "it")
    note = SET.sub("{…}", FIGURE.sub(r" \1 …", note))
    if note not in reasons:
        reasons.append(note)
    return f"{text} [{reasons.index(note) + 1}]"
