"""Claims: counted figures are exact, verdicts follow the written rule, missing ones say why."""

from pathlib import Path

import pytest
from record_factory import GPU, Factory, make_spec

from studylib.core.verdicts import parse_rule
from studylib.reporting.claim_sources import ClaimForecast
from studylib.reporting.claims import NOT_YET, Finding, evaluate_claims, read_claims
from studylib.reporting.study import read_study
from studylib.reporting.summary import summarise_study


def find(findings: list[Finding], claim: str, part: str) -> Finding:
    return next(f for f in findings if (f.claim, f.part) == (claim, part))


@pytest.fixture(scope="module")
def counted() -> list[Finding]:
    return evaluate_claims([])


def test_all_eight_claims_are_there_with_readable_rules() -> None:
    claims = read_claims()
    assert list(claims) == [f"C{i}" for i in range(1, 9)]
    for content in claims.values():
        for part in content["parts"]:
            assert "needs" in part or "count" in part["source"]
            if "rule" in part:
                parse_rule(part["rule"])


def test_c1_is_counted_exactly(counted: list[Finding]) -> None:
    found = find(counted, "C1", "parameters")
    assert found.ours == "26,214,400 on q,k,v,o"
    assert (found.verdict, found.how) == ("reproduced", "counted from the shape of Llama-2-13B")
    share = find(counted, "C1", "share")
    assert "0.2014 % of 13,015,864,320" in share.ours
    assert "0.4809 % on all linear layers" in share.ours


def test_c5_is_counted_and_says_that_the_layers_decide(counted: list[Finding]) -> None:
    assert "26.03 GB" in find(counted, "C5", "checkpoint").ours
    few, every = find(counted, "C5", "adapter"), find(counted, "C5", "adapter-all")
    assert "52.4 MB in bf16, 104.9 MB in fp32" in few.ours
    assert few.verdict == "reproduced"
    assert "125.2 MB in bf16, 250.3 MB in fp32" in every.ours
    assert every.verdict == "inconclusive"
    assert "interval" not in every.decided_by  # a count has a range and no sampling error


def test_what_is_not_measured_says_what_it_needs(counted: list[Finding]) -> None:
    for claim in ("C2", "C3", "C4", "C6", "C8"):
        for found in (f for f in counted if f.claim == claim):
            assert (found.ours, found.verdict) == (NOT_YET, NOT_YET)
            assert found.how.startswith("needs ")


@pytest.mark.parametrize(
    ("value", "low", "high", "verdict"),
    [(57, 54, 60, "reproduced"), (90, 85, 95, "differs"), (60, 40, 70, "inconclusive")],
)
def test_ready_forecasts_are_judged_and_marked(
    value: float, low: float, high: float, verdict: str
) -> None:
    forecast = ClaimForecast(value, low, high, "traced, batch 1, length 512")
    found = find(evaluate_claims([], {"C2.lora": [forecast]}), "C2", "lora")
    assert found.verdict == verdict
    assert found.how == "forecast: traced, batch 1, length 512"
    assert found.decided_by.startswith("forecast ")


def test_measured_claims_are_judged_for_every_size(tmp_path: Path) -> None:
    folder = Factory(tmp_path / "s").study()
    findings = evaluate_claims([summarise_study(read_study(folder))])
    qlora = [f for f in findings if (f.claim, f.part) == ("C4", "qlora")]
    assert [f.verdict for f in qlora] == ["differs"] * 4
    assert [f.ours.partition(":")[0] for f in qlora[:2]] == ["QLoRA r=16", "QLoRA r=16, merged"]
    assert "ladder:0.4m" in qlora[0].how
    assert "ladder:1.4m" in qlora[2].how
    small = [f for f in findings if (f.claim, f.part) == ("C8", "small")]
    assert [f.verdict for f in small] == ["reproduced", "reproduced"]
    assert find(findings, "C8", "deep").verdict == NOT_YET


def test_too_few_seeds_bear_no_verdict(tmp_path: Path) -> None:
    folder = Factory(tmp_path / "s").study(models=("ladder:0.4m",), seeds=(0,))
    findings = evaluate_claims([summarise_study(read_study(folder))])
    found = find(findings, "C4", "lora")
    assert found.verdict == "inconclusive"
    assert "1 of the 3 seeds" in found.decided_by


def test_deep_shift_is_judged_on_its_own_track(tmp_path: Path) -> None:
    factory = Factory(tmp_path / "s")
    for seed in range(3):
        factory.add(make_spec("full", seed=seed, track="language"), knows=0.8)
        factory.add(make_spec("lora", seed=seed, track="language"), knows=0.4)
    factory.add(make_spec("base", track="language"))
    findings = evaluate_claims([summarise_study(read_study(factory.folder))])
    assert find(findings, "C8", "deep").verdict == "reproduced"
    assert find(findings, "C8", "small").verdict == NOT_YET


# Claims about a 13B model, by records ------------------------------------------------------------


def run_13b(tmp_path: Path, status: str = "complete", **train: float) -> list[Finding]:
    """QLoRA on Llama-2-13B's shape on a card: 17.6 GB by NVML, 4,000 tokens/s."""
    factory = Factory(tmp_path / "gpu", device=GPU)
    spec = make_spec("qlora", "shape:Llama-2-13B", gpus=1, retention=False)
    block = factory.train(spec)
    measure = block.measure.model_copy(update={"nvml_peak_bytes": 17_600_000_000})
    block = block.model_copy(update={"measure": measure, "tokens_per_second": 4000.0, **train})
    load = factory.load(spec).model_copy(update={"total_params": 13_042_078_720})
    factory.train, factory.load = lambda _: block, lambda _: load  # type: ignore
    factory.add(spec, status=status)
    return evaluate_claims([summarise_study(read_study(tmp_path / "gpu", planned=()))])


def test_a_13b_runs_own_peak_and_speed_are_judged(tmp_path: Path) -> None:
    findings = run_13b(tmp_path)
    memory = find(findings, "C2", "qlora")
    assert memory.ours.startswith("QLoRA r=16, 1 × 256 tokens at once")
    assert "17.6 GB by NVML" in memory.ours
    assert memory.verdict == "reproduced"  # 18 GB give or take 15 %
    assert memory.how.startswith(f"measured on {GPU}")
    assert find(findings, "C7", "fits-24gb").verdict == "reproduced"
    cost = find(findings, "C3", "qlora")
    assert "19.9M tokens at 4,000 tokens/s, 1.38 h" in cost.ours
    assert find(findings, "C2", "full").verdict == NOT_YET


def test_a_13b_run_out_of_memory_gives_no_peak_to_judge(tmp_path: Path) -> None:
    found = find(run_13b(tmp_path, status="out of memory"), "C2", "qlora")
    assert "out of memory, 17.6 GB reached" in found.ours
    assert found.verdict == "not comparable"


def test_a_small_models_peak_says_nothing_of_13b(tmp_path: Path) -> None:
    Factory(tmp_path / "gpu", device=GPU).add(make_spec("qlora", gpus=1))
    findings = evaluate_claims([summarise_study(read_study(tmp_path / "gpu", planned=()))])
    assert find(findings, "C2", "qlora").verdict == NOT_YET
