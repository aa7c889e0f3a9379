"""Every column sees the fault that it is there for, and the page says what a fresh check says."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from studylib.checking import adapter_columns, check_model, models_page, training_columns
from studylib.checking.check_model import CHECKS
from studylib.checking.model_subject import Subject, apart, open_reference, relative_error
from studylib.checking.models_page import format_row
from studylib.checking.zoo import MAX_BYTES, make_model, zoo_names
from studylib.commands.cli import app
from studylib.core.errors import StudyError
from studylib.schema.model_report import COLUMNS, NEEDED, Cell, ModelReport
from studylib.schema.settings import LoraSettings, ModelRef, parse_method

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
QUICK = [name for name in COLUMNS if name != "forecast"]  # that one alone takes as long as ten
# What must hold of these kinds, whatever the page says: who may be fully fine-tuned.
DOZEN = {
    "llama": True, "gpt2": True, "falcon": True, "opt": True, "qwen3_5_text": True, "lfm2": True,
    "mamba": True, "gemma2": True, "gpt_oss": True, "qwen3_moe": True, "cohere": True,
    "granite": True, "bert": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """Folders of tiny models by type, made when they are first asked for."""
    folder, made = tmp_path_factory.mktemp("zoo"), {}

    def get(name):
        if name not in made:
            made[name] = make_model(folder / name, name)
        return made[name]

    return get


@pytest.fixture(scope="module")
def llama(zoo):
    return ModelRef(kind="path", name=str(zoo("llama")))


@pytest.mark.parametrize("name", DOZEN)
def test_a_row_made_again_is_the_pages_row(zoo, name):
    report = check_model.check_model(ModelRef(kind="path", name=str(zoo(name))), QUICK)
    assert (report.reason("full") is None) == DOZEN[name], report.verdict
    page = PAGE.read_text(encoding="utf-8")
    if any(f"{library} {number}" not in page for library, number in report.versions.items()):
        pytest.skip("the page was made with other versions")
    again = read_models_table(table_head() + format_row(name, report, []))[name]
    stands = read_models_table(page)[name]
    assert {k: v for k, v in again.items() if k != "forecast"} == {
        k: v for k, v in stands.items() if k != "forecast"
    }


def read_models_table(text):
    """Model type -> heading -> what stands in its cell, without the numbers of notes."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    headings, *rows = ([part.strip() for part in line.split("|")[1:-1]] for line in lines)
    return {
        row[0]: {
            heading: re.sub(r" \[\d+\]$", "", part)
            for heading, part in zip(headings, row, strict=True)
        }
        for row in rows
    }


def table_head():
    return "| " + " | ".join(["model type", "class", *NEEDED, *models_page.HEADINGS]) + " |\n"


def test_the_page_tells_of_every_model_type_and_has_ninety_rows():
    text = PAGE.read_text(encoding="utf-8")
    rows = read_models_table(text)
    left = {line[2:].partition(":")[0] for line in text.splitlines() if line.startswith("- ")}
    assert len(rows) >= 90
    assert set(zoo_names()) <= rows.keys() | left


def test_the_zoo_is_small_and_made_the_same_twice(tmp_path):
    names = ["llama", "gpt_oss", "blt"]
    first, second = (
        {name: make_model(tmp_path / part / name, name) for name in names} for part in "ab"
    )
    assert "bytes" in first["blt"]
    for name in names[:2]:
        one, two = (load_file(made[name] / "model.safetensors") for made in (first, second))
        assert all(torch.equal(one[key], two[key]) for key in one)
        assert sum(part.nbytes for part in one.values()) <= MAX_BYTES


class Planted(Subject):
    """A subject whose every load is spoilt by a function of the model."""

    def __init__(self, ref, spoil):
        super().__init__(ref)
        self.spoil = spoil

    def load(self, method="base"):
        loaded = super().load(method)
        self.spoil(loaded.model)
        return loaded


def drop_positions(model):
    """Examples of a row are one text then, as where a model counts positions by itself."""
    model.register_forward_pre_hook(
        lambda module, words, inputs: (words, inputs | {"position_ids": None}), with_kwargs=True
    )


def see_the_future(model):
    model.model.embed_tokens.register_forward_hook(lambda m, i, out: out + 0.1 * out.mean(1, True))


def scale_in_training(model):
    model.lm_head.register_forward_hook(lambda m, i, out: out * 1.01 if m.training else out)


def shift_answers(model):
    model.lm_head.register_forward_hook(lambda m, i, out: out * 1.01)


def mistake_scales(model):
    for _, layer in adapter_columns.four_bit_layers(model):
        state = layer.weight.quant_state
        state.absmax = state.absmax.roll(1)


def lose_a_gradient(model):
    layers = [layer for _, layer in adapter_columns.four_bit_layers(model)]
    if layers:
        layers[-1].register_forward_hook(lambda m, i, out: out.detach())


@pytest.mark.parametrize(
    ("column", "spoil"),
    [
        ("loads", shift_answers),
        ("causal", see_the_future),
        ("packing", drop_positions),
        ("loss", scale_in_training),
        ("loss", drop_positions),
        ("chunked", shift_answers),
        ("prefixes", shift_answers),
        ("four_bit_error", mistake_scales),
        ("qlora_gradient", lose_a_gradient),
    ],
)
def test_a_planted_fault_is_seen_by_its_column_and_nothing_is_seen_without(llama, column, spoil):
    assert CHECKS[column](Planted(llama, lambda model: None)).fault is None
    assert CHECKS[column](Planted(llama, spoil)).fault is not None


def test_a_lost_weight_is_named(zoo, tmp_path):
    folder = make_model(tmp_path / "llama", "llama")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    subject = Subject(ModelRef(kind="path", name=str(zoo("llama"))))
    assert training_columns.whole_column(subject).text == "yes"
    subject.reference = open_reference(folder)
    assert "1 tensors missing: model.layers.1.mlp.down_proj" in (
        training_columns.whole_column(subject).fault
    )
    report = check_model.check_model(ModelRef(kind="path", name=str(folder)), ["loads", "whole"])
    assert report.reason("full")


def test_weights_that_are_drawn_anew_are_seen(llama):
    def redraw(model):
        torch.nn.init.normal_(model.model.layers[1].mlp.down_proj.weight)

    fault = training_columns.whole_column(Planted(llama, redraw)).fault
    assert fault.startswith("1 tensors differ between two loads")


def test_a_base_without_4_bit_layers_is_no_qlora(llama):
    class Plain(Subject):
        def load(self, method="base"):
            return super().load()

    assert adapter_columns.four_bit_column(Plain(llama)).fault
    assert adapter_columns.four_bit_column(Subject(llama)).text == "100%"


def test_a_merge_that_leaves_out_the_adapter_is_seen(llama, monkeypatch):
    assert adapter_columns.qlora_merged_column(Subject(llama)).fault is None
    monkeypatch.setattr(adapter_columns, "merge_into_bf16", lambda plain, quantized, adapter: plain)
    assert "the merged model" in adapter_columns.qlora_merged_column(Subject(llama)).fault


def test_an_adapter_that_loses_a_part_on_disk_is_seen(llama, monkeypatch):
    plain = adapter_columns.load_trained

    def lose(base, method, folder):
        model = plain(base, method, folder)
        with torch.no_grad():
            for name, part in model.named_parameters():
                if "up_proj.lora_B" in name:
                    part.zero_()
        return model

    assert adapter_columns.lora_merged_column(Subject(llama)).text == "exact"
    monkeypatch.setattr(adapter_columns, "load_trained", lose)
    assert "saved and loaded again" in adapter_columns.lora_merged_column(Subject(llama)).fault


def test_what_an_adapter_misses_is_named(llama, monkeypatch):
    some = parse_method("lora", LoraSettings(rank=8, targets=("q_proj", "v_proj")))
    monkeypatch.setattr(adapter_columns, "parse_tried_method", lambda method: some)
    cell = adapter_columns.lora_reach_column(Subject(llama))
    assert cell.figures["share"] == pytest.approx(2 * (64 * 64 + 32 * 64) / 73_728)
    assert "misses down_proj, gate_proj, k_proj, o_proj, up_proj" in cell.note
    assert "q_proj 8" in cell.note


def test_a_forecast_is_held_to_the_counted_peak(llama, monkeypatch):
    assert training_columns.forecast_column(Subject(llama)).text == "within 2%"
    plain = training_columns.forecast

    def larger(settings, config):
        found = plain(settings, config=config)
        return found.model_copy(update={"peak_bytes": round(1.2 * found.peak_bytes)})

    monkeypatch.setattr(training_columns, "forecast", larger)
    assert training_columns.forecast_column(Subject(llama)).text == "+20%"


def test_a_fault_in_one_column_is_its_word_and_not_the_end(llama, monkeypatch):
    def fail(subject):
        raise RuntimeError("two\nlines")

    def refuse(subject):
        raise StudyError("x", "this cannot be", "Leave it.")

    monkeypatch.setitem(CHECKS, "causal", fail)
    monkeypatch.setitem(CHECKS, "chunked", refuse)
    report = check_model.check_model(llama, ["causal", "chunked", "attention"])
    assert report.cells["causal"].words == "error: RuntimeError: two"
    assert report.cells["chunked"].words == "refused: this cannot be"
    assert report.cells["attention"].text == "sdpa"
    assert report.reason("full") == "causal: RuntimeError: two"


def test_a_figure_that_is_no_number_is_a_fault(llama, monkeypatch):
    """`max` leaves out what is no number: such a loss would be called exact."""
    rows = [{"loss": math.nan, "grad_norm": 1.0}] * 2
    monkeypatch.setattr(training_columns, "train_steps", lambda _: SimpleNamespace(rows=rows))
    assert "training loss" in CHECKS["loss"](Subject(llama)).fault
    broken, whole = torch.tensor([0.0, math.nan]), torch.tensor([0.0, 1.0])
    assert max(0.0, apart(broken, whole)) == max(0.0, relative_error(broken, whole)) == math.inf


def make_report(**faults):
    cells = {name: Cell(text="x", fault=faults.get(name)) for name in COLUMNS}
    return ModelReport(
        model="path:x", model_type="x", model_class="X", parameters=1, versions={"a": "1"},
        cells=cells,
    )  # fmt: skip


def test_each_method_needs_what_it_builds_on():
    assert make_report().verdict == "usable for full, LoRA, QLoRA"
    assert make_report(chunked="c", forecast="f").verdict == "usable for full, LoRA, QLoRA"
    assert make_report(four_bit="none").verdict == (
        "usable for full, LoRA; not usable for QLoRA (in 4 bits: none)"
    )
    report = make_report(loss="wrong", lora_reach="none")
    assert [report.reason(method) for method in NEEDED] == ["loss: wrong"] * 3


def test_the_page_is_the_same_but_for_its_date_and_keeps_what_people_wrote(tmp_path):
    cell = Cell(text="own path", note="a|b")
    odd = make_report(loss="wrong")
    odd = odd.model_copy(update={"cells": odd.cells | {"prefixes": cell, "chunked": cell}})
    found = {"b": make_report(), "a": odd, "c": "makes sound"}
    text = models_page.compose_models_page(found, "2026-01-01")
    assert text == models_page.compose_models_page(found, "2026-01-02").replace("01-02", "01-01")
    assert "1. a/b" in text
    assert "2. " not in text
    assert "- c: makes sound." in text
    assert read_models_table(text)["a"]["loss"] == "**x**"
    assert (
        read_models_table(text)["a"]["scoring"]
        == read_models_table(text)["a"]["chunked"]
        == "own path"
    )
    page = tmp_path / "models.md"
    page.write_text(f"stale\n\n{models_page.KEPT} that one would not guess\n\nkept\n")
    assert models_page.write_page(found, page).read_text().endswith("not guess\n\nkept\n")
    assert "stale" not in page.read_text()


def test_the_command_says_why_and_ends_with_2(zoo, llama, monkeypatch):
    few = dict.fromkeys(("loads", "causal"))
    monkeypatch.setattr(check_model.check_model, "__defaults__", (few,))
    fine = CliRunner().invoke(app, ["check-model", str(llama), "--json"])
    assert fine.exit_code == 0
    assert json.loads(fine.stdout)["cells"]["causal"]["text"] == "yes"
    refused = CliRunner().invoke(app, ["check-model", f"path:{zoo('bert')}"])
    assert isinstance(refused.exception, StudyError)
    assert "must not be used" in str(refused.exception)
    assert "<- fault" in refused.stdout
    assert isinstance(CliRunner().invoke(app, ["check-model"]).exception, StudyError)
    shape = CliRunner().invoke(app, ["check-model", "shape:llama-3.1-8b"]).exception
    assert "has no weights" in str(shape)
