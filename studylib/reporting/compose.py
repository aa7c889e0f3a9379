"""The order of a report: from summaries to its parts as blocks, its pictures and csv files.

REPORT.md is the parts one after the other; appendices are files of their own. The report notebook
and report.html show the same blocks, README, REPORT.md and both the same first screen: advice in
three sentences, the article's table beside ours, one picture that decides, and what was not done.
Nothing is read or written here, and no figure is computed.

Not covered: which records go in and where the files go (studylib.reporting.report), the appendices
(studylib.reporting.appendices), the sentences of advice (studylib.reporting.team_advice).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from posixpath import join

from matplotlib.figure import Figure

from studylib.reporting import (
    appendix,
    decision,
    exports,
    figures,
    forecast_tables,
    measure_tables,
    notes,
    panels,
    prose,
    ranking_section,
    tables,
)
from studylib.reporting.appendices import are_brief, make_appendices, serving_studies
from studylib.reporting.appendix_files import link_to, path_of, to_file
from studylib.reporting.article_table import article_table
from studylib.reporting.blocks import (
    Block,
    Heading,
    Items,
    Picture,
    Text,
    bullets,
    paragraph,
    to_markdown,
)
from studylib.reporting.capacity import capacity_table_read, is_capacity, tell_capacity
from studylib.reporting.card_section import card_section, is_card
from studylib.reporting.claims import Finding
from studylib.reporting.evidence_kinds import kind_of_model, parameter_count, short_name
from studylib.reporting.forecast_errors import compare_runs, sentence
from studylib.reporting.glossary import WORDS_LINK, glossary, read_article, say
from studylib.reporting.kept import best_evidence, is_toy
from studylib.reporting.limits import limit_sentences
from studylib.reporting.made_from import REPORT, Files
from studylib.reporting.memory_grid import grid_table, is_grid, tell_grid
from studylib.reporting.notes import join_words
from studylib.reporting.serve_figures import draw_monthly
from studylib.reporting.serve_section import serve_section
from studylib.reporting.study import Study
from studylib.reporting.summary import Comparison, Summary
from studylib.reporting.team_advice import advise_teams, is_deep
from studylib.schema.forecast_book import ForecastBook

TITLE = "PEFT or full fine-tuning?"


@dataclass(frozen=True)
class Report:
    """A report's parts and appendices, name to blocks, in their order; and all of its files by
    relative path.

    parts: answer, results, serving, forecast, beside (the reference), words. Pictures, appendices
    and records are named as they lie from the report's folder, `folder`.
    """

    parts: Mapping[str, Sequence[Block]]
    appendices: Mapping[str, Sequence[Block]]
    files: Files
    folder: Path = Path()


def bind_report(
    parts: Mapping[str, Sequence[Block]], appendices: Mapping[str, Sequence[Block]], files: Files
) -> Report:
    """The report with REPORT.md and the appendices among its files. files: pictures and tables."""
    whole = to_markdown(block for blocks in parts.values() for block in blocks)
    texts = {path_of(name): to_file(name, blocks) for name, blocks in appendices.items()}
    return Report(parts, appendices, files | texts | {REPORT: whole.encode()})


def build_report(
    studies: list[Summary],
    findings: list[Finding],
    reference: Summary | None,
    own_folder: str | None = None,
    book: ForecastBook | None = None,
) -> Report:
    """All of a report. own_folder: where a reader's own figures go; None: the shipped report, whose
    figures lie beside each study's records."""
    files: Files = {}
    results: list[Block] = []
    for summary in studies:
        folder = summary.study.link if own_folder is None else own_folder
        pictures = draw_figures(summary, folder) if summary in serving_studies(studies) else {}
        files |= pictures | csv_files(summary, findings, folder)
        results += study_section(summary, [*pictures], studies)
    home = next((s for s in studies if s.study.serves), studies[0])
    best = best_evidence(studies)
    decided, drawn = best[0].study if best else home.study, decision.draw_decision(studies)
    files |= draw_once("serve-monthly", draw_monthly(), home.study, own_folder)
    deciding = draw_once(decision.NAME, drawn, decided, own_folder)
    appendices = make_appendices(studies, findings, book, [*files])
    parts = {
        "answer": first_screen(studies, findings, next(iter(deciding), None)),
        "results": results,
        "serving": serve_section(serving_studies(studies), [*files], are_brief(studies)),
        "forecast": forecast_section(studies, book),
        "beside": reference_section(studies[0], reference) if reference is not None else [],
        "words": words_section(studies, own_folder is None),
    }
    return bind_report(parts, appendices, files | deciding)


# Files --------------------------------------------------------------------------------------------


def draw_figures(summary: Summary, folder: str) -> Files:
    return {
        join(folder, "figures", f"{name}.svg"): panels.to_svg(figure)
        for name, figure in figures.draw_all(summary).items()
        if not is_card(summary) or name.startswith("serve-")
    }


def draw_once(name: str, figure: Figure | None, beside: Study, own_folder: str | None) -> Files:
    """A picture that the report has once, beside the records of a study."""
    path = join(beside.link if own_folder is None else own_folder, "figures", f"{name}.svg")
    return {} if figure is None else {path: panels.to_svg(figure)}


def csv_files(summary: Summary, findings: Sequence[Finding], folder: str) -> Files:
    serves = summary.study.serves
    made = {"serving": exports.serving_csv(serves)} if serves else {}
    if any(comparison.measured for comparison in summary.comparisons):
        made["measures"] = exports.measures_csv(summary)
    made |= {"claims": exports.claims_csv(findings)} if findings else {}
    made |= {
        "comparison": exports.comparison_csv(summary),
        "runs": exports.runs_csv(summary),
        "subjects": exports.subjects_csv(summary),
        "forecasts": exports.forecasts_csv(summary),
    }
    return {join(folder, "tables", f"{name}.csv"): table for name, table in made.items()}


# Parts --------------------------------------------------------------------------------------------


def study_section(summary: Summary, pictures: list[str], studies: Sequence[Summary]) -> list[Block]:
    several = len(studies) > 1
    if is_card(summary):
        return card_section(summary, several)
    if is_capacity(summary):
        return capacity_section(summary, pictures, several)
    if is_grid(summary):
        return grid_section(summary, several)
    brief = several and is_toy(summary)
    toys = [c for other in studies if is_toy(other) for c in other.comparisons]
    title = Heading(2, title_study(summary, several))
    blocks: list[Block] = [title, Text(f"{notes.machine_line(summary)}.")]
    for track, comparisons in summary.tracks.items():
        about = "A new language" if any(map(is_deep, comparisons)) else "A small change"
        blocks += [Heading(3, f"{about} (track {track})")] if len(summary.tracks) > 1 else []
        blocks += notes.refusals(summary, track)
        names = [name for name in pictures if name.split("/")[-1].startswith(f"{track}-")]
        drawn = figures.show_pictures(names, ("ranking",))
        ranked = ranking_section.rankings_section(comparisons, drawn, brief)
        blocks += ranked or track_section(comparisons, prose.answer_track(summary, track), brief)
        if not is_toy(summary):
            blocks += paragraph(ranking_section.tell_orders(comparisons, toys))
    return blocks + paragraph(
        "" if brief else notes.price_note(summary.comparisons),
        notes.not_run_note(summary),
        f"More: [every figure]({link_to('details')}), [every run]({link_to('runs')}).",
    )


def part_opening(summary: Summary, title: str, several: bool) -> list[Block]:
    """Of a part on all tracks at once."""
    title += f" (profile {summary.study.name})" if several else ""
    refused = [block for track in summary.tracks for block in notes.refusals(summary, track)]
    return [Heading(2, title), Text(f"{notes.machine_line(summary)}."), *refused]


def title_study(summary: Summary, several: bool) -> str:
    if not several:
        return "Results"
    names = {short_name(c.model) for c in summary.comparisons if kind_of_model(c.model) != "toy"}
    on = "Several models" if names else "Toy models"
    on = f"A real model, {names.pop()}" if len(names) == 1 else on
    return f"{on} (profile {summary.study.name})"


def track_section(comparisons: list[Comparison], said: list[str], brief: bool) -> list[Block]:
    """brief: without what it took, which the appendix has."""
    judged = any(measure_tables.first_measure(c) for c in comparisons)
    return [
        *map(Text, said[: 1 if brief else None]),
        tables.headline_table(comparisons, brief),
        *paragraph(
            notes.spread_note(comparisons),
            notes.seeds_not_run(comparisons),
            *([] if judged else notes.chance_notes(comparisons)),
        ),
    ]


def capacity_section(summary: Summary, pictures: list[str], several: bool) -> list[Block]:
    """One curve for all tracks of a capacity study; its table stands here where it is alone."""
    more = [Text(f"More: [every figure]({link_to('details')}).")]
    return [
        *part_opening(summary, "How many new facts a rank holds", several),
        Text(tell_capacity(summary)),
        *figures.show_pictures(pictures, ("capacity",)),
        *(more if several else capacity_table_read(summary)),
    ]


def grid_section(summary: Summary, several: bool) -> list[Block]:
    """One table for all shapes of a step."""
    told = (notes.spread_note, notes.memory_note, notes.price_note)
    return [
        *part_opening(summary, "Memory by rows and tokens", several),
        *(Text(tell_grid(summary)), grid_table(summary)),
        *paragraph(*(tell(summary.comparisons) for tell in told)),
    ]


def forecast_section(studies: list[Summary], book: ForecastBook | None) -> list[Block]:
    """What was forecast of a 13B model, and how far forecasts were off."""
    found = compare_runs([s.study for s in studies if not is_card(s)])
    said = f"{sentence(found)} [In detail]({link_to('forecasts')})." if found else ""
    return forecast_tables.book_section(book, paragraph(said))


def reference_section(own: Summary, reference: Summary) -> list[Block]:
    table = tables.side_by_side_table(own, reference)
    told = (f"**Yours** / reference. Yours: {notes.machine_line(own)}. Reference: "
            f"{notes.machine_line(reference)}.")  # fmt: skip
    if not table.rows:
        told = "The reference has none of these runs: nothing to set beside them."
    return [Heading(2, "Beside the reference"), Text(told), *([table] if table.rows else [])]


def words_section(studies: list[Summary], shipped: bool) -> list[Block]:
    """The words used, what the figures do not say, and what earlier reports got wrong."""
    blocks = glossary(measure_tables.meanings(studies))
    blocks += [Heading(2, "Limits"), *bullets(limit_sentences(studies))]
    return blocks + ([Heading(2, "Corrections"), *appendix.corrections()] if shipped else [])


def first_screen(
    studies: Sequence[Summary], findings: Sequence[Finding], picture: str | None
) -> list[Block]:
    """Title, heading, then all of it. picture: the path of the picture that decides, if drawn."""
    article = read_article()
    said = advise_teams(studies, findings)
    blocks: list[Block] = [Heading(1, TITLE), Heading(2, "The answer")]
    blocks += [Items((said.small, said.deep, said.memory), numbered=True)]
    blocks += paragraph(said.not_done)
    if findings:
        blocks += [
            Heading(3, "The article's claims, checked"),
            Text(f"[{article['title']}]({article['address']}) ({article['publisher']}) says: "
                 f"*{article['rule']}*"),
            article_table(findings),
            Text(f"Each verdict leads to [its evidence]({link_to('claims')}). "
                 f"[What the words mean]({WORDS_LINK})."),
        ]  # fmt: skip
    if picture is not None:
        blocks += [Picture(decision.CAPTION, picture)]
    return blocks + paragraph(tell_toys(studies))


def tell_toys(studies: Sequence[Summary]) -> str:
    """What the toy models are, where any is spoken of."""
    sizes = sorted({
        (c.total_params or 0, c.model)
        for s in studies for c in s.comparisons if kind_of_model(c.model) == "toy"
    })  # fmt: skip
    if not sizes:
        return ""
    names = join_words([f"`{model}` ({parameter_count(size)} parameters)" for size, model in sizes])
    return say("toys", names=names)
