"""The short report of a reader's own study: the verdict, its figures, costs, answers and limits.

The article's claims are judged in it only where the profile asks (article: true, ARTICLE=1). A few
held-out prompts stand with the answers of the base and of every method: the same prompts for all,
chosen before anything was answered (studylib.scoring.score).

Not covered: the verdict's sentences (studylib.reporting.verdict), the project's own report
(studylib.reporting.compose), whether one answer is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from studylib.core import item_stats
from studylib.core.metrics import percent
from studylib.reporting import measure_tables, notes, prose, tables, verdict
from studylib.reporting.appendices import claims_evidence, rates
from studylib.reporting.appendix import provenance_table, runs_table
from studylib.reporting.article_table import article_table
from studylib.reporting.blocks import (
    NAMED,
    Block,
    Heading,
    Number,
    Table,
    Text,
    bullets,
    figures,
    named,
    paragraph,
    show_literally,
    words,
)
from studylib.reporting.capacity import is_capacity
from studylib.reporting.card_section import is_card
from studylib.reporting.cells import NOT_RUN
from studylib.reporting.claims import Finding
from studylib.reporting.compose import Report, bind_report, csv_files
from studylib.reporting.glossary import say
from studylib.reporting.limits import learning_limits, left_out_sentences, run_limits
from studylib.reporting.memory_grid import is_grid
from studylib.reporting.notes import join_words
from studylib.reporting.serve_section import serve_details, serve_section
from studylib.reporting.summary import Comparison, Summary
from studylib.schema.methods import UNTRAINED, WHOLE

WORDS = {"enough": "**suffices**", "not enough": "**does not suffice**", "open": "cannot say yet"}
MOST_PROMPT, MOST_ANSWER = 400, 300  # characters
NOTHING, UNFINISHED = "(nothing)", " (cut off)"


def has_verdict(summary: Summary) -> bool:
    """Whether the short report can tell of it: curves over facts or shapes have their own forms."""
    return not (is_card(summary) or is_capacity(summary) or is_grid(summary))


def compose_own(summary: Summary, findings: Sequence[Finding]) -> Report:
    """All of the report. findings: on the article's claims, none where they are not asked for."""
    served = bool(summary.study.serves)
    parts: dict[str, list[Block]] = {
        "answer": answer_section(summary),
        "results": [*results_section(summary), *cost_section(summary),
                    *prompts_section(summary.comparisons)],
        "serving": serve_section([summary], []) if served else [],
        "forecast": [Heading(2, "The article's claims"), article_table(findings)]
                    if findings else [],
        "beside": [],
        "words": [*limits_section(summary), *runs_section(summary)],
    }  # fmt: skip
    appendices = {"claims": claims_evidence(findings)} if findings else {}
    if served:
        appendices["serving"] = serve_details([summary], [])
    return bind_report(parts, appendices, csv_files(summary, findings, ""))


def answer_section(summary: Summary) -> list[Block]:
    """The verdict in the first line, then what it rests on."""
    sources = dict.fromkeys(Path(r.run.data.source).name for r in summary.study.records)
    models = join_words(list(dict.fromkeys(c.name for c in summary.comparisons)))
    data = join_words([show_literally(name, 80) for name in sources])
    margins = dict.fromkeys(f"{verdict.margin_of(c):g}" for c in summary.comparisons)
    allowed = join_words([*margins])
    table = verdict_table(summary.comparisons)
    took = [text for c in summary.comparisons if c.row(WHOLE) and (text := prose.resources(c))]
    return [
        Text(f"**{verdict.tell_verdict(summary)}**"),
        Heading(1, f"Does an adapter suffice? {models} on {data}"),
        Heading(2, "The answer"),
        *((table, Text(say("own_rule", allowed=allowed))) if table.rows else ()),
        *paragraph("\n".join(took)),
        Text(f"{notes.machine_line(summary)}."),
        *paragraph(notes.not_run_note(summary)),
    ]


def verdict_table(comparisons: Sequence[Comparison]) -> Table:
    """A row a method and figure: whether it suffices and what it loses against full."""
    header = (*words("Track"), *NAMED, *words("By", "Verdict"),
              *figures("Loses against full", "Smallest loss these data show"))  # fmt: skip
    rows = []
    for comparison in comparisons:
        margin = verdict.margin_of(comparison)
        for row in comparison.rows:
            if row.method.name in (UNTRAINED, WHOLE) or not row.complete:
                continue
            for judged in verdict.read_figures(comparison, row):
                name = (comparison.track, comparison.name, row.method.label, judged.what)
                rows.append((*name, *verdict_cells(judged, margin)))
    cut = 0 if len({c.track for c in comparisons}) > 1 else 1
    return Table(header[cut:], tuple(row[cut:] for row in rows))


def verdict_cells(judged: verdict.Judged, margin: float) -> tuple[str, str, str]:
    decision = verdict.decide_method(judged, margin)
    if decision is None or judged.kept is None:
        return "cannot be judged", "full shows no gain" if judged.full else NOT_RUN, "—"
    value, low, high = (percent(share) for share in judged.lost)
    least = item_stats.detectable(judged.kept)
    smallest = "—" if least is None else Number(f"{percent(least)} {judged.lost_unit}", least)
    loses = Number(f"{value} {judged.lost_unit} [{low}, {high}]", judged.lost[0])
    return WORDS[decision.kind], loses, smallest


def results_section(summary: Summary) -> list[Block]:
    blocks: list[Block] = [Heading(2, "Figures")]
    for track, comparisons in summary.tracks.items():
        blocks += [Heading(3, f"Track {track}")] if len(summary.tracks) > 1 else []
        blocks += notes.refusals(summary, track)
        blocks += [tables.headline_table(comparisons)]
        blocks += paragraph(notes.spread_note(comparisons), notes.memory_note(comparisons),
                            *notes.chance_notes(comparisons))  # fmt: skip
        blocks += measure_tables.measured_section(comparisons)
        if any(row.accuracy for c in comparisons for row in c.rows):
            blocks += [Heading(3, "On the questions"), tables.accuracy_table(comparisons)]
    found = measure_tables.meanings([summary])
    return blocks + bullets(f"{name}: {meaning}" for name, meaning in found)


def cost_section(summary: Summary) -> list[Block]:
    comparisons = summary.comparisons
    told = paragraph(notes.price_note(comparisons), notes.end_to_end_note(comparisons))
    table = tables.time_table(comparisons)
    return [Heading(2, "What it took"), table, *told, *rates(comparisons)]


def limits_section(summary: Summary) -> list[Block]:
    """What was left out of the data, and what the verdict does not speak for."""
    left_out = left_out_sentences([summary])
    scope = "The verdict speaks for this model, these data and this recipe."
    told = bullets([scope, *learning_limits([summary]), *run_limits([summary])])
    return [Heading(2, "What was left out of the data"),
            *(bullets(left_out) or [Text("Nothing that these runs counted.")]),
            Heading(2, "Limits"), *told]  # fmt: skip


def runs_section(summary: Summary) -> list[Block]:
    """Every run with its record, its rate and where that comes from."""
    table = runs_table(summary).keep("Run", "Status", "Learning rate", "Wall clock (s)")
    return [Heading(2, "Runs"), table, Text(say("made_again")), Heading(3, "Provenance"),
            provenance_table(summary)]  # fmt: skip


def prompts_section(comparisons: Sequence[Comparison]) -> list[Block]:
    """The part of a report, a table a model; a sentence where no run kept answers."""
    shown = [(c, table) for c in comparisons if (table := answer_table(c)) is not None]
    if not shown:
        return [Heading(2, "Held-out prompts"), Text(say("no_answers"))]
    blocks: list[Block] = [Heading(2, "Held-out prompts, answered"), Text(answers_note(shown))]
    for comparison, table in shown:
        blocks += [*([Heading(3, comparison.name)] if len(shown) > 1 else []), table]
    return blocks


def answer_table(comparison: Comparison) -> Table | None:
    """A row a prompt: what is asked, the reference, and each method's answer."""
    found = read_written_answers(comparison)
    if not found:
        return None
    first = next(iter(found.values()))
    header = (named("Prompt"), *words("Reference", *found))
    rows = []
    for item, prompt, answer in first[["prompt", "answer"]].itertuples():
        cells = [answer_cell(frame, item) for frame in found.values()]
        rows.append((show_literally(prompt, MOST_PROMPT, keep_end=True),
                     show_literally(answer, MOST_ANSWER), *cells))  # fmt: skip
    return Table(header, tuple(rows))


def read_written_answers(comparison: Comparison) -> dict[str, pd.DataFrame]:
    """Method -> the answers of its first complete run that kept some, each prompt once, by item."""
    found = {}
    for row in comparison.rows:
        frames = (comparison.study.frame(record, "answers.parquet") for record in row.complete)
        frame = next((f for f in frames if f is not None and len(f)), None)
        if frame is not None:
            found[row.method.label] = frame.drop_duplicates("item").set_index("item")
    return found


def answer_cell(frame: pd.DataFrame, item: str) -> str:
    if item not in frame.index:
        return "—"
    said = frame.loc[item]
    text = show_literally(str(said["given"]), MOST_ANSWER) or NOTHING
    return text + ("" if said["finished"] else UNFINISHED)


def answers_note(shown: Sequence[tuple[Comparison, Table]]) -> str:
    text = say("answers", count=max(len(table.rows) for _, table in shown))
    several = dict.fromkeys(
        row.method.label for c, _ in shown for row in c.rows if len(row.complete) > 1
    )
    of = f" Of {join_words([*several])} the first seed's answers are shown."
    return text + (of if several else "")
