"""The self-check of a card: each check passes where all is well, and fails where something is not.

Everything that a CPU can do runs on it; NVML and CUDA's allocator are stood in for.
"""

from __future__ import annotations

import json
import os
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from fake_nvml import GIB, FakeCard, FakeNvml, make_mig_instance, refuse
from waiting import LONG_SECONDS

from studylib.checking import check_card, gpu_check
from studylib.checking.check_card import (
    BLOCK_BYTES,
    check_compile,
    check_memory,
    check_nvml,
    check_software,
)
from studylib.checking.check_kernels import check_four_bit_kernels, check_optimizers
from studylib.checking.check_packing import check_chunked_loss, check_packing
from studylib.checking.check_study import check_answers, check_forecast
from studylib.checking.gpu_check import (
    FAILURES,
    Check,
    list_checks,
    run_check,
    run_checks,
    write_checks,
)
from studylib.commands import cli
from studylib.core.errors import StudyError
from studylib.metering import allocator
from studylib.schema.checks import (
    CheckedFigure,
    CheckResult,
    Found,
    format_checks,
    format_result,
    read_checks,
)

CPU = torch.device("cpu")
MIB = 2**20


@pytest.fixture(autouse=True)
def no_card(monkeypatch):
    """The study's stages ask torch for a card themselves: here they find none."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(check_card, "HOLD_SECONDS", 0.12)


def figures(found: Found) -> dict[str, float | str]:
    return {figure.what: figure.value for figure in found.figures}


# NVML


def own_process(**changes) -> FakeCard:
    return FakeCard(processes=[(os.getpid(), GIB)], **changes)


def test_a_card_that_says_everything_passes():
    found = check_nvml(CPU, FakeNvml(own_process()))
    assert found.fault is None
    assert figures(found)["power in W"] == 200
    assert figures(found)["memory used by this process"] == GIB


@pytest.mark.parametrize(
    ("call", "field"),
    [
        ("nvmlDeviceGetMemoryInfo_v2", "used_bytes"),
        ("nvmlDeviceGetUtilizationRates", "utilisation_percent"),
        ("nvmlDeviceGetPowerUsage", "power_watts"),
        ("nvmlDeviceGetTotalEnergyConsumption", "energy"),
        ("nvmlDeviceGetTemperature", "temperature_celsius"),
        ("nvmlDeviceGetCurrentClocksThrottleReasons", "throttle_bits"),
    ],
)
def test_each_missing_field_is_named_with_the_reason_of_nvml(call, field):
    card = own_process(refusals={call: refuse("NO_PERMISSION")})
    fault = check_nvml(CPU, FakeNvml(card)).fault
    assert fault == f"no {field}: NVML: {refuse('NO_PERMISSION')}"


def test_a_mig_instance_says_that_it_is_one():
    card = FakeCard(mig=True, instances=[make_mig_instance()])
    found = check_nvml(CPU, FakeNvml(card))
    assert "(a MIG instance)" in figures(found)["card"]
    assert "no power_watts: NVML: Not Supported (a MIG instance)" in found.fault


def test_a_container_that_hides_the_process_is_told_but_no_fault():
    found = check_nvml(CPU, FakeNvml(FakeCard()))
    assert found.fault is None
    assert "container" in figures(found)["memory used by this process"]


def test_no_driver_is_a_fault_with_its_reason():
    found = check_nvml(CPU, FakeNvml(init_error=refuse("DRIVER_NOT_LOADED")))
    assert "Driver Not Loaded" in found.fault


# Memory


class FakeCuda:
    """torch.cuda's account of one card, and what NVML shows of it."""

    def __init__(self, card: FakeCard, reserved_share=1.0, seen_share=1.0):
        self.card, self.reserved_share, self.seen_share = card, reserved_share, seen_share
        self.held = 0

    def device_count(self):
        return 1

    def memory_allocated(self, _):
        return self.held

    max_memory_allocated = memory_allocated

    def max_memory_reserved(self, _):
        return int(self.held * self.reserved_share)

    def empty_cache(self):
        pass

    def reset_peak_memory_stats(self, _):
        pass

    def take(self, _device):
        cuda = self

        class Block:
            def __init__(self):
                self.move(1)

            def __del__(self):
                self.move(-1)

            def move(self, sign):
                cuda.held += sign * BLOCK_BYTES
                cuda.card.used_bytes += sign * int(BLOCK_BYTES * cuda.seen_share)

        return Block()


def memory_with(monkeypatch, context_bytes=GIB // 2, **shares) -> Found:
    card = FakeCard(used_bytes=context_bytes)
    cuda = FakeCuda(card, **shares)
    monkeypatch.setattr(allocator, "_live_cuda", lambda: cuda)
    return check_memory(CPU, FakeNvml(card), cuda.take)


def test_a_block_that_all_counters_see_passes_with_the_differences(monkeypatch):
    found = memory_with(monkeypatch)
    assert found.fault is None
    assert figures(found)["NVML by the meter, card"] == BLOCK_BYTES + GIB // 2
    assert figures(found)["NVML − reserved (context)"] == GIB // 2
    assert figures(found)["NVML grew by"] == BLOCK_BYTES


@pytest.mark.parametrize(
    ("broken", "fault"),
    [
        ({"seen_share": 0.0}, "NVML saw 0 MB more, torch reserved 537 MB"),
        ({"seen_share": 0.5, "context_bytes": 0}, "NVML shows less than torch reserves"),
        ({"reserved_share": 0.5}, "torch reserved is less than allocated"),
        ({"seen_share": 2.0}, "NVML saw 1,074 MB more"),
    ],
)
def test_a_counter_that_misses_the_block_fails(monkeypatch, broken, fault):
    assert fault in memory_with(monkeypatch, **broken).fault


def test_a_meter_without_nvml_fails_with_its_reason(monkeypatch):
    cuda = FakeCuda(FakeCard())
    monkeypatch.setattr(allocator, "_live_cuda", lambda: cuda)
    found = check_memory(CPU, FakeNvml(init_error=refuse("DRIVER_NOT_LOADED")), cuda.take)
    assert found.fault == "no NVML device: Driver Not Loaded"


# Versions, arithmetic, compiler


def test_arithmetic_here_passes_and_versions_are_told():
    found = check_software(CPU)
    assert found.fault is None
    assert figures(found)["torch"] == torch.__version__


def test_tf32_that_is_on_and_products_that_are_off_fail(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(fp32_precision="tf32"))
    right = torch.Tensor.__matmul__

    def rounded(left, other):  # as TF32 rounds: to 11 bits
        return right(left, other) * (1 + 2**-11) if left.dtype != torch.float64 else right(
            left, other
        )  # fmt: skip

    monkeypatch.setattr(torch.Tensor, "__matmul__", rounded)
    fault = check_software(CPU).fault
    assert "TF32 is on" in fault and "an fp32 product is off by 0.00049" in fault


def test_a_compiler_that_works_passes_and_one_that_cannot_fails(monkeypatch):
    assert check_compile(CPU, LONG_SECONDS).fault is None
    monkeypatch.setattr(check_card, "COMPILE_SCRIPT", "raise RuntimeError('no compiler')")
    assert check_compile(CPU).fault == "RuntimeError: no compiler"
    monkeypatch.setattr(check_card, "COMPILE_SCRIPT", "print(1.0, 0.5)")
    assert "differ from eager's by 0.5" in check_compile(CPU).fault


def test_a_compiler_that_hangs_is_stopped(monkeypatch):
    monkeypatch.setattr(check_card, "COMPILE_SCRIPT", "import time; time.sleep(60)")
    assert check_compile(CPU, limit_seconds=0.5).fault == "it did not end within 0 s"


# 4-bit kernels and optimizers


def test_4_bit_kernels_here_pass():
    found = check_four_bit_kernels(CPU)
    assert found.fault is None
    assert 0 < figures(found)["float32 backward after an evaluation"] < 1e-5
    assert 0 < figures(found)["bfloat16 forward before an evaluation"] < 2**-7


@pytest.fixture
def few_rows(monkeypatch):
    monkeypatch.setattr("studylib.checking.check_kernels.ROWS", (1, 7))


def test_a_4_bit_forward_that_is_1_percent_off_fails(monkeypatch, few_rows):
    from bitsandbytes.nn import Linear4bit

    right = Linear4bit.forward
    monkeypatch.setattr(Linear4bit, "forward", lambda self, x: right(self, x) * 1.01)
    fault = check_four_bit_kernels(CPU).fault
    assert re.search(r"bfloat16 forward before an evaluation is 0\.01\d? off", fault)


def test_a_backward_that_breaks_only_after_an_evaluation_fails(monkeypatch, few_rows):
    from bitsandbytes.nn import Linear4bit

    right = Linear4bit.forward

    def forward(self, rows):
        self.evaluated = getattr(self, "evaluated", False) or not self.training
        out = right(self, rows)
        if self.training and self.evaluated:
            return out.detach() + 0 * rows.sum()
        return out

    monkeypatch.setattr(Linear4bit, "forward", forward)
    fault = check_four_bit_kernels(CPU).fault
    assert "float32 backward after an evaluation is 1 off" in fault
    assert "before an evaluation" not in fault


def test_a_wrong_dequantization_cannot_hide_in_both_sides(monkeypatch, few_rows):
    import bitsandbytes.functional as bnb
    from bitsandbytes.nn import Linear4bit

    right, product = bnb.dequantize_4bit, Linear4bit.forward
    monkeypatch.setattr(bnb, "dequantize_4bit", lambda *words, **names: 2 * right(*words, **names))
    monkeypatch.setattr(Linear4bit, "forward", lambda self, x: 2 * product(self, x))
    fault = check_four_bit_kernels(CPU).fault
    assert "float32 weights against the originals is" in fault


def test_a_kernel_that_reads_wrong_where_rows_end_within_a_block_fails(monkeypatch, few_rows):
    from studylib.checking import check_kernels
    from studylib.modelling.four_bit import dequantize

    def wrong(layer):
        read = dequantize(layer)
        return read if read.shape[1] % 64 == 0 else read.flatten().roll(16).reshape(read.shape)

    monkeypatch.setattr(check_kernels, "dequantize", wrong)
    assert "float32 weights against the originals is" in check_four_bit_kernels(CPU).fault
    monkeypatch.setattr(check_kernels, "WIDTHS", ((512, 544),))
    assert check_four_bit_kernels(CPU).fault is None, "one width alone would not have shown it"


def test_optimizers_here_pass():
    found = check_optimizers(CPU)
    assert found.fault is None
    assert figures(found)["paged 8-bit AdamW, states"] == "uint8"


def test_an_optimizer_that_does_nothing_or_keeps_wide_states_fails(monkeypatch):
    from bitsandbytes import optim

    monkeypatch.setattr(optim.AdamW8bit, "step", lambda self: None)
    monkeypatch.setattr(optim, "PagedAdamW8bit", optim.AdamW32bit)
    fault = check_optimizers(CPU).fault
    assert "8-bit AdamW does not lower the loss" in fault
    assert "paged 8-bit AdamW keeps no 8-bit states" in fault


def test_a_fused_optimizer_that_parts_from_foreach_fails(monkeypatch):
    class Drifting(torch.optim.AdamW):
        def __init__(self, weights, lr, **options):
            super().__init__(weights, lr=lr * (1.001 if options.get("fused") else 1), **options)

    monkeypatch.setattr(torch.optim, "AdamW", Drifting)
    assert "fused and foreach AdamW part by" in check_optimizers(CPU).fault


# Packing and chunked loss


def test_packed_examples_keep_apart_here_and_a_leak_would_show():
    found = check_packing(CPU, "sdpa", torch.float32)
    assert found.fault is None
    seen = figures(found)
    assert seen["packed against alone"] < 1e-5
    assert seen["one sequence against alone (control)"] > 0.5


def test_packed_examples_pass_in_bf16_too():
    assert check_packing(CPU, "sdpa", torch.bfloat16).fault is None


class LeakingCollator:
    """Examples flattened without restarting positions: each sees those before it."""

    def __init__(self, one_row=False, multiple=1):
        from transformers import DataCollatorWithFlattening

        self.flatten = DataCollatorWithFlattening()

    def __call__(self, rows):
        batch = dict(self.flatten([example for row in rows for example in row]))
        batch["position_ids"] = torch.arange(batch["input_ids"].shape[1])[None]
        return batch


@pytest.mark.parametrize(
    ("module", "fault"),
    [
        ("checking.check_packing", "packed logits are"),
        ("training.train", "the step's loss is"),
    ],
)
def test_examples_that_see_each_other_fail(monkeypatch, module, fault):
    monkeypatch.setattr(f"studylib.{module}.PackedCollator", LeakingCollator)
    found = check_packing(CPU, "sdpa", torch.float32)
    assert fault in found.fault and ";" not in found.fault


def test_a_comparison_that_could_not_see_a_leak_fails(monkeypatch):
    monkeypatch.setattr("studylib.checking.check_packing.packed_errors", lambda *_: (0.0, 0.0))
    assert "a leak would not show" in check_packing(CPU, "sdpa", torch.float32).fault


def test_chunked_loss_here_passes():
    found = check_chunked_loss(CPU)
    assert found.fault is None
    assert figures(found)["tokens"] > 2048


def test_a_chunked_loss_that_loses_its_last_slice_fails(monkeypatch):
    from studylib.modelling import chunked_loss

    right = chunked_loss.chunked_cross_entropy

    def short(hidden, labels, *others):
        return right(hidden[:, :2048], labels[:, :2048], *others)

    monkeypatch.setattr(chunked_loss, "chunked_cross_entropy", short)
    fault = check_chunked_loss(CPU).fault
    assert "the loss is" in fault and "gradients differ" in fault


# The study's own stages

SMALL = {"model": "ladder:0.4m", "seq_len": 256, "dtype": "fp32"}


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_forecasts_hold_here_with_live_tensors_in_place_of_a_card(method):
    found = check_forecast(CPU, method, **SMALL)
    assert found.fault is None
    errors = {f.what: f.value for f in found.figures if f.unit == "share"}
    assert set(errors) == {
        f"{what}, forecast's error"
        for what in ("live tensors", "weights and adapter", "optimizer states")
    }
    assert max(map(abs, errors.values())) < 0.02


def test_a_forecast_that_is_a_quarter_too_high_fails(monkeypatch):
    from studylib.checking import check_study

    right = check_study.trace_once

    def high(settings, here):
        made = right(settings, here)
        return made.model_copy(update={"peak_bytes": made.peak_bytes * 5 // 4})

    monkeypatch.setattr(check_study, "trace_once", high)
    assert "live tensors: the forecast is +25 % off" in check_forecast(CPU, "full", **SMALL).fault


def test_answers_are_those_of_lm_eval_here():
    found = check_answers(CPU, limit=4)
    assert found.fault is None
    assert figures(found)["questions"] == 64
    assert figures(found)["lm-eval's time over ours"] > 0


def test_answers_that_are_off_fail_and_so_does_a_fallback(monkeypatch):
    from studylib.scoring.prefix_lm import PrefixLM

    right = PrefixLM._score

    def off(self, requests, budget, show_progress):
        answers = right(self, requests, budget, show_progress)
        return [(-value, top) for value, top in answers]

    monkeypatch.setattr(PrefixLM, "_score", off)
    assert "prefixes are not shared" in check_answers(CPU, limit=2).fault
    monkeypatch.setattr(PrefixLM, "_probe", lambda self, requests: None)
    fault = check_answers(CPU, limit=2).fault
    assert "answers changed" in fault and "a log-likelihood differs by" in fault


# The whole


def passing(_device):
    return Found(figures=(CheckedFigure(what="error", value=0.5, unit="share"),))


def raising(error):
    def check(_device):
        raise error

    return check


def test_a_check_that_raises_fails_with_its_reason_and_the_next_goes_on():
    checks = [
        Check("one", "a rule", raising(torch.OutOfMemoryError("no memory\nmore"))),
        Check("two", "a | rule", passing),
    ]
    said: list[str] = []
    found = run_checks(CPU, checks, said.append)
    assert [result.passed for result in found.results] == [False, True]
    assert found.results[0].fault == "OutOfMemoryError: no memory"
    assert not found.passed
    assert said[0].startswith("FAIL  one") and said[1].startswith("pass  two")
    assert "error: +50.0 %" in said[1]


@pytest.mark.parametrize("kind", FAILURES, ids=lambda kind: kind.__name__)
def test_errors_of_kernels_libraries_and_drivers_are_failed_checks(kind):
    error = StudyError("a", "b", "c") if kind is StudyError else kind("why")
    result = run_check(Check("one", "a rule", raising(error)), CPU)
    assert not result.passed and kind.__name__ in result.fault


def test_a_bug_in_a_check_is_no_failed_check():
    with pytest.raises(KeyError):
        run_check(Check("one", "a rule", raising(KeyError("bug"))), CPU)


def test_record_is_sealed_and_its_table_has_a_row_for_each_check(tmp_path):
    checks = [
        Check("one", "a rule", raising(RuntimeError("why"))),
        Check("two", "a | rule", passing),
    ]
    found = run_checks(CPU, checks, lambda _: None)
    table = write_checks(tmp_path, found)
    date = found.environment.started_at[:10]
    assert date in table.name and table.name.startswith("cpu-")
    text = table.read_text(encoding="utf-8")
    assert text.startswith(f"# 1 of 2 checks pass on {found.device}")
    assert "| two | pass | error +50.0 % | a \\| rule |" in text
    assert "**FAIL**: RuntimeError: why" in text
    record = table.with_suffix(".json")
    assert format_checks(read_checks(record)) == text
    content = json.loads(record.read_text(encoding="utf-8"))
    content["results"][0]["passed"] = True
    record.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(StudyError, match="changed after it was written"):
        read_checks(record)


def test_what_is_not_a_number_is_a_word_in_the_record():
    result = CheckResult(
        name="one", passed=False, rule="", seconds=0, fault="why",
        figures=(CheckedFigure(what="error", value=float("nan")),),
    )  # fmt: skip
    assert "error: not a number" in format_result(result)


def test_counts_are_whole_and_errors_keep_three_digits():
    values = (2278, 0, 123456.7, 0.0016789)
    texts = [CheckedFigure(what="", value=value).text for value in values]
    assert texts == ["2,278", "0", "123,457", "0.00168"]


def test_on_a_card_everything_is_checked_each_attention_that_is_present_too(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    names = [check.name for check in list_checks(torch.device("cuda", 0))]
    assert len(set(names)) == len(names)
    for name in ("NVML fields", "memory agreement", "4-bit kernels", "optimizers", "chunked loss",
                 "forecast, full", "forecast, lora", "forecast, qlora", "torch.compile",
                 "packed attention, sdpa, float32", "packed attention, flex_attention, bfloat16",
                 "packed attention, flash_attention_2, bfloat16"):  # fmt: skip
        assert name in names


# The command


def call(monkeypatch, *words) -> int:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    monkeypatch.setattr(sys, "argv", ["study", "gpu-check", *words])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_without_a_card_there_is_one_message_and_exit_2(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1
    assert "there is no CUDA card here" in err
    assert list(tmp_path.iterdir()) == []


def test_a_card_that_torch_cannot_use_is_named(monkeypatch):
    found = [{"name": "NVIDIA A100", "cuda_ordinal": 0}], None
    monkeypatch.setattr(check_card, "describe_devices", lambda: found)
    with pytest.raises(StudyError, match=r"NVML lists NVIDIA A100, but torch .* cannot use it"):
        check_card.require_card()


def test_of_several_cards_the_first_is_checked_and_no_other_is_trained_on(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    call(monkeypatch)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"


@pytest.mark.parametrize(("check", "code"), [(passing, 0), (raising(OSError("why")), 1)])
def test_exit_code_says_whether_all_checks_pass(monkeypatch, capsys, tmp_path, check, code):
    monkeypatch.setattr(check_card, "require_card", lambda: CPU)
    monkeypatch.setattr("studylib.metering.devices.refuse_busy_devices", lambda devices: None)
    monkeypatch.setattr(gpu_check, "list_checks", lambda device: [Check("one", "a rule", check)])
    assert call(monkeypatch, "--results", str(tmp_path)) == code
    tables = list((tmp_path / "gpu-check").glob("*.md"))
    assert len(tables) == 1
    out = capsys.readouterr().out
    assert out.splitlines()[-1].endswith(str(tables[0]))
    assert f"{1 - code} of 1 checks pass" in out
