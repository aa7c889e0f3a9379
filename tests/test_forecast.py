"""Forecasts agree with what others measured, count exactly, and refuse what cannot run."""

from __future__ import annotations

import json
import statistics
import time
from functools import cache

import psutil
import pytest

from studylib.core.errors import StudyError
from studylib.forecasting.article_forecasts import compare_published, load_published
from studylib.forecasting.forecast import (
    CudaTerms,
    Efficiency,
    Forecast,
    ForecastSettings,
    MeasuredPeaks,
    calibrate,
    fit_cuda_terms,
    forecast,
    format_forecast,
)
from studylib.metering import host
from studylib.planning.catalog import GIB, find_gpu, load_prices, load_shapes

SMALL = "shape:smollm2-135m"
CASES = {p.case: p for p in load_published() if p.not_comparable is None}
WORST, MEAN = 0.10, 0.05  # what is promised of a forecast against a published peak


@cache
def trace_once(settings: ForecastSettings) -> Forecast:
    return forecast(settings)


def run(**changes) -> Forecast:
    return trace_once(
        ForecastSettings(**({"model": SMALL, "method": "full", "seq_len": 512} | changes))
    )


@pytest.fixture(scope="module")
def small() -> Forecast:
    return run()


@pytest.fixture(scope="module")
def errors() -> dict[str, float]:
    return {case: compare_published(published).error for case, published in CASES.items()}


@pytest.mark.parametrize(
    "case",
    [
        "litgpt phi-1.5 LoRA, micro-batch 1",
        "litgpt phi-1.5 LoRA, micro-batch 2",
        "litgpt phi-1.5 LoRA, micro-batch 4",
        "litgpt StableLM-Alpha-3B LoRA, micro-batch 1",
        "litgpt StableLM-Alpha-3B LoRA, micro-batch 2",
        "litgpt StableLM-Alpha-3B LoRA, micro-batch 4",
        "litgpt Llama-2-7B LoRA, micro-batch 1",
        "litgpt Llama-2-7B LoRA, micro-batch 2",
        "torchtune Llama-3.2-3B full, packed",
        "peft Llama-3.2-3B LoRA r=32",
        "peft Llama-3.2-3B full",
    ],
)
def test_published_peak_is_met_within_10_percent(case, errors):
    assert abs(errors[case]) <= WORST


def test_published_peaks_are_met_within_5_percent_in_the_mean(errors):
    assert len(errors) == 11
    assert statistics.fmean(abs(error) for error in errors.values()) <= MEAN


def test_every_case_left_out_says_why():
    left_out = [p for p in load_published() if p.not_comparable is not None]
    assert left_out and all(len(p.not_comparable or "") > 20 for p in left_out)


def test_claimed_adapter_of_a_13b_model_is_counted_exactly():
    made = run(
        model="shape:llama-2-13b", method="lora", targets=("q_proj", "k_proj", "v_proj", "o_proj")
    )
    assert (made.trainable_params, made.total_params) == (26_214_400, 13_015_864_320)
    assert made.adapter_bytes == 4 * 26_214_400
    assert made.bytes_on_disk["adapter"]["bf16"] == 2 * 26_214_400
    assert made.checkpoint_bytes == 2 * 13_015_864_320


def test_70b_is_traced_in_time_and_little_memory():
    if not host.reset_peak_bytes():
        pytest.skip("this system does not let a process reset its memory peak")
    before = psutil.Process().memory_info().rss
    started = time.process_time()
    run(model="shape:llama-2-70b", method="qlora", seq_len=2048)
    assert time.process_time() - started < 30
    assert host.read_peak_bytes() - before < 1e9


FAMILIES = ("SmolLM2-135M", "Qwen2.5-0.5B", "Qwen3-0.6B", "OLMo-2-1B", "Pythia-70M")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_shape_of_each_family_is_forecast_with_its_total(name):
    made = run(model=f"shape:{name}", method="qlora", seq_len=256)
    assert made.total_params == load_shapes()[name.lower()].total_params
    assert made.parts["quantization_constants"] > 0


def test_parts_add_up_to_the_peak_and_cuda_terms_are_named(small):
    assert sum(small.parts.values()) == small.peak_bytes
    assert small.parts["weights"] == pytest.approx(2 * small.total_params, rel=1e-3)
    context = small.parts["cuda_context"]
    assert small.peak_allocated_bytes <= small.least_bytes - context
    assert small.least_bytes <= small.peak_bytes


def test_a_cpu_has_no_cuda_terms():
    made = run(kernels="cpu", weights="fp32")
    assert made.parts["cuda_context"] == made.parts["allocator"] == 0
    assert made.peak_allocated_bytes == made.peak_bytes


def test_fits_compares_the_least_with_usable_memory(small):
    for name, fit in small.fits.items():
        assert fit.headroom_bytes == find_gpu(name).usable_bytes - small.least_bytes
        assert fit.word == "fits"
    assert small.smallest_gpu == next(iter(small.fits))


def test_nothing_fits_is_null_and_a_sentence():
    made = run(model="shape:llama-2-70b", method="full", weights="fp32")
    assert made.smallest_gpu is None
    assert "none in the catalog" in format_forecast(made)


def test_sharding_divides_what_is_kept_and_gathers_what_works():
    whole = run(method="full", checkpointing=False)
    shard = run(method="full", checkpointing=False, gpus=4, sharding="fsdp")
    assert shard.parts["weights"] == pytest.approx(whole.parts["weights"] / 4, rel=1e-6)
    assert shard.parts["gathered_layers_and_buckets"] > 0
    assert shard.peak_bytes < whole.peak_bytes
    copies = run(method="full", checkpointing=False, gpus=4)
    assert copies.peak_bytes > whole.peak_bytes


def test_standard_job_counts_tokens_steps_and_dollars(small):
    job = small.jobs["packed"]
    assert job.tokens == int(52_002 * 3 * 127.5)
    assert small.jobs["padded"].tokens == 52_002 * 3 * 512
    assert job.steps == -(-job.tokens // 512)
    assert job.hours.mid == pytest.approx(job.steps * small.seconds_per_step.mid / 3600)
    assert job.usd is not None
    assert job.usd.mid == pytest.approx(job.hours.mid * 1.69)
    assert job.usd.low < job.usd.mid < job.usd.high


def test_no_offer_is_null_and_a_word():
    made = run(gpu="rtx3090-24gb")
    assert made.usd is None
    assert "no offer of this card" in format_forecast(made)


def test_the_same_job_costs_less_time_on_a_faster_card(small):
    assert run(gpu="h100-80gb").seconds_per_step.mid < small.seconds_per_step.mid


def test_efficiency_comes_from_measured_steps_of_the_same_card():
    gpu = find_gpu("a100-80gb")
    pairs = [("a100-80gb", 1.0, 2.0), ("a100-80gb", 1.0, 1.25), ("l4-24gb", 1.0, 9.0)]
    found = calibrate(pairs, gpu)
    assert (found.low, found.mid, found.high) == (0.5, 0.65, 0.8)
    assert found.source == "by 2 runs on NVIDIA A100 80GB SXM"
    assert "assumption" in calibrate(pairs[2:], gpu).source
    slow = Efficiency(low=0.1, mid=0.1, high=0.1, source="test")
    made = forecast(ForecastSettings(model=SMALL, method="full", seq_len=256), efficiency=slow)
    assert made.seconds_per_step.low == made.seconds_per_step.high


def test_cuda_terms_are_fitted_on_measured_trainings():
    peaks = [
        MeasuredPeaks(reserved_bytes=11 * GIB, process_bytes=p * GIB // 2) for p in (23, 24, 30)
    ]
    assert fit_cuda_terms({"l4-24gb": peaks}).context_bytes == GIB
    assert fit_cuda_terms({}) == CudaTerms()


def test_scripts_find_the_promised_keys(small):
    keys = set(json.loads(small.model_dump_json()))
    assert keys >= {
        "peak_bytes", "peak_stage", "parts", "trainable_params", "total_params", "adapter_bytes",
        "peak_allocated_bytes", "least_bytes",
        "checkpoint_bytes", "flops_per_step", "seconds_per_step", "usd", "fits", "smallest_gpu",
        "trace_seconds",
    }  # fmt: skip


def test_own_prices_reach_the_dollars():
    offers = [o.model_copy(update={"usd_per_gpu_hour": 1.0}) for o in load_prices()]
    made = forecast(ForecastSettings(model=SMALL, method="full", seq_len=256), prices=offers)
    assert made.usd is not None
    assert made.usd.mid == pytest.approx(made.jobs["packed"].hours.mid)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "shape:llama-2-13"}, "llama-2-13b"),
        ({"model": "llama-2-13b"}, "a model is hub:"),
        ({"model": "path:/nowhere"}, "config.json"),
        ({"model": "hub:nobody/nothing"}, "cannot be reached"),
        ({"method": "lorra"}, "lora"),
        ({"method": "base"}, "cannot be trained"),
        ({"seq_len": 8193}, "8192 positions"),
        ({"seq_len": 1}, "no next one to learn"),
        ({"method": "lora", "targets": ("query_key_value",)}, "no module of this model is named"),
        ({"gpu": "a100-90gb"}, "a100-80gb"),
        ({"sharding": "fsdp"}, "one card cannot be sharded"),
        ({"sharding": "fsdp", "gpus": 2, "optimizer": "paged-adamw-8bit"}, "paged"),
        ({"optimizer": "adam8bit"}, "adamw-8bit"),
    ],
)
def test_what_cannot_run_is_refused_in_one_message(changes, message):
    with pytest.raises(StudyError, match=message):
        run(**changes)


def test_mixed_precision_shards_are_fp32_and_gathered_layers_are_not():
    shared = {"method": "full", "gpus": 8, "sharding": "fsdp"}
    half, mixed = run(**shared), run(**shared, weights="fp32", master_weights=True)
    assert mixed.parts["weights"] == pytest.approx(2 * half.parts["weights"], rel=1e-6)
    gathered = "gathered_layers_and_buckets"
    assert mixed.parts[gathered] == half.parts[gathered]
    assert mixed.checkpoint_bytes == 2 * half.checkpoint_bytes


def test_the_settings_found_for_the_articles_figures_meet_them():
    from studylib.forecasting.article_forecasts import CASES, forecast_case

    words = (
        "full, fp32 shards, 8 cards with FSDP",
        "LoRA, bf16 weights, no checkpointing, 5 × 512",
        "QLoRA, checkpointing, 4 × 2048",
    )
    found = {case.words: case for case in CASES}
    for name in words:
        made = forecast_case(found[name])
        shown = made.settings.gpus * made.peak_bytes
        assert shown / 1e9 == pytest.approx(found[name].article_gb, rel=0.03)


def test_a_gpt2_is_forecast_in_4_bits_as_transformers_loads_it():
    """Its Conv1D layers are quantized too: 12 width² weights a layer, half a byte each."""
    from transformers import GPT2Config

    config = GPT2Config(n_layer=2, n_embd=128, n_head=4, vocab_size=512, n_positions=64)
    settings = ForecastSettings(model="path:gpt2", method="qlora", seq_len=64, weights="fp32")
    plain = settings.model_copy(update={"method": "lora"})
    quantized, whole = (forecast(each, config=config).parts for each in (settings, plain))
    assert quantized["quantization_constants"] > 0 == whole["quantization_constants"]
    four_bit = 2 * 12 * 128 * 128
    assert whole["weights"] - quantized["weights"] == pytest.approx(3.5 * four_bit, rel=0.01)


def test_an_encoder_is_refused_by_name():
    from transformers import T5Config

    with pytest.raises(
        StudyError, match="t5: transformers knows no causal language model of this type"
    ):
        forecast(ForecastSettings(model="path:t5", seq_len=64), config=T5Config())


def test_a_folder_s_config_is_enough_no_weights_are_read(tmp_path):
    from studylib.modelling.skeleton import shape_config

    shape_config("smollm2-135m").save_pretrained(tmp_path)
    assert run(model=f"path:{tmp_path}").parts == run().parts


def test_a_step_of_eight_passes_takes_eight_times_one_pass_and_one_update():
    one, eight = (run(accumulation=n) for n in (1, 8))
    passes = eight.flops_per_step / one.flops_per_step
    assert passes == pytest.approx(8, rel=0.01)
    assert 7 < eight.seconds_per_step.mid / one.seconds_per_step.mid <= 8
    # The job is the same: as many tokens, an eighth of the updates.
    assert eight.jobs["packed"].steps == -(-one.jobs["packed"].steps // 8)
    assert eight.jobs["packed"].hours.mid <= one.jobs["packed"].hours.mid
