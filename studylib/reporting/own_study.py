"""The short report of a reader's own study: the verdict, its figures, costs, answers and limits.

The article's claims are judged in it only where the profile asks (article: true, ARTICLE=1).

Not covered: the verdict's sentences (studylib.reporting.verdict), the project's own report
(studylib.reporting.compose).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from studylib.core.metrics import METRICS
from studylib.reporting import limits as known_limits
from studylib.reporting import measure_tables, notes, prose, side_by_side, tables, verdict
from studylib.reporting.appendices import claims_lines, rate_lines, titled
from studylib.reporting.appendix import learning_rate, provenance_table
from studylib.reporting.appendix_files import path_of, to_file
from studylib.reporting.article_table import article_table
from studylib.reporting.capacity import is_capacity
from studylib.reporting.card_section import is_card
from studylib.reporting.cells import NOT_RUN, Table, run_path
from studylib.reporting.claims import Finding
from studylib.reporting.compose import Report, csv_files
from studylib.reporting.literal import show_literally
from studylib.reporting.made_from import REPORT, Files
from studylib.reporting.memory_grid import is_grid
from studylib.reporting.resources import wall_seconds
from studylib.reporting.serve_section import serve_details, serve_section
from studylib.reporting.summary import Comparison, Summary
from studylib.schema.methods import UNTRAINED, WHOLE

WORDS = {"enough": "**suffices**", "not enough": "**does not suffice**", "open": "cannot say yet"}
LEFT_OUT = (
    known_limits.limit_rows_skipped,
    known_limits.limit_examples_left_out,
    known_limits.limit_examples_cut,
    known_limits.limit_prompts_cut,
    known_limits.limit_undecided,
)


def has_verdict(summary: Summary) -> bool:
    """Whether the short report can tell of it: curves over facts or shapes have their own forms."""
    return not (is_card(summary) or is_capacity(summary) or is_grid(summary))


def compose_own(summary: Summary, findings: Sequence[Finding]) -> Report:
    """All of the report. findings: on the article's claims, none where they are not asked for."""
    files: Files = csv_files(summary, [*findings], "")
    if not findings:
        del files["tables/claims.csv"]
    served = bool(summary.study.serves)
    parts = {
        "answer": answer_section(summary),
        "results": [*results_section(summary), *cost_section(summary),
                    *side_by_side.section(summary.comparisons)],
        "serving": serve_section([summary], []) if served else [],
        "forecast": claims_section(findings) if findings else [],
        "beside": [],
        "words": [*left_out_section(summary), *limits_section(summary), *runs_section(summary)],
    }  # fmt: skip
    appendices = {}
    if findings:
        appendices["claims"] = titled("claims", claims_lines(findings))
    if served:
        appendices["serving"] = titled("serving", serve_details([summary], []))
    whole = "\n".join(line for lines in parts.values() for line in lines).rstrip() + "\n"
    texts = {name: "\n".join(lines) for name, lines in parts.items()}
    files |= {path_of(name): to_file(text) for name, text in appendices.items()}
    return Report(texts, appendices, files | {REPORT: whole.encode()})


def claims_section(findings: Sequence[Finding]) -> list[str]:
    return ["## The article's claims", "", article_table(findings).markdown(), ""]


def answer_section(summary: Summary) -> list[str]:
    """The verdict in the first line, then what it rests on."""
    sources = dict.fromkeys(Path(r.run.data.source).name for r in summary.study.records)
    models = dict.fromkeys(c.name for c in summary.comparisons)
    data = notes.join_words([show_literally(name, 80) for name in sources])
    lines = [f"**{verdict.tell_verdict(summary)}**", "",
             f"# Does an adapter suffice? {notes.join_words([*models])} on {data}", "",
             "## The answer", ""]  # fmt: skip
    table = verdict_table(summary.comparisons)
    lines += [table.markdown(), "", rule_sentence(summary), ""] if table.rows else []
    lines += [text for c in summary.comparisons if c.row(WHOLE) and (text := prose.resources(c))]
    lines += ["", f"{notes.machine_line(summary)}.", ""]
    return lines + ([note, ""] if (note := notes.not_run_note(summary)) else [])


def verdict_table(comparisons: Sequence[Comparison]) -> Table:
    """A row a method and figure: whether it suffices and what it loses against full."""
    header = ("Track", "Model", "Method", "By", "Verdict", "Loses against full",
              "Smallest loss these data show")  # fmt: skip
    rows = []
    for comparison in comparisons:
        margin = verdict.margin_of(comparison)
        for row in comparison.rows:
            if row.method.name in (UNTRAINED, WHOLE) or not row.complete:
                continue
            for judged in verdict.read_figures(comparison, row):
                name = (comparison.track, comparison.name, row.method.label, judged.what)
                rows.append((*name, *verdict_cells(judged, margin)))
    several = len({c.track for c in comparisons}) > 1
    cut = 0 if several else 1
    return Table(header[cut:], tuple(row[cut:] for row in rows))


def verdict_cells(judged: verdict.Judged, margin: float) -> tuple[str, str, str]:
    decision = verdict.decide(judged, margin)
    if decision is None or judged.kept is None:
        return "cannot be judged", "full shows no gain" if judged.full else NOT_RUN, "—"
    value, low, high = (verdict.signed(share) for share in judged.lost)
    least = verdict.item_stats.detectable(judged.kept)
    shown = "—" if least is None else f"{verdict.signed(least)} {judged.lost_unit}"
    return WORDS[decision.kind], f"{value} {judged.lost_unit} [{low}, {high}]", shown


def rule_sentence(summary: Summary) -> str:
    margins = dict.fromkeys(f"{verdict.margin_of(c):g}" for c in summary.comparisons)
    allowed = notes.join_words([*margins])
    return (
        f"A method suffices where the whole 95 % interval of what it loses lies within {allowed} % "
        f"of full fine-tuning's gain over the base (a loss), or within {allowed} percentage points "
        "(a share of right answers); it does not where none of the interval does. The first row "
        "of a method gives the verdict. MARGIN= (evaluate.margin) changes what is allowed without "
        "running anything again."
    )


def results_section(summary: Summary) -> list[str]:
    lines = ["## Figures", ""]
    for track in summary.tracks:
        comparisons = [c for c in summary.comparisons if c.track == track]
        lines += [f"### Track {track}", ""] if len(summary.tracks) > 1 else []
        lines += notes.refusal_lines(summary, track)
        lines += [tables.headline_table(comparisons).markdown(), ""]
        reading = [notes.spread_note(comparisons), notes.memory_note(comparisons),
                   *notes.chance_notes(comparisons)]  # fmt: skip
        lines += [" ".join(text for text in reading if text), ""]
        lines += measure_tables.section(comparisons)
        if any(row.accuracy for c in comparisons for row in c.rows):
            lines += ["### On the questions", "", tables.accuracy_table(comparisons).markdown(), ""]
    meanings = [f"- {name}: {meaning}" for name, meaning in measure_tables.words([summary])]
    return lines + ([*meanings, ""] if meanings else [])


def cost_section(summary: Summary) -> list[str]:
    comparisons = summary.comparisons
    lines = ["## What it took", "", tables.time_table(comparisons).markdown(), ""]
    lines += [f"{notes.price_note(comparisons)} {notes.end_to_end_note(comparisons)}".strip(), ""]
    return lines + rate_lines(comparisons)


def left_out_section(summary: Summary) -> list[str]:
    told = [text for tell in LEFT_OUT if (text := tell([summary]))]
    lines = [f"- {text}" for text in told] or ["Nothing that these runs counted."]
    return ["## What was left out of the data", "", *lines, ""]


def limits_section(summary: Summary) -> list[str]:
    others = [tell for tell in known_limits.LIMITS
              if tell not in (*LEFT_OUT, known_limits.limit_scope)]  # fmt: skip
    told = ["The verdict speaks for this model, these data and this recipe."]
    told += [text for tell in others if (text := tell([summary]))]
    return ["## Limits", "", *(f"- {text}" for text in told), ""]


def runs_section(summary: Summary) -> list[str]:
    """Every run with its record, its rate and where that comes from."""
    study, rows = summary.study, []
    for record in study.records:
        link = f"[{record.run_id}]({run_path(study.link, record.run_id)}/record.json)"
        status = record.status + (f": {record.reason}" if record.reason else "")
        seconds = METRICS["end_to_end_seconds"].number(wall_seconds(record))
        rows.append((link, status, learning_rate(record), seconds))
    for spec in study.missing:
        end = study.failed.get(spec.run_id)
        rows.append((spec.run_id, f"failed: {end}" if end else NOT_RUN, "—", "—"))
    table = Table(("Run", "Status", "Learning rate", "Wall clock (s)"), tuple(rows))
    again = ("A run is made again by `study run RUN_ID --profile profile.yaml` (the file beside "
             "this report), once its folder is moved away.")  # fmt: skip
    return ["## Runs", "", table.markdown(), "", again, "", "### Provenance", "",
            provenance_table(summary).markdown(), ""]  # fmt: skip
