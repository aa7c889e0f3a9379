"""Pictures: deterministic SVG, one colour a method, names where the points lie."""

import re
import shutil
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib import font_manager
from matplotlib.colors import to_hex
from matplotlib.font_manager import FontProperties
from record_factory import Factory, make_spec

from studylib.reporting import figures, panels
from studylib.reporting.study import read_study
from studylib.reporting.summary import Summary, summarise_study
from studylib.schema.profile import METHODS


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> Summary:
    return summarise_study(read_study(Factory(tmp_path_factory.mktemp("r") / "s").study()))


def test_drawing_twice_gives_the_same_bytes_whatever_the_readers_style(summary: Summary) -> None:
    first = {name: panels.to_svg(f) for name, f in figures.draw_all(summary).items()}
    with mpl.rc_context({"font.size": 20, "axes.facecolor": "black", "svg.hashsalt": "other"}):
        second = {name: panels.to_svg(f) for name, f in figures.draw_all(summary).items()}
    assert first == second
    assert sorted(first) == ["main-accuracy-memory", "main-gap-to-full",
                             "main-kept-and-gained", "main-loss", "main-subjects"]  # fmt: skip


def test_svg_carries_no_date_and_a_solid_background(summary: Summary) -> None:
    figure = figures.draw_all(summary)["main-gap-to-full"]
    svg = panels.to_svg(figure).decode()
    assert "<dc:date>" not in svg
    assert re.search(r"fill: #ffffff", svg)


def test_every_method_has_its_own_colour_and_marker() -> None:
    assert len({row.colour for row in METHODS.values()}) == len(METHODS)
    assert len({row.marker for row in METHODS.values()}) == len(METHODS)


def test_a_method_keeps_its_colour_in_every_picture(summary: Summary) -> None:
    for figure in figures.draw_all(summary).values():
        for panel in figure.axes:
            for text in panel.texts:
                if text.get_text() == "LoRA r=16":
                    assert to_hex(text.get_color()) == panels.COLOURS["lora"]


def test_axes_name_unit_and_direction(summary: Summary) -> None:
    panel = figures.draw_all(summary)["main-accuracy-memory"].axes[0]
    assert panel.get_ylabel() == "accuracy (%) ↑"
    assert panel.get_xlabel() == "← peak memory of training, host memory (GB)"


def test_points_of_subjects_name_what_they_rest_on(summary: Summary) -> None:
    panel = figures.draw_all(summary)["main-subjects"].axes[0]
    assert re.search(r"\(pp; \d+ questions a subject × 3 seeds\)$", panel.get_xlabel())


def test_lines_from_names_to_points_are_no_intervals(summary: Summary) -> None:
    panel = figures.draw_all(summary)["main-accuracy-memory"].axes[0]
    leaders = [t.arrow_patch for t in panel.texts if t.arrow_patch is not None]
    assert len(leaders) == 3
    assert all(leader.get_linestyle() not in ("-", "solid") for leader in leaders)


def test_labels_are_moved_apart_and_stay_in_order() -> None:
    placed = panels.spread_apart([5.0, 5.1, 1.0, 5.05], 1.0)
    order = sorted(range(4), key=lambda i: placed[i])
    gaps = [placed[b] - placed[a] for a, b in pairwise(order)]
    assert min(gaps) >= 1.0 - 1e-6
    assert order == [2, 0, 3, 1]
    assert placed[2] == pytest.approx(1.0)


def test_without_accuracy_there_is_no_picture_of_it(tmp_path: Path) -> None:
    factory = Factory(tmp_path / "s")
    factory.add(make_spec("full"), status="out of memory", reason="while training")
    assert "main-accuracy-memory" not in figures.draw_all(
        summarise_study(read_study(factory.folder))
    )


def test_pictures_of_another_matplotlib_are_not_called_stale(summary: Summary, tmp_path) -> None:
    svg = panels.to_svg(figures.draw_all(summary)["main-gap-to-full"])
    path = tmp_path / "a.svg"
    path.write_bytes(svg.replace(mpl.__version__.encode(), b"1.0.0"))
    assert panels.made_elsewhere(path, svg)
    path.write_bytes(svg.replace(b"stroke", b"struck"))
    assert not panels.made_elsewhere(path, svg)


def test_a_systems_font_of_the_same_name_is_not_the_one_that_is_drawn(tmp_path):
    own = Path(mpl.get_data_path(), "fonts", "ttf")
    font_manager.fontManager.addfont(shutil.copy(own / "DejaVuSans.ttf", tmp_path))
    panels.take_own_font.cache_clear()
    with panels.house_style():
        for weight in ("normal", "bold"):
            file = Path(font_manager.findfont(FontProperties(family="DejaVu Sans", weight=weight)))
            assert file.parent == own
