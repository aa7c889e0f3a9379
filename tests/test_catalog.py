"""The catalog is complete, consistent with its sources, and says what it does not know."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from studylib.core.errors import StudyError
from studylib.planning.catalog import (
    find_gpu,
    find_shape,
    load_gpus,
    load_prices,
    load_shapes,
    price_range,
)

SHARED = Path(__file__).parents[2] / "shared" / "data"


def test_catalog_needs_no_torch():
    code = "import sys, studylib.planning.catalog as c; c.load_gpus(); "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_all_31_shapes_are_there_and_names_ignore_case():
    assert len(load_shapes()) == 31
    assert find_shape("LLAMA-2-13b").total_params == 13_015_864_320


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared data beside the checkout")
def test_shapes_and_prices_equal_their_sources():
    shapes = json.loads((SHARED / "model_shapes.json").read_text())
    assert {s.name: s.total_params for s in load_shapes().values()} == {
        name: shape["total_params"] for name, shape in shapes.items()
    }
    with (SHARED / "gpu_prices.csv").open() as file:
        rows = [(row["provider"], float(row["usd_per_gpu_hour"])) for row in csv.DictReader(file)]
    ours = [(offer.provider, offer.usd_per_gpu_hour) for offer in load_prices()]
    assert sorted(rows) == sorted(ours)


def test_models_of_the_shipped_profiles_have_their_published_shapes():
    from studylib.planning.catalog import shape_of_hub
    from studylib.schema.profile import read_profile

    for name in ("gpu", "article"):
        for run in read_profile(name).runs():
            shape = shape_of_hub(run.model_ref.name)
            assert shape is not None and shape.total_params > 10**9
    assert shape_of_hub("org/none") is None


def test_unknown_names_get_the_nearest():
    with pytest.raises(StudyError, match="llama-2-13b"):
        find_shape("llama2-13b")
    with pytest.raises(StudyError, match="a100-80gb"):
        find_gpu("a100-80g")


def test_usable_memory_is_below_the_label_and_every_figure_has_a_source():
    for gpu in load_gpus().values():
        label_bytes = int(gpu.name.split("-")[1].removesuffix("gb")) * 1024**3
        assert 0.9 * label_bytes < gpu.usable_bytes < label_bytes
        assert gpu.spec_source and gpu.memory_source
        assert gpu.flops_per_second("bf16") > gpu.flops_per_second("fp32")


def test_every_offer_is_of_a_known_card_and_carries_date_and_source():
    for offer in load_prices():
        assert offer.gpu in load_gpus()
        assert offer.as_of and offer.source and offer.provider


def test_price_range_is_cheapest_median_dearest():
    prices = price_range("a100-80gb", load_prices())
    assert prices is not None
    assert (prices.cheapest, prices.dearest) == (1.29, 5.1212)
    assert prices.median == pytest.approx(1.69)
    assert price_range("rtx3090-24gb", load_prices()) is None


def test_own_prices_replace_the_offers_of_the_cards_they_name(tmp_path):
    own = tmp_path / "mine.csv"
    own.write_text(
        "gpu,gpus,provider,instance,usd_per_gpu_hour,source\nL4-24gb,1,me,desk,0.1,bill\n"
    )
    offers = load_prices(own)
    assert [o.usd_per_gpu_hour for o in offers if o.gpu == "l4-24gb"] == [0.1]
    assert [o.as_of for o in offers if o.gpu == "l4-24gb"] == ["undated"]
    assert price_range("a100-80gb", offers) == price_range("a100-80gb", load_prices())


def test_a_fault_in_own_prices_names_its_line(tmp_path):
    own = tmp_path / "mine.csv"
    own.write_text(
        "gpu,gpus,provider,instance,usd_per_gpu_hour,source\nl4-24gb,1,me,desk,-1,bill\n"
    )
    with pytest.raises(StudyError, match="line 2, usd_per_gpu_hour"):
        load_prices(own)
    with pytest.raises(StudyError, match="cannot be read"):
        load_prices(tmp_path / "absent.csv")


HEADER = "gpu,gpus,provider,instance,usd_per_gpu_hour,source\n"


def test_own_prices_from_a_spreadsheet_with_a_byte_order_mark_are_read(tmp_path):
    own = tmp_path / "mine.csv"
    text = HEADER + "l4-24gb,1,me,desk,0.1,bill\n"
    own.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert [o.usd_per_gpu_hour for o in load_prices(own) if o.gpu == "l4-24gb"] == [0.1]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "there are no offers in it"),
        (HEADER, "there are no offers in it"),
        (HEADER.replace(",", ";") + "l4-24gb;1;me;desk;1;bill\n", "names no column gpu"),
        (HEADER + "l4,1,me,desk,1,bill\n", "l4: this card is not in the catalog"),
        (HEADER + "l4-24gb,1,me,desk,nan,bill\n", "usd_per_gpu_hour = nan"),
    ],
)
def test_own_prices_that_would_change_nothing_are_refused(tmp_path, content, said):
    own = tmp_path / "mine.csv"
    own.write_text(content)
    with pytest.raises(StudyError, match=said):
        load_prices(own)
