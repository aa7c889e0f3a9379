"""Devices find their price, and words where there is none."""

import pytest
from record_factory import GPU, Factory, make_spec

from studylib.planning.catalog import match_gpu
from studylib.reporting.resources import dollars, price_of


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb-pcie"),
        ("NVIDIA H100 80GB HBM3", "h100-80gb"),
        ("NVIDIA H100 PCIe", "h100-80gb-pcie"),
        ("NVIDIA H200", "h200-141gb"),
        ("NVIDIA A10", "a10-24gb"),
        ("NVIDIA A10G", "a10g-24gb"),
        ("NVIDIA RTX A6000", "a6000-48gb"),
        ("NVIDIA GeForce RTX 4090", "rtx4090-24gb"),
        ("NVIDIA GH200 480GB", "gh200-96gb"),
        ("NVIDIA A100-SXM4-80GB MIG 3g.40gb", None),
        ("NVIDIA H100 NVL", None),
        ("CPU AMD EPYC", None),
    ],
)
def test_a_device_name_finds_its_card(device: str, name: str | None) -> None:
    gpu = match_gpu(device)
    assert (gpu.name if gpu else None) == name


def test_a_card_is_priced_by_its_offers_for_all_cards(tmp_path) -> None:
    record = Factory(tmp_path, device=GPU).add(make_spec("full", gpus=2))
    price = price_of(record)
    assert price is not None
    assert price.cheapest <= price.median <= price.dearest
    assert price.note.startswith("2 × NVIDIA A100 80GB SXM: ")
    one = price_of(Factory(tmp_path, device=GPU).add(make_spec("full", seed=1, gpus=1)))
    assert one is not None
    assert price.median == pytest.approx(2 * one.median)


def test_a_method_that_takes_more_cards_pays_for_them(tmp_path) -> None:
    one = make_spec("full", gpus=1)
    eight = one.model_copy(
        update={"hardware": one.hardware.model_copy(update={"gpus_of": {"full": 8}}), "seed": 1}
    )
    prices = [price_of(Factory(tmp_path, device=GPU).add(spec)) for spec in (one, eight)]
    assert prices[0] is not None
    assert prices[1] is not None
    assert prices[1].median == pytest.approx(8 * prices[0].median)


def test_no_offer_and_no_stated_price_is_no_price(tmp_path) -> None:
    assert price_of(Factory(tmp_path).add(make_spec("full"))) is None


def test_a_stated_machine_hour_is_shared_and_noted(tmp_path) -> None:
    price = price_of(Factory(tmp_path).add(make_spec("full", usd_per_hour=0.2)))
    assert price is not None
    assert price.single
    assert price.median == pytest.approx(0.1)
    assert price.note == "$0.2 a machine hour (a rented 2-core machine), shared by 2 runs at a time"


def test_dollars_are_hours_times_price() -> None:
    assert dollars(1800, 4.0) == pytest.approx(2.0)
