"""One training path: packed examples apart, only answers learned, a kill costs nothing."""

from __future__ import annotations

import math

import pytest
import torch
from accelerate.utils import AutocastKwargs
from families import save_family
from small_runs import small_run
from transformers import AutoModelForCausalLM

from studylib.forecasting.job_forecast import Machine, job_settings, trace_once
from studylib.inputs.data import IGNORED, TrainingData, prepare_data
from studylib.modelling import chunked_loss, weights
from studylib.modelling.methods import attach
from studylib.modelling.models import load_model
from studylib.modelling.packing import probe_packing
from studylib.schema.profile import ModelRef
from studylib.training.checkpoints import newest_checkpoint
from studylib.training.train import (
    Diverged,
    PackedCollator,
    StepLog,
    summarise_steps,
    train_model,
)


def make_spec(folder, method="full", rate=1e-3, **train):
    return small_run(f"path:{folder}", method, rate, **train)


def prepare(spec):
    loaded = load_model(spec.model_ref, spec.method, "fp32")
    model = attach(loaded.model, spec.method, spec.seed)
    return model, prepare_data(spec.data, spec.train, loaded.tokenizer, spec.seed)


def state_of(model):
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def summed_loss(model, batch):
    count = int((batch["labels"][:, 1:] != IGNORED).sum())
    return float(model(**batch).loss) * count, count


@pytest.mark.parametrize("one_row", [False, True])
def test_packed_examples_do_not_see_each_other(tiny_folder, one_row):
    spec = make_spec(tiny_folder)
    model, data = prepare(spec)
    rows = [data.rows[0], data.rows[1][:2]]  # of unequal length
    assert len(rows[0]) > 3
    model.eval()
    model.config.use_cache = False
    with torch.no_grad():
        packed = PackedCollator(one_row)(rows)
        logits = model(input_ids=packed["input_ids"], position_ids=packed["position_ids"]).logits
        assert len(logits) == (1 if one_row else 2)
        seen = [[example for row in rows for example in row]] if one_row else rows
        for row, found in zip(seen, logits, strict=True):
            start = 0
            for example in row:
                alone = model(input_ids=torch.tensor([example["input_ids"]])).logits[0]
                end = start + len(example["input_ids"])
                assert torch.allclose(found[start:end], alone, atol=5e-6)
                start = end


def test_what_fills_up_a_short_row_teaches_nothing(tiny_folder):
    _, data = prepare(make_spec(tiny_folder))
    rows = [data.rows[0], data.rows[1][:1]]
    apart, together = PackedCollator()(rows), PackedCollator(one_row=True)(rows)
    assert apart["input_ids"].shape[0] == 2
    taught = [batch["labels"][batch["labels"] != IGNORED].tolist() for batch in (apart, together)]
    assert taught[0] == taught[1]


def test_packed_loss_is_the_mean_over_the_answers_of_separate_passes(tiny_folder):
    spec = make_spec(tiny_folder)
    model, data = prepare(spec)
    model.eval()
    model.config.use_cache = False
    with torch.no_grad():
        total, count = summed_loss(model, PackedCollator()([data.rows[0]]))
        parts = [
            summed_loss(model, {k: torch.tensor([v]) for k, v in example.items()})
            for example in data.rows[0]
        ]
    assert count == sum(n for _, n in parts)
    assert total == pytest.approx(sum(loss for loss, _ in parts), rel=1e-5)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_training_itself_keeps_packed_examples_apart(tiny_folder, tmp_path, method):
    """The first step's loss is that of its examples passed one by one, before any update."""
    spec = make_spec(tiny_folder, method, steps=1)
    model, data = prepare(spec)
    model.eval()
    with torch.no_grad():
        parts = [
            summed_loss(model, {k: torch.tensor([v]) for k, v in example.items()})
            for row in data.rows
            for example in row
        ]
    log = StepLog()
    train_model(model, data, spec, tmp_path, log)
    separate = sum(loss for loss, _ in parts) / sum(n for _, n in parts)
    assert log.rows[0]["loss"] == pytest.approx(separate, rel=1e-4)


def test_prompt_tokens_are_not_learned(tiny_folder):
    _, data = prepare(make_spec(tiny_folder))
    for row in data.rows:
        for example in row:
            learned = [label for label in example["labels"] if label != IGNORED]
            assert 0 < len(learned) < len(example["labels"])
            assert example["input_ids"][-len(learned) :] == learned


def test_accumulation_gives_the_weights_of_one_larger_batch(tiny_folder, tmp_path):
    states = []
    for accumulation, micro_batch in ((2, 1), (1, 2)):
        spec = make_spec(tiny_folder, accumulation=accumulation, micro_batch=micro_batch, steps=3)
        model, data = prepare(spec)
        train_model(model, data, spec, tmp_path / f"a{accumulation}", StepLog())
        states.append(state_of(model))
    for name in states[0]:
        assert torch.allclose(states[0][name], states[1][name], atol=2e-5), name


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_resumed_training_ends_with_the_weights_of_an_unbroken_one(tiny_folder, tmp_path, method):
    class Killed(Exception):
        pass

    def kill(row):
        if row["step"] == 5:
            raise Killed

    spec = make_spec(tiny_folder, method)
    model, data = prepare(spec)
    unbroken = StepLog()
    train_model(model, data, spec, tmp_path / "whole", unbroken)
    expected = state_of(model)

    model, data = prepare(spec)
    log = StepLog()
    with pytest.raises(Killed):
        train_model(model, data, spec, tmp_path / "killed", log, on_step=kill)
    model, data = prepare(spec)
    train_model(model, data, spec, tmp_path / "killed", log)
    assert log.rows[4]["step_in_session"] == 1  # it went on after step 4
    resumed = state_of(model)
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)
    assert [row["loss"] for row in log.rows] == [row["loss"] for row in unbroken.rows]
    assert [row["step"] for row in log.rows] == [1, 2, 3, 4, 5, 6]


def test_rows_filled_up_to_one_length_teach_the_same(tiny_folder):
    """A card's attention is planned anew for every length, inside the steps that are timed."""
    model, data = prepare(make_spec(tiny_folder, seq_len=100, steps=4))
    plain, filled = PackedCollator(), PackedCollator(multiple=128)
    lengths = {plain([row])["input_ids"].shape[1] for row in data.rows}
    assert len(lengths) > 1 and max(lengths) <= 100
    assert {filled([row])["input_ids"].shape for row in data.rows} == {(1, 128)}
    for row in data.rows:
        with torch.no_grad():
            (a, count), (b, same) = (summed_loss(model, c([row])) for c in (plain, filled))
        assert count == same and a == pytest.approx(b, rel=1e-6)


@pytest.mark.parametrize(("every", "expected"), [(2, [2]), (4, []), (100, [])])
def test_the_last_step_writes_no_checkpoint(tiny_folder, tmp_path, every, expected):
    """Nothing goes on from it; three times the weights on the disk, on the clock of training."""
    spec = make_spec(tiny_folder, steps=4, checkpoint_every=every)
    model, data = prepare(spec)
    saved: list[int] = []
    train_model(model, data, spec, tmp_path, StepLog(), on_save=saved.append)
    assert saved == expected
    assert len(list(tmp_path.glob("checkpoint-*"))) == len(expected)


def test_half_written_checkpoint_is_not_resumed_from(tmp_path):
    for step, whole in ((2, True), (4, False)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if whole:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    assert newest_checkpoint(tmp_path, logged_steps=4).name == "checkpoint-2"
    assert newest_checkpoint(tmp_path, logged_steps=1) is None
    assert newest_checkpoint(tmp_path / "nowhere", logged_steps=4) is None


def test_every_method_sees_the_same_rows(tiny_folder):
    orders = {prepare(make_spec(tiny_folder, m))[1].order_sha256 for m in ("full", "lora", "qlora")}
    assert len(orders) == 1


def test_loss_that_is_not_finite_stops_the_run_as_a_result(tiny_folder, tmp_path):
    spec = make_spec(tiny_folder)
    model, data = prepare(spec)
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(math.nan)
    with pytest.raises(Diverged, match="step 1"):
        train_model(model, data, spec, tmp_path, StepLog())


def test_weights_that_the_last_update_broke_are_a_result_too(tiny_folder, tmp_path):
    """No loss is computed after it; the name of the tensor is said."""
    spec = make_spec(tiny_folder, steps=3)
    model, data = prepare(spec)
    broken = model.model.layers[1].mlp.up_proj.weight

    def break_last(row):
        if row["step"] == 3:
            with torch.no_grad():
                broken[5, 7] = math.inf

    log = StepLog()
    with pytest.raises(Diverged, match=r"last update left model.layers.1.mlp.up_proj.weight"):
        train_model(model, data, spec, tmp_path, log, on_step=break_last)
    assert len(log.rows) == 3


def test_a_gradient_that_is_not_finite_stops_the_run_at_its_step(tiny_folder, tmp_path):
    spec = make_spec(tiny_folder, steps=4)
    model, data = prepare(spec)
    log = StepLog()

    def break_gradient(gradient):
        return gradient * (math.inf if len(log.rows) == 1 else 1.0)

    model.model.norm.weight.register_hook(break_gradient)
    with pytest.raises(Diverged, match=r"gradient's norm is .* at step 2"):
        train_model(model, data, spec, tmp_path, log)
    assert len(log.rows) == 1


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_run_of_one_step_trains(tiny_folder, tmp_path, method):
    spec = make_spec(tiny_folder, method, steps=1, rate=1e-2)
    model, data = prepare(spec)
    before, log = state_of(model), StepLog()
    train_model(model, data, spec, tmp_path, log, checkpoints=False)
    moved = max((after - before[n]).abs().max() for n, after in state_of(model).items())
    assert moved == pytest.approx(1e-2, rel=1e-3)  # Adam's first step is the rate
    assert log.rows[0]["learning_rate"] == 1e-2


@pytest.mark.parametrize("loss", ["full", "chunked"])
def test_a_model_that_reads_one_by_one_does_so_in_training_and_after(tmp_path, loss):
    """Loss of the first step against each example alone; what training replaces comes back."""
    folder = save_family("opt", tmp_path / "opt")
    spec = make_spec(folder, "lora", steps=2, checkpointing=True, micro_batch=2, loss=loss)
    loaded, model = weights.bring_in(spec, None)
    assert "sees the one before it" in loaded.packing_reason
    data = prepare_data(spec.data, spec.train, loaded.tokenizer, spec.seed)
    single = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        parts = [
            summed_loss(single, {k: torch.tensor([v]) for k, v in example.items()})
            for row in data.rows[:4]
            for example in row
        ]
    log, given = StepLog(), loaded.model.forward
    train_model(model, data, spec, tmp_path / "work", log, checkpoints=False)
    separate = sum(loss for loss, _ in parts) / sum(n for _, n in parts)
    assert log.rows[0]["loss"] == pytest.approx(separate, rel=1e-5)
    assert loaded.model.forward == given
    assert probe_packing(loaded.model) is None


def test_training_lowers_the_loss(tiny_folder, tmp_path):
    spec = make_spec(tiny_folder, rate=5e-3, steps=20)
    model, data = prepare(spec)
    log = StepLog()
    train_model(model, data, spec, tmp_path, log)
    figures = summarise_steps(log)
    assert figures["last_loss"] < 0.8 * figures["first_loss"]


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_live_tensors_of_a_real_step_are_what_the_forecast_says(tmp_path, method):
    """The count in the study's own training against the trace without data, within 2 %."""
    from studylib.forecasting.forecast import ForecastSettings, forecast

    spec = make_spec("x", method, seq_len=256, accumulation=1, steps=2)
    spec = spec.model_copy(update={"model": "ladder:1.4m"})
    model, data = prepare(spec)
    length = sum(len(example["input_ids"]) for example in data.rows[1])
    log = StepLog()
    train_model(model, data, spec, tmp_path, log, checkpoints=False)
    traced = forecast(
        ForecastSettings(
            model="ladder:1.4m", method=method, rank=4, seq_len=length, masked=True,
            weights="fp32", autocast=False, optimizer="adamw-foreach", checkpointing=False,
            kernels="cpu",
        )
    )  # fmt: skip
    assert log.memory["live_tensor_peak_bytes"] == pytest.approx(traced.peak_bytes, rel=0.02)


def test_autocast_keeps_no_copies_of_the_weights(tmp_path, monkeypatch):
    """In bf16 they would be half of the fp32 weights, all at once at the end of a forward."""
    spec = make_spec("x", seq_len=64, steps=2, dtype="bf16", master_weights=True,
                     checkpointing=True, loss="chunked")  # fmt: skip
    spec = spec.model_copy(update={"model": "ladder:1.4m"})
    peaks = {}
    for cached in (False, True):
        if cached:
            monkeypatch.setattr(
                "accelerate.utils.AutocastKwargs",
                lambda cache_enabled: AutocastKwargs(cache_enabled=True),
            )
        model, data = prepare(spec)
        log = StepLog()
        train_model(model, data, spec, tmp_path / str(cached), log, checkpoints=False)
        peaks[cached] = log.memory["live_tensor_peak_bytes"]
    here = Machine(gpu=None, cards=0, memory_bytes=0)
    traced = trace_once(job_settings(spec, here), here=True)
    assert peaks[False] == pytest.approx(traced.peak_bytes, rel=0.01)
    # 2.8 MB of copies; without them the peak lies elsewhere, 2.3 MB higher than it would there.
    assert peaks[True] > peaks[False] + 400_000


def test_clean_step_time_leaves_out_each_sessions_first_steps():
    rows = [
        {"step": s, "step_in_session": n, "step_seconds": t, "tokens": 100, "loss": 1.0,
         "optimizer_seconds": 0.5, "data_seconds": 0.1 * n}
        for s, n, t in ((1, 1, 9.0), (2, 2, 9.0), (3, 3, 9.0), (4, 4, 1.0), (5, 1, 9.0),
                        (6, 2, 9.0), (7, 3, 9.0), (8, 4, 3.0))
    ]  # fmt: skip
    figures = summarise_steps(StepLog(rows))
    assert figures["clean_step_seconds"] == 2.0
    assert figures["clean_steps"] == 2
    assert figures["tokens_per_second"] == 50.0
    assert figures["optimizer_share"] == 0.25
    assert figures["data_share"] == pytest.approx(0.2)


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_chunked_loss_trains_to_the_same_weights(tiny_folder, tmp_path, monkeypatch, method):
    """Slices of 7 tokens: no slice ends where an example does."""
    monkeypatch.setattr(chunked_loss, "CHUNK_TOKENS", 7)
    states, losses = [], []
    for loss in ("full", "chunked"):
        spec = make_spec(tiny_folder, method, loss=loss, steps=3)
        model, data = prepare(spec)
        log = StepLog()
        train_model(model, data, spec, tmp_path / loss, log, checkpoints=False)
        states.append(state_of(model))
        losses.append([row["loss"] for row in log.rows])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    apart = torch.cat([(states[0][n] - states[1][n]).abs().flatten() for n in states[0]])
    # AdamW makes a step of any gradient: of one near zero, rounding decides which.
    assert (apart > 2e-5).float().mean() < 1e-3 and apart.max() < spec.learning_rate


def test_chunked_loss_never_holds_all_logits(tmp_path):
    """The ladder's 4,000 words over 1,024 tokens: the peak falls by a good part of them."""
    peaks = {}
    for loss in ("full", "chunked"):
        spec = make_spec("x", seq_len=1024, accumulation=1, steps=2, loss=loss)
        spec = spec.model_copy(
            update={"model": "ladder:0.4m", "data": spec.data.model_copy(update={"facts": None})}
        )
        model, data = prepare(spec)
        log = StepLog()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(chunked_loss, "CHUNK_TOKENS", 128)
            train_model(model, data, spec, tmp_path / loss, log, checkpoints=False)
        peaks[loss] = log.memory["live_tensor_peak_bytes"]
        tokens = sum(len(e["input_ids"]) for e in data.rows[1])
    logits_bytes = 4 * tokens * model.config.vocab_size
    assert peaks["full"] - peaks["chunked"] > logits_bytes


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_trained_model_is_scored_as_one_that_is_loaded_again(tiny_folder, tmp_path, method):
    """In bf16, where training multiplies under autocast and hands out fp32: bit for bit."""
    spec = make_spec(tiny_folder, method, dtype="bf16", loss="chunked", steps=2)
    loaded, model = weights.bring_in(spec, None)
    data = prepare_data(spec.data, spec.train, loaded.tokenizer, spec.seed)
    train_model(model, data, spec, tmp_path / "work", StepLog(), checkpoints=False)
    weights.settle_weights(spec, loaded.model, model)
    weights.keep(tmp_path, model)
    _, again = weights.bring_in(spec, weights.find_trained(tmp_path))
    ids = torch.tensor([data.rows[0][0]["input_ids"]])
    with torch.no_grad():
        a, b = (m.eval()(input_ids=ids).logits for m in (model, again))
    assert a.dtype == b.dtype and torch.equal(a, b)


def test_evaluation_after_chunked_training_still_gets_logits(tiny_folder, tmp_path):
    spec = make_spec(tiny_folder, loss="chunked", steps=1)
    model, data = prepare(spec)
    train_model(model, data, spec, tmp_path, StepLog(), checkpoints=False)
    model.eval()
    ids = torch.tensor([data.rows[0][0]["input_ids"]])
    assert model(input_ids=ids).logits.shape[:2] == ids.shape


def test_master_weights_are_trained_in_fp32_and_kept_in_bf16(tiny_folder, tmp_path):
    spec = make_spec(tiny_folder, dtype="bf16", master_weights=True, steps=2)
    assert spec.weights_dtype == "fp32"
    assert make_spec(tiny_folder, "lora", dtype="bf16", master_weights=True).weights_dtype == "bf16"
    loaded, model = weights.bring_in(spec, None)
    data = prepare_data(spec.data, spec.train, loaded.tokenizer, spec.seed)
    train_model(model, data, spec, tmp_path, StepLog(), checkpoints=False)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    weights.settle_weights(spec, loaded.model, model)
    weights.keep(tmp_path, model)
    _, again = weights.bring_in(spec, weights.find_trained(tmp_path))
    assert {p.dtype for p in again.parameters()} == {torch.bfloat16}
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
    )


@pytest.mark.parametrize("optimizer", ["adamw-8bit", "paged-adamw-8bit"])
def test_optimizers_in_8_bits_lower_the_loss(tiny_folder, tmp_path, optimizer):
    spec = make_spec(tiny_folder, rate=5e-3, steps=12, optimizer=optimizer)
    model, data = prepare(spec)
    log = StepLog()
    train_model(model, data, spec, tmp_path, log, checkpoints=False)
    assert summarise_steps(log)["last_loss"] < 0.9 * summarise_steps(log)["first_loss"]


@pytest.mark.parametrize("optimizer", ["adamw", "adamw-8bit"])
def test_states_of_a_real_optimizer_are_those_that_are_forecast(tmp_path, optimizer):
    """Byte for byte, with what Trainer asks of bitsandbytes: an embedding's states in fp32."""
    spec = make_spec("x", steps=2, optimizer=optimizer)
    spec = spec.model_copy(update={"model": "ladder:0.4m"})
    model, data = prepare(spec)
    log = StepLog()
    train_model(model, data, spec, tmp_path, log, checkpoints=False)
    here = Machine(gpu=None, cards=0, memory_bytes=0)
    traced = trace_once(job_settings(spec, here), here=True)
    assert log.memory["optimizer_states_bytes"] == traced.parts["optimizer_states"]


def test_examples_that_do_not_fit_are_counted(tiny_folder):
    short = prepare(make_spec(tiny_folder, seq_len=14))[1]
    long = prepare(make_spec(tiny_folder))[1]
    assert (long.left_out, long.cut) == (0, 0)
    assert short.left_out > 0 and short.cut > 0


def test_counts_are_of_what_the_run_sees(tiny_folder):
    spec = make_spec(tiny_folder)
    _, data = prepare(spec)
    assert isinstance(data, TrainingData)
    assert len(data.rows) == 12
    assert data.tokens_seen == sum(len(e["input_ids"]) for row in data.rows for e in row)
    assert ModelRef.parse(spec.model).kind == "path"


def test_tf32_is_as_asked_whatever_was_set_by_cublas_name():
    matmul = torch.backends.cuda.matmul
    try:
        matmul.allow_tf32 = True  # as accelerate does for a compiled model
        weights.multiply_in(False)
        assert matmul.fp32_precision == torch.backends.fp32_precision == "ieee"
        weights.multiply_in(True)
        assert matmul.fp32_precision == torch.backends.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = torch.backends.fp32_precision = "none"
