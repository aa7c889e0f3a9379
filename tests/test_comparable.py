"""Only runs that share what must be shared stand together."""

from pathlib import Path

import pytest
from record_factory import Factory, make_spec

from studylib.reporting.comparable import name_refusals, split_comparable


@pytest.fixture
def factory(tmp_path: Path) -> Factory:
    return Factory(tmp_path, items=32)


def ids(sets) -> list[list[str]]:
    return [[record.run_id.removeprefix("ladder-0.4m--") for record in rows] for rows in sets]


def test_runs_that_agree_are_one_set_in_any_order(factory: Factory) -> None:
    records = [factory.add(make_spec(m, seed=s)) for m in ("full", "lora") for s in (0, 1)]
    records.append(factory.add(make_spec("base")))
    assert len(split_comparable(records)) == 1
    assert ids(split_comparable(records)) == ids(split_comparable(records[::-1]))
    assert name_refusals("main", "ladder:0.4m", records) == []


def test_seeds_may_differ_in_order_and_tokens_but_methods_may_not(factory: Factory) -> None:
    records = [factory.add(make_spec("full", seed=s)) for s in (0, 1)]  # 36,000 and 36,001 tokens
    records += [
        factory.add(make_spec("lora", seed=0)),
        factory.add(make_spec("lora", seed=1), fingerprint={"data.tokens_seen": 9}),
    ]
    assert ids(split_comparable(records)) == [["full--s0", "full--s1", "lora-r16--s0"],
                                              ["lora-r16--s1"]]  # fmt: skip
    [refusal] = name_refusals("main", "ladder:0.4m", records)
    assert refusal.field == "data.tokens_seen (seed 1)"
    assert {value: len(runs) for value, runs in refusal.values.items()} == {"36001": 1, "9": 1}


def test_another_order_of_the_data_under_one_seed_is_refused(factory: Factory) -> None:
    records = [factory.add(make_spec("full")),
               factory.add(make_spec("lora"), fingerprint={"data.order_sha256": "x"})]  # fmt: skip
    assert len(split_comparable(records)) == 2


def test_the_base_joins_every_set_that_it_agrees_with(factory: Factory) -> None:
    records = [
        factory.add(make_spec("base")),
        factory.add(make_spec("full")),
        factory.add(make_spec("lora"), fingerprint={"recipe.steps": 7}),
        factory.add(make_spec("qlora"), fingerprint={"evaluate.shots": 5}),
    ]
    assert ids(split_comparable(records)) == [
        ["base", "full--s0"], ["base", "lora-r16--s0"], ["qlora-r16--s0"],
    ]  # fmt: skip
