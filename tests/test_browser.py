"""What an analyst and a reader see, in a real Chromium: the notebooks in JupyterLab, report.html.

JupyterLab runs as `make lab` starts it, on a copy of the notebooks with the shipped records, and
every notebook runs there from a fresh kernel as it is stored. Screenshots for people to look at are
kept in .test-artefacts/browser/: NAME-desktop.png and NAME-phone.png, three pages of print.

Chromium is the system's. Where there is none, these tests are skipped.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from waiting import LONG_SECONDS

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

ROOT = Path(__file__).parents[1]
SCREENSHOTS = ROOT / ".test-artefacts" / "browser"
COPIED = (
    "README.md",
    "REPORT.md",
    "report.html",
    "docs",
    "notebooks",
    "tools/lab",
    "results/reference",
)
PRIVATE = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    f"--{flag}"
    for flag in ("no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync",
                 "disable-background-networking", "disable-component-update")
]  # fmt: skip
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
TALL = {"width": 1280, "height": 6600}  # JupyterLab draws only the cells that are in view
OPEN = ".jp-NotebookPanel:not(.lm-mod-hidden)"
LAST_PROMPT = f"{OPEN} .jp-Cell.jp-mod-active .jp-InputArea-prompt"


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("needs Chromium, and none is installed (on Debian: apt-get install chromium)")
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    api.expect.set_options(timeout=1000 * LONG_SECONDS)  # 5 s are few for a busy machine
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield started
        started.close()


def list_files():
    """Every file beside the notebooks, with its time: what a run in the browser must not touch."""
    folders = (ROOT / "notebooks", ROOT / ".jupyter", ROOT / "results" / "smoke")
    found = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {path: path.stat().st_mtime_ns for path in found}


@pytest.fixture(scope="module")
def lab(browser, tmp_path_factory):
    """(address with token, folder) of a JupyterLab on a copy of what the notebooks need."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        copy(ROOT / name, folder / name)
    shutil.rmtree(folder / "notebooks" / ".ipynb_checkpoints", ignore_errors=True)
    private = tmp_path_factory.mktemp("private")
    environment = os.environ | {name: str(private / name.lower()) for name in PRIVATE}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "jupyterlab", "--config=tools/lab/config.py", "--no-browser",
               f"--port={free_port()}"]  # fmt: skip
    with (private / "log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield read_address(process, private / "log"), folder
    finally:
        process.terminate()  # it ends its kernels
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
    assert not (private / "jupyter_config_dir" / "lab").exists(), "the user's settings were written"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def read_address(process, log):
    """The address that JupyterLab prints, once it does."""
    end = time.monotonic() + LONG_SECONDS
    while time.monotonic() < end and process.poll() is None:
        if found := re.search(r"http://127\.0\.0\.1:\d+/lab\S*\?token=\w+", log.read_text()):
            return found[0]
        time.sleep(0.1)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-3000:]}")


@pytest.fixture(scope="module")
def page(browser, lab):
    """JupyterLab's start page, in one window for all notebooks, as an analyst has it."""
    context = browser.new_context(viewport=DESKTOP)
    context.set_default_timeout(1000 * LONG_SECONDS)
    opened = context.new_page()
    opened.requests_elsewhere = []
    opened.on("request", lambda request: note_elsewhere(opened, request.url))
    opened.goto(lab[0])
    opened.locator(".jp-MarkdownViewer table").wait_for(timeout=1000 * LONG_SECONDS)
    yield opened
    context.close()


def note_elsewhere(page, url):
    if not url.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:")):
        page.requests_elsewhere.append(url)


def show_start_page(page):
    page.get_by_role("tab", name="README.md").first.click()
    page.locator(".jp-MarkdownViewer:visible").wait_for()


def run_all_cells(page, name):
    """Open a notebook from the start page and run it by the menu; returns when it has run."""
    show_start_page(page)
    page.locator(".jp-MarkdownViewer:visible").get_by_role("link", name=name, exact=True).click()
    page.locator(f"{OPEN} .jp-Cell").first.wait_for()
    kernel = page.locator("#jp-main-statusbar").get_by_text(re.compile(r"\| Idle"))
    kernel.wait_for(timeout=1000 * LONG_SECONDS)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    last = page.locator(LAST_PROMPT)  # running all cells selects the last one
    api.expect(last).to_have_text(re.compile(r"\[(\*|\d+)\]:"))
    api.expect(last).not_to_have_text("[*]:", timeout=1000 * LONG_SECONDS)
    assert re.fullmatch(r"\[\d+\]:", last.inner_text()), find_errors(page)


def find_errors(page):
    return page.locator(f"{OPEN} .jp-RenderedText[data-mime-type*='stderr']").all_inner_texts()


def read_saved(page, lab, name):
    """The code cells of the notebook as JupyterLab saves it, outputs included."""
    with page.expect_response(lambda r: r.request.method == "PUT" and f"{name}.ipynb" in r.url):
        page.keyboard.press("Control+s")
    saved = json.loads((lab[1] / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
    return [cell for cell in saved["cells"] if cell["cell_type"] == "code"]


WIDER_THAN_ITS_CELL = """pictures => pictures.filter((picture) => {
    const cell = picture.closest(".jp-OutputArea-output").getBoundingClientRect();
    return picture.getBoundingClientRect().right > cell.right + 1;
}).length"""


def keep_tall_picture(page, name):
    """A picture of the whole notebook; nothing in it may be typeset as a formula, or be wider
    than its cell."""
    page.set_viewport_size(TALL)
    api.expect(page.locator(f"{OPEN} .jp-Cell.jp-mod-active")).to_be_in_viewport()
    page.locator(f"{OPEN} .jp-WindowedPanel-outer").evaluate("panel => panel.scrollTo(0, 0)")
    api.expect(page.locator(f"{OPEN} .jp-Cell h1").first).to_be_in_viewport()
    page.screenshot(path=SCREENSHOTS / f"{name}-desktop.png")
    formulas = page.locator(f"{OPEN} mjx-container").count()
    wide = page.locator(f"{OPEN} .jp-OutputArea-output img").evaluate_all(WIDER_THAN_ITS_CELL)
    page.set_viewport_size(DESKTOP)
    assert wide == 0, "pictures are cut at the right"
    assert formulas == 0, "text with dollars is shown as a formula"


# JupyterLab ---------------------------------------------------------------------------------------


def test_jupyterlab_asks_for_its_token(browser, lab):
    context = browser.new_context()
    page = context.new_page()
    page.goto(lab[0].partition("?")[0])
    api.expect(page).to_have_url(re.compile("/login"))
    api.expect(page.locator("#password_input")).to_be_visible()
    base = lab[0].partition("/lab")[0]
    assert context.request.get(f"{base}/api/contents").status == 403
    context.close()


def test_start_page_is_shown_rendered_with_a_link_to_every_notebook(page):
    links = page.locator(".jp-MarkdownViewer:visible").get_by_role("link")
    names = {link.split(" ")[0] for link in links.all_inner_texts()}
    assert {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} <= names
    page.screenshot(path=SCREENSHOTS / "start-desktop.png")
    links.get_by_text("the report", exact=True).click()
    page.get_by_role("tab", name="REPORT.md").wait_for()
    page.locator(".jp-MarkdownViewer:visible h1").get_by_text("PEFT").wait_for()


@pytest.mark.parametrize("name", ["90_report", "00_plan", "10_run", "20_serve"])
def test_notebook_runs_all_cells_from_a_fresh_kernel_as_it_is_stored(page, lab, name):
    run_all_cells(page, name)
    cells = read_saved(page, lab, name)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert outputs and [o for o in outputs if o["output_type"] == "error"] == []
    keep_tall_picture(page, name)


def test_a_slider_dragged_and_a_button_clicked_change_the_answer(page, lab):
    run_all_cells(page, "30_choose")
    cells = read_saved(page, lab, "30_choose")
    assert all(o["output_type"] != "error" for cell in cells for o in cell["outputs"])
    keep_tall_picture(page, "30_choose-before")
    widgets = page.locator(f"{OPEN} .jp-OutputArea-output:has(.noUi-handle)").last
    answer = page.locator(f"{OPEN} .jupyter-widgets .jp-RenderedMarkdown strong").first
    api.expect(answer).to_have_text(re.compile(r"About \$[\d,]+ a year"))
    first = answer.inner_text()
    handle, track = widgets.locator(".noUi-handle"), widgets.locator(".noUi-target")
    handle.scroll_into_view_if_needed()
    start, end = handle.bounding_box(), track.bounding_box()
    page.mouse.move(start["x"] + start["width"] / 2, start["y"] + start["height"] / 2)
    page.mouse.down()
    page.mouse.move(end["x"], start["y"] + start["height"] / 2, steps=5)
    page.mouse.up()
    api.expect(widgets.locator(".widget-readout")).to_have_text("1")
    api.expect(answer).not_to_have_text(first)

    second = answer.inner_text()
    widgets.get_by_role("button", name="rtx4090-24gb").click()
    api.expect(answer).not_to_have_text(second)
    api.expect(answer).to_contain_text("rtx4090-24gb")
    keep_tall_picture(page, "30_choose-after")


def test_jupyterlab_asks_no_server_elsewhere(page):
    assert page.requests_elsewhere == []


# report.html --------------------------------------------------------------------------------------


@pytest.fixture(params=["light", "dark"])
def scheme(request):
    return request.param


@pytest.fixture(params=["desktop", "phone"])
def report(request, browser, scheme):
    """report.html as a file, with what went wrong and what was asked for."""
    phone = request.param == "phone"
    context = browser.new_context(
        viewport=PHONE if phone else DESKTOP, color_scheme=scheme, is_mobile=phone, has_touch=phone
    )
    opened = context.new_page()
    opened.faults, opened.requests = [], []
    opened.on("pageerror", lambda error: opened.faults.append(str(error)))
    opened.on("console", lambda m: opened.faults.append(m.text) if m.type == "error" else None)
    opened.on("request", lambda request: opened.requests.append(request.url))
    opened.goto((ROOT / "report.html").as_uri())
    opened.size = request.param
    yield opened
    context.close()


def test_report_page_stands_alone_and_fits_its_window(report, scheme):
    report.screenshot(path=SCREENSHOTS / f"report-{scheme}-{report.size}.png")
    assert report.faults == []
    address = (ROOT / "report.html").as_uri()
    assert [u for u in report.requests if u != address and not u.startswith("data:")] == []
    over = report.evaluate("document.scrollingElement.scrollWidth - window.innerWidth")
    assert over <= 0, f"the page scrolls sideways by {over} pixels"
    paper, ink = report.evaluate(
        "['backgroundColor', 'color'].map(key => getComputedStyle(document.body)[key])"
    )
    assert (brightness(paper) > brightness(ink)) == (scheme == "light")


def brightness(colour):
    return sum(float(figure) for figure in re.findall(r"[\d.]+", colour)[:3])


def column_texts(table, column):
    return [row.locator("td").nth(column).inner_text() for row in table.locator("tbody tr").all()]


@pytest.mark.parametrize("scheme", ["light"])
def test_tables_sort_on_a_click_and_come_back_and_a_phone_names_each_figure(report):
    table = report.locator("table").filter(has_text="Clean step").first
    heads = table.locator("thead th")
    column = next(i for i, t in enumerate(heads.all_inner_texts()) if t.startswith("Clean step"))
    if report.size == "phone":
        cell = table.locator("tbody tr").first.locator("td").nth(column)
        name = cell.evaluate("cell => getComputedStyle(cell, '::before').content")
        assert name.startswith('"Clean step')
        return
    before = column_texts(table, column)
    button = heads.nth(column).get_by_role("button")
    for state, down in (("ascending", False), ("descending", True)):
        button.click()
        api.expect(heads.nth(column)).to_have_attribute("aria-sort", state)
        figures = [float(t) for t in column_texts(table, column) if t[0].isdigit()]
        assert figures == sorted(figures, reverse=down) and len(set(figures)) > 1
    button.click()
    assert column_texts(table, column) == before
    assert report.faults == []


MEASURE = r"""() => {
  const edge = document.documentElement.clientWidth + 1;
  const top = (name) => document.querySelector(name).getBoundingClientRect().top + scrollY;
  const said = [...document.querySelectorAll(".answer > ol, .answer > ol + p")];
  const words = said.map((part) => part.innerText).join(" ");
  for (const fold of document.querySelectorAll("details")) fold.open = true;
  const cut = [...document.querySelectorAll("table")].filter((table) => {
    const shown = [table, ...table.querySelectorAll("td")];
    return shown.some((one) => one.getBoundingClientRect().right > edge
                               || one.scrollWidth > one.clientWidth + 1);
  });
  return {
    tables: document.querySelectorAll("table").length,
    cut: cut.map((table) => table.parentElement.getAttribute("aria-label")),
    words: words.trim().split(/\s+/).length,
    numbers: (words.match(/\d[\d.,]*/g) || []).length,
    table: Math.round(top("table")), picture: Math.round(top("figure")),
  };
}"""


@pytest.mark.parametrize("scheme", ["light"])
def test_the_first_screen_answers_in_few_words_and_no_table_is_cut(report, capsys):
    found = report.evaluate(MEASURE)
    with capsys.disabled():
        print(f"\nreport.html, {report.size}: {found}")
    assert found["cut"] == [] and found["tables"] > 20
    assert found["words"] <= 150 and found["numbers"] <= 20
    assert found["picture"] < 1500
    if report.size == "desktop":  # on a phone the table is eight cards long
        assert found["table"] < found["picture"]


def test_a_tables_head_stays_in_sight(browser):
    page = browser.new_page(viewport=DESKTOP)
    page.goto((ROOT / "report.html").as_uri())
    row = page.locator(".answer table tbody tr").last
    row.evaluate("row => row.scrollIntoView({block: 'center'})")
    head = page.locator(".answer table thead th").first
    assert 0 <= head.bounding_box()["y"] < row.bounding_box()["y"]
    page.close()


def test_it_prints_on_few_pages(browser, capsys):
    page = browser.new_page(viewport={"width": 794, "height": 1123})
    page.goto((ROOT / "report.html").as_uri())
    printed = page.pdf(path=SCREENSHOTS / "report-print.pdf", format="A4")
    pages = len(re.findall(rb"/Type\s*/Page\b", printed))
    page.emulate_media(media="print")
    for number in range(3):
        clip = {"x": 0, "y": 1123 * number, "width": 794, "height": 1123}
        page.screenshot(path=SCREENSHOTS / f"report-print-{number + 1}.png", clip=clip,
                        full_page=True)  # fmt: skip
    page.close()
    with capsys.disabled():
        print(f"\nreport.html prints on {pages} pages")
    assert 3 <= pages <= 14


# The checkout -------------------------------------------------------------------------------------

BEFORE = list_files()


def test_nothing_was_written_beside_the_stored_notebooks(page):
    assert list_files() == BEFORE
