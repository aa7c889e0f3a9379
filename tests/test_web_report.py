"""report.html says what REPORT.md says, by itself, for eyes, keyboards and screen readers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from base64 import b64decode
from collections import Counter
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from IPython.display import Markdown
from record_factory import Factory, make_spec
from waiting import LONG_SECONDS

from studylib.commands.cli_report import make_report
from studylib.core.errors import StudyError
from studylib.core.metrics import MISSING, percent
from studylib.notebook_views import report_views
from studylib.notebook_views.report_views import DOLLAR, dollar_signs
from studylib.reporting import report
from studylib.reporting.appendix_files import TITLES, appendix_title, path_of, slug
from studylib.reporting.blocks import (
    NAMED,
    Block,
    Heading,
    Number,
    Picture,
    Table,
    Text,
    around,
    cell_of,
    figures,
    named,
    words,
)
from studylib.reporting.compose import Report, read_article
from studylib.reporting.page import (
    PALETTE,
    column_kinds,
    inline,
    inline_picture,
    make_sections,
    palette_css,
    render_page,
    shorten_outline,
)
from studylib.reporting.panels import COLOURS
from studylib.reporting.report import find_sources
from studylib.running.runner import run_notebook

ROOT = Path(__file__).parents[1]
VOID = {"meta", "link", "br", "hr", "img", "input"}
NUMBER = re.compile(r"[+−-]?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader's results with their report, made as `study report` makes it."""
    folder = Factory(tmp_path_factory.mktemp("r") / "mine").study(
        models=("ladder:0.4m",), seeds=(0, 1)
    )
    make_report(folder, reference=folder.parent / "none")
    return folder


@pytest.fixture(scope="module")
def again(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference's report made anew from a copy of its records."""
    root = tmp_path_factory.mktemp("root")
    leave_out = shutil.ignore_patterns("figures", "tables", "executed.ipynb")
    shutil.copytree(ROOT / "results/reference", root / "results/reference", ignore=leave_out)
    shutil.copyfile(ROOT / "README.md", root / "README.md")
    reference = root / "results/reference"
    make_report(reference, reference=reference)
    return root


@pytest.fixture(scope="module")
def page() -> str:
    return (ROOT / "report.html").read_text(encoding="utf-8")


def made_by(page: str) -> str:
    return re.findall(r'<meta name="generator" content="(.*?)">', page)[0]


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


def page_tables(page: str) -> list[list[list[str]]]:
    """The cells of a page's tables as text."""
    return [
        [
            [
                plain(unescape(re.sub(r"<[^>]+>", "", cell))).strip()
                for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S)
            ]
            for row in re.findall(r"<tr>(.*?)</tr>", table, re.S)
        ]
        for table in re.findall(r"<table.*?</table>", page, re.S)
    ]


def markdown_tables(text: str) -> list[list[list[str]]]:
    """The cells of REPORT.md's tables without their marks."""
    found: list[list[list[str]]] = []
    for block in re.findall(r"(?:^\|.*\n?)+", text, re.M):
        rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in block.strip().splitlines()]
        del rows[1]
        found.append([[unmark(cell) for cell in row] for row in rows])
    return found


def unmark(text: str) -> str:
    text = re.sub(r"\[([^\]]*)\]\(([^)]*)\)", r"\1", text)
    return plain(re.sub(r"\*\*|`", "", text).replace("\\|", "|")).strip()


def prose_of_report(text: str) -> str:
    kept = [line for line in text.splitlines() if not line.startswith(("|", "!["))]
    return unmark("\n".join(kept))


class Reader(HTMLParser):
    """Collects what tests ask of a page, and whether its elements are nested as they should be."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        if not {"table", "style", "script", "title", "nav", "svg"} & set(self.open):
            self.words.append(data)


def read_page(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    return reader


def of(reader: Reader, tag: str) -> list[dict[str, str | None]]:
    return [attrs for name, attrs in reader.found if name == tag]


# The same as REPORT.md ----------------------------------------------------------------------------


def test_the_shipped_page_is_what_the_records_give(again: Path, page: str) -> None:
    fresh = (again / "report.html").read_text(encoding="utf-8")
    if made_by(fresh) == made_by(page):
        assert fresh == page, "report.html is stale: make report"
    for name in ("REPORT.md", "README.md"):
        assert (again / name).read_bytes() == (ROOT / name).read_bytes(), f"{name}: make report"


def whole_report(folder: Path) -> str:
    """REPORT.md and its appendices, as they follow one another on the page."""
    names = [folder / "REPORT.md", *(folder / path_of(name) for name in TITLES)]
    text = "\n".join(path.read_text(encoding="utf-8") for path in names if path.is_file())
    return text.replace("\nBelongs to [the report](../../REPORT.md).\n", "")


def test_every_table_of_the_report_stands_in_the_page_cell_by_cell(page: str) -> None:
    assert len(page_tables(page)) > 20
    assert page_tables(page) == markdown_tables(whole_report(ROOT))


def test_words_and_numbers_of_the_text_are_the_reports(page: str) -> None:
    told, shown = prose_of_report(whole_report(ROOT)), plain("".join(read_page(page).words))
    told = re.sub(r"^#+ |^- |^\d\. ", "", told, flags=re.M)  # marks, which the page draws
    assert Counter(NUMBER.findall(shown)) == Counter(NUMBER.findall(told))
    words = re.compile(r"\w+")
    assert words.findall(shown) == words.findall(told)


def test_a_readers_page_says_what_their_report_says(own: Path) -> None:
    page = (own / "report.html").read_text(encoding="utf-8")
    assert page_tables(page) == markdown_tables(whole_report(own))


# By itself ----------------------------------------------------------------------------------------


def test_nothing_is_fetched_from_elsewhere(page: str) -> None:
    reader = read_page(page)
    assert [attrs for attrs in of(reader, "script") if attrs] == []
    assert [attrs["href"] for attrs in of(reader, "link")] == ["data:,"]
    assert of(reader, "img") == of(reader, "iframe") == of(reader, "object") == []
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttp|import\(", page)
    assert "default-src 'none'" in page
    assert len(page.encode()) < 2_500_000


def test_every_link_leads_somewhere(page: str) -> None:
    reader = read_page(page)
    ids = [attrs["id"] for _, attrs in reader.found if attrs.get("id")]
    assert len(ids) == len(set(ids))
    links = [str(attrs["href"]) for attrs in of(reader, "a")]
    assert len(links) > 20
    (article,) = {link for link in links if not link.startswith("#")}
    assert article == read_article()["address"]
    assert [link for link in links if link[1:] not in ids and link != article] == []


def test_files_that_a_mailed_page_lacks_are_named_and_not_linked(page: str) -> None:
    named = [str(a["title"]) for a in of(read_page(page), "span") if a.get("class") == "file"]
    assert len(named) > 50
    assert [name for name in named if not (ROOT / name).is_file()] == []


# For people ---------------------------------------------------------------------------------------


def test_the_first_screen_is_the_answer(page: str) -> None:
    first = page.partition("<body>")[2].partition("</header>")[0]
    assert first.strip().startswith('<header class="answer">')
    assert first.count("<h1") == 1
    assert first.index("<ol") < first.index("<table") < first.index("<svg")
    assert first.count("<table") == 1 and first.count("<li>") == 3
    assert len(re.findall(r'data-label="Verdict"><a href="#appendix', first)) == 8


def test_appendices_are_folded_and_the_report_is_not(page: str) -> None:
    reader = read_page(page)
    folds = of(reader, "details")
    assert [a["id"] for a in folds] == [slug(appendix_title(name)) for name in TITLES]
    assert not any("open" in a for a in folds)
    unfolded = page.partition("<details")[0]
    assert 5 < unfolded.count("<table") < unfolded.count("<table") + 10 < page.count("<table")


def test_pictures_have_a_text_alternative_and_colours_for_light_and_dark(page: str) -> None:
    pictures = [attrs for attrs in of(read_page(page), "div") if attrs.get("role") == "img"]
    told = re.findall(r"^!\[(.*?)\]", whole_report(ROOT), re.M)
    assert [p["aria-label"] for p in pictures] == told
    assert len(of(read_page(page), "svg")) > len(pictures), "panels can stand below each other"
    for name, shade in COLOURS.items():
        assert f"--{name}: {shade};" in page
    for name in ("base", "full", "lora", "qlora"):  # those that every study of the reference has
        assert f"var(--{name})" in page
    body = page.partition("<body>")[2]
    assert not re.search(r"#ffffff|#222222", body)
    assert "prefers-color-scheme: dark" in page


def contrast(one: str, other: str) -> float:
    """WCAG 2 contrast ratio of two colours."""

    def light(shade: str) -> float:
        parts = [int(shade[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
                            for c in parts)  # fmt: skip
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    high, low = sorted((light(one), light(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_words_and_methods_stand_out_from_the_paper(dark: bool) -> None:
    shades = {name: pair[dark] for name, pair in PALETTE.items()}
    assert contrast(shades["ink"], shades["paper"]) >= 7
    for name in COLOURS:
        assert contrast(shades[name], shades["paper"]) >= 4.5, name
    assert "--paper" in palette_css(dark)


def test_tables_have_a_name_and_cells_the_name_of_their_column(page: str) -> None:
    regions = [a for a in of(read_page(page), "div") if a.get("role") == "region"]
    assert len(regions) == len(of(read_page(page), "table"))
    assert all(str(a["aria-label"]).startswith("Table: ") for a in regions)
    assert all(a.get("data-label") for a in of(read_page(page), "td"))


def test_tables_sort_by_figures_with_their_units_and_come_back(page: str, tmp_path: Path) -> None:
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("needs chromium")
    clicks = """<script>
      const told = [], table = document.querySelector("table");
      const press = (column) => {
        const head = table.tHead.rows[0].cells[column];
        head.querySelector("button").click();
        told.push([head.getAttribute("aria-sort"),
                   ...[...table.tBodies[0].rows].map((row) => row.cells[column].textContent)]);
      };
      for (const column of [0, 0, 0, 1, 2, 2]) press(column);
      document.body.textContent = "told:" + JSON.stringify(told) + ":told";
    </script>"""
    html = page.partition("<body>")[0] + "<body>" + body_of(SORTED) + script_of(page)
    (tmp_path / "page.html").write_text(html + clicks + "</body></html>", encoding="utf-8")
    shown = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
         "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync", f"--user-data-dir={tmp_path / 'browser'}", "--dump-dom",
         (tmp_path / "page.html").as_uri()],
        capture_output=True, text=True, timeout=LONG_SECONDS, check=True,
    ).stdout  # fmt: skip
    told = json.loads(plain(unescape(shown)).partition("told:")[2].partition(":told")[0])
    assert told == [
        ["ascending", "356 kB", "17.3 MB", "1.73 GB", "not trained"],
        ["descending", "1.73 GB", "17.3 MB", "356 kB", "not trained"],
        ["none", "17.3 MB", "356 kB", "not trained", "1.73 GB"],
        ["ascending", "−20.9 ± 8.2", "−1.2 [−3.0, +0.6]", "< 0.001", "+3"],
        ["ascending", "", "b", "B2", "B10"],
        ["descending", "B10", "B2", "b", ""],
    ]


SORTED = Table((*figures("Size", "Gap"), *words("Name")), (
    (Number("17.3 MB", 17.3e6), Number("−1.2 [−3.0, +0.6]", -1.2), "B10"),
    (Number("356 kB", 356e3), Number("< 0.001", 1e-4), "b"),
    ("not trained", Number("+3", 3), "B2"),
    (Number("1.73 GB", 1.73e9), Number("−20.9 ± 8.2", -20.9), ""),
))  # fmt: skip


def report_of(*blocks: Block) -> Report:
    return Report({"answer": [Heading(2, "T"), *blocks]}, {}, {})


def body_of(*blocks: Block) -> str:
    """What the page shows of some blocks."""
    page = render_page(report_of(*blocks)).decode()
    return page.partition("<header")[2].partition("</header>")[0].partition("</h2>")[2]


def script_of(page: str) -> str:
    return "<script>" + page.partition("<script>")[2].partition("</script>")[0] + "</script>"


# Pieces -------------------------------------------------------------------------------------------


def test_html_in_a_records_words_is_shown_and_not_obeyed() -> None:
    evil = "<script>alert(1)</script> <img src=x> ![p](http://x/y.png) [l](javascript:alert)"
    html = body_of(Table(words(evil), ((evil,),)), Text(evil))
    assert "<script" not in html and "<img" not in html and not re.search("=.javascript", html)
    assert html.count("&lt;script&gt;") == 4, "in two cells, the column's name and the text"


def test_dollars_are_no_formula() -> None:
    text = "$1,234 ($942 to $3,738) by `echo $HOME`, **$5**"
    assert dollar_signs(text) == (
        f"{DOLLAR}1,234 ({DOLLAR}942 to {DOLLAR}3,738) by `echo $HOME`, **{DOLLAR}5**"
    )
    assert "$1,234 ($942 to $3,738)" in inline(text) and "<strong>$5</strong>" in inline(text)


def test_headings_of_the_same_words_get_names_of_their_own() -> None:
    three = Heading(3, "Accuracy")
    report = report_of(three, Heading(2, "Two"), three)
    found = [[mark for _, mark in section.blocks] for section in make_sections(report)]
    assert found == [["t", "t--accuracy"], ["two", "two--accuracy"]]


def test_a_word_of_the_same_name_as_a_section_leads_to_one_place_each() -> None:
    page = render_page(report_of(Heading(3, "T"), Heading(4, "a word"))).decode()
    assert re.findall(r'<h\d id="(.*?)"', page) == ["t", "t--t", "a-word", "contents"]


def test_an_empty_first_cell_carries_what_stands_above() -> None:
    html = body_of(Table((named("Claim"), *figures("Ours")), (("**C1** & co", "1"), ("", "2"))))
    assert '<td class="key" data-label="Claim" data-above="C1 &amp; co"></td>' in html


def test_columns_are_set_by_their_kind_and_long_words_wrap() -> None:
    long = "3 seeds of a long, long explanation that goes on and on"
    table = Table((*NAMED, *figures("Gap"), *words("Why")), (("m", "full", "+1 ± 2", long),))
    assert [str(kind) for kind in column_kinds(table)] == [
        "", ' class="key"', ' class="n"', ' class="w"',
    ]  # fmt: skip


def test_a_notebook_shows_pictures_as_drawn_and_links_on_from_its_folder(monkeypatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr("IPython.display.display", lambda data, **_: shown.append(data))
    blocks = [Text("$5, [x](runs/x.json)"), Heading(3, "A"), Picture("One, 95 %", "one.svg")]
    made = Report({"answer": blocks}, {"runs": [Text("all")]}, {"one.svg": b"<svg/>"}, Path("r"))
    report_views.show_part(made, "answer")
    report_views.show_appendices(made)
    texts = [one.data for one in shown if isinstance(one, Markdown)]
    assert texts == [
        f"{DOLLAR}5, [x](r/runs/x.json)\n\n### A\n",
        "*One, 95 %.*",
        f"## {appendix_title('runs')}\n\nall\n",
    ]
    assert shown[1]["text/plain"] == "One, 95 %"
    alt, width, source = re.findall(r'="(.*?)"', shown[1]["text/html"])
    assert (alt, width) == ("One, 95 %", "max-width:100%")
    assert b64decode(source.removeprefix("data:image/svg+xml;base64,")) == b"<svg/>"


def test_a_cell_carries_the_number_that_it_shows_and_a_word_none() -> None:
    cells = (cell_of(1234), cell_of(0.5, percent), cell_of(None), around("**x**", cell_of(7)))
    html = body_of(Table(figures("a", "b", "c", "d"), (cells,)))
    assert re.findall(r"data-value=.(.*?).>(.*?)</td>", html) == [
        ("1234", "1,234"), ("0.5", "50.0"), ("7", "<strong>x</strong>"),
    ]  # fmt: skip
    assert f">{MISSING}</td>" in html.replace("\u00a0", " ")


def test_a_table_of_nothing_is_a_sentence() -> None:
    nothing = Table(words("Why"), ())
    assert "<table" not in body_of(nothing) and nothing.markdown() in body_of(nothing)


def test_names_within_a_picture_are_its_own() -> None:
    svg = ('<?xml version="1.0"?>\n<svg data-panels="0 72" width="72pt" '
           'viewBox="0 0 72 36"><defs><path id="a" '
           'd="M 1.23456 2"/></defs><g id="unused"><use xlink:href="#a" '
           'style="fill: #0072b2"/></g></svg>')  # fmt: skip
    one, other = inline_picture(svg, 'A "caption"', "p1", {}), inline_picture(svg, "B", "p2", {})
    assert "fill:var(--full)" in one and 'aria-label="A &quot;caption&quot;"' in one
    assert "max-width:96px" in one and "unused" not in one and "M1.23 2" in one
    (mark,) = re.findall(r' href="#(.*?)"', one)
    assert f'id="{mark}"' in one and mark not in other


def test_a_letter_is_drawn_once_a_page_and_used_by_every_picture() -> None:
    outline = 'd="M7 7" transform="scale(0.015625)"'
    svg = (f'<svg data-panels="0 72" viewBox="0 0 72 36"><defs><path id="Font-1a" {outline}/>'
           '<path id="m1" d="M 1 1"/></defs><use xlink:href="#Font-1a"/><use xlink:href="#m1" '
           'transform="translate(1.23456 2) scale(0.015625)"/></svg>')  # fmt: skip
    glyphs: dict[str, str] = {}
    one, other = (inline_picture(svg, "A", mark, glyphs) for mark in ("p1", "p2"))
    assert [html.count(outline) for html in (one, other)] == [1, 0] and len(glyphs) == 1
    for html, mark in ((one, "p1"), (other, "p2")):
        assert re.findall('href="#(.*?)"', html) == [*glyphs.values(), f"{mark}-1"]
        assert f'id="{mark}-1"' in html and "translate(1.23 2) scale(0.015625)" in html


@pytest.mark.parametrize(
    "outline, short",
    [
        ("M 1.25 -2 L 3 4 L -5.25 6 z", "M1.25-2 3 4-5.25 6z"),
        ("M 0 0 C 1 1 2 2 3 3 L 4 4", "M0 0C1 1 2 2 3 3L4 4"),  # here L is needed
    ],
)
def test_an_outline_keeps_its_corners_in_fewer_characters(outline: str, short: str) -> None:
    assert shorten_outline(outline) == short
    long = "M 0 0" + 60 * " L 12.34 -5.67"
    assert re.findall(r"-?[\d.]+", shorten_outline(long)) == ["0", "0", *60 * ["12.3", "-5.6"]]


def test_a_pictures_panels_become_pictures_of_their_own() -> None:
    axes = '<g id="axes_1"><path d="M 1 1"/></g><g id="axes_2"><use xlink:href="#c"/></g>'
    svg = (f'<svg data-panels="4 90 110 196" viewBox="0 0 200 80"><g id="figure_1">{axes}</g>'
           '<defs><clipPath id="c"/></defs></svg>')  # fmt: skip
    html = inline_picture(svg, "Both", "p1", {})
    assert re.findall(r'viewBox="([^"]*)"', html) == ["0 0 100 80", "100 0 100 80"]
    first, second = html.split("</svg>")[:2]
    assert "M1 1" in first and "clipPath" in first and "<use" in second
    assert html.count("<g") == html.count("</g>")


# Making it ----------------------------------------------------------------------------------------


def test_nothing_is_made_again_while_records_and_files_stay(own: Path, monkeypatch) -> None:
    made = []
    monkeypatch.setattr(report, "write_report", lambda sources, _: made.append(sources.out))
    none = own.parent / "none"
    assert make_report(own, reference=none) == own / "REPORT.md"
    assert made == []
    page = own / "report.html"
    before = page.read_bytes()
    page.write_bytes(before + b" ")
    make_report(own, reference=none)
    page.write_bytes(before)
    assert made == [own]


def test_the_same_code_makes_the_same_page_in_another_folder(own: Path, tmp_path: Path) -> None:
    leave_out = shutil.ignore_patterns(".made-from.json", "report.html", "REPORT.md")
    copy = shutil.copytree(own, tmp_path / "mine", ignore=leave_out)
    make_report(copy, reference=tmp_path / "none")
    assert (copy / "report.html").read_bytes() == (own / "report.html").read_bytes()


def test_without_own_runs_the_reference_is_shown_and_nothing_written(tmp_path: Path) -> None:
    reference = tmp_path / "results" / "reference"
    Factory(reference / "cpu").add(make_spec("base"))
    sources = find_sources(tmp_path / "results" / "cpu", reference)
    assert sources.folders == (reference / "cpu",) and sources.shipped
    assert sources.instead_of == tmp_path / "results" / "cpu"
    executed = tmp_path / "executed.ipynb"
    folders = {"RESULTS": str(tmp_path / "results" / "cpu"), "REFERENCE": str(reference)}
    run_notebook("90_report.ipynb", executed, folders)
    text = executed.read_text(encoding="utf-8")
    assert "No run of yours lies in" in text and "## The answer" in text
    assert not (tmp_path / "REPORT.md").exists()
    with pytest.raises(StudyError, match="make reproduce"):
        make_report(tmp_path / "results" / "cpu", reference=reference)
    with pytest.raises(StudyError, match="make reproduce"):
        find_sources(tmp_path / "nothing", tmp_path / "none")


def test_failures_and_the_plan_beside_the_runs_reach_the_report(tmp_path: Path) -> None:
    folder = Factory(tmp_path / "part").study(models=("ladder:0.4m",), seeds=(0,))
    sources = find_sources(folder, tmp_path / "none", {"x": "see its log"})
    assert sources.planned is None and sources.failed == {"x": "see its log"}
    shutil.copyfile(ROOT / "results/reference/cpu/profile.yaml", folder / "profile.yaml")
    planned = find_sources(folder, tmp_path / "none").planned
    assert planned and {spec.track for spec in planned} >= {"main", "language"}
