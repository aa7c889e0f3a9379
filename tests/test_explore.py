"""What the planning notebook shows is what the forecasts say."""

from __future__ import annotations

import pytest

from studylib.notebook_views import explore
from studylib.planning.catalog import find_gpu

MODEL = "shape:smollm2-135m"


@pytest.fixture(scope="module")
def jobs():
    return {m: explore.foresee_job(MODEL, m, "a100-80gb", 1, 512) for m in ("full", "qlora")}


def test_bars_add_up_to_the_peak_and_the_card_is_drawn(jobs):
    axes = explore.plot_parts(list(jobs.values()), "rtx4090-24gb").axes[0]
    for row, made in enumerate(jobs.values()):
        bars = [bar for bar in axes.patches if round(bar.get_y() + bar.get_height() / 2) == row]
        assert sum(bar.get_width() for bar in bars) == pytest.approx(made.peak_bytes / 1e9)
    [card] = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert card.get_xdata()[0] == pytest.approx(find_gpu("rtx4090-24gb").usable_bytes / 1e9)


def test_tables_name_what_fits_and_what_it_costs(jobs):
    fits = explore.tabulate_fits(MODEL, ["full"], ["rtx4090-24gb", "a100-80gb"], 1, 512)
    row = fits.loc[(MODEL, "full fine-tuning")]
    left = jobs["full"].fits["a100-80gb"].headroom_bytes / 1e9
    assert row["a100-80gb"] == f"fits, {left:.1f}"
    costs = explore.tabulate_costs(MODEL, ["full"], "a100-80gb", 1, 512)
    assert (
        f"{jobs['full'].jobs['packed'].hours.mid:.1f}"
        in costs.loc[(MODEL, "full fine-tuning"), "hours"]
    )


def test_break_even_is_the_ratio_of_hours(jobs):
    small = explore.foresee_job(MODEL, "qlora", "rtx4090-24gb", 1, 512)
    ratio = small.jobs["packed"].hours.mid / jobs["full"].jobs["packed"].hours.mid
    assert f"{ratio:.2f} times" in explore.break_even(small, jobs["full"])


def test_choices_are_a_slider_buttons_or_a_menu_and_the_first_one_is_set():
    slider = explore.make_menu([20, 1, 5, 500])
    assert (type(slider).__name__, slider.value) == ("SelectionSlider", 20)
    assert [value for _, value in slider.options] == [1, 5, 20, 500]
    buttons = explore.make_menu(["any", 0.2, 5.0])
    assert (type(buttons).__name__, buttons.value) == ("ToggleButtons", "any")
    menu = explore.make_menu(list("abcdef"))
    assert (type(menu).__name__, menu.value) == ("Dropdown", "a")
    assert [label for label, _ in explore.make_menu(["qlora", "full"]).options] == [
        "QLoRA", "full fine-tuning"
    ]  # fmt: skip


def test_plan_has_one_row_a_model_and_method_and_unknown_is_a_word():
    from studylib.planning.plan import Plan, PlannedRun

    def planned(name, state, seconds):
        return PlannedRun(
            run_id=name, state=state, seconds=seconds, seconds_source="alike", usd=None
        )

    runs = (planned("m--full--s0", "done", 3.0), planned("m--full--s1", "to do", 2.6))
    plan = Plan(profile="p", results="r", jobs=1, runs=(*runs, planned("m--base", "to do", None)))
    table = explore.summarise_plan(plan)
    assert list(table.index) == ["m--full", "m--base"]
    assert list(table["left"]) == [1, 1]
    assert list(table["seconds of those left"]) == ["3", "unknown"]
