"""Every architecture trains by the mean over answer tokens, against the formula by hand."""

from __future__ import annotations

import pytest
import torch
from small_runs import small_run
from test_packing import LEAKING, PACKED, draw_rows, make
from transformers import BartConfig, BartForCausalLM

from studylib.inputs.data import TrainingData
from studylib.modelling.packing import keep_examples_apart
from studylib.modelling.token_loss import gives_token_mean
from studylib.training.train import StepLog, train_model


def make_bart():
    """Its own loss compares each token with itself and averages over each batch."""
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=200, d_model=32, decoder_layers=2, decoder_attention_heads=4,
        decoder_ffn_dim=64, max_position_embeddings=256, is_decoder=True, dropout=0.0,
        is_encoder_decoder=False, init_std=0.2, bos_token_id=None, eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    return BartForCausalLM(config).eval()


def loss_by_hand(model, rows):
    """Each example alone: the mean, in float64, of -log p over all answer tokens of the step."""
    parts = []
    with torch.no_grad():
        for example in (example for row in rows for example in row):
            logits = model(input_ids=torch.tensor([example["input_ids"]])).logits[0]
            for place in range(1, len(example["labels"])):
                if (label := example["labels"][place]) != -100:
                    parts.append(-logits[place - 1].double().log_softmax(-1)[label])
    return float(torch.stack(parts).mean())


def first_loss(model, rows, folder, **recipe):
    recipe = {"steps": 1, "seq_len": 64, "accumulation": 1, **recipe}
    spec = small_run("path:x", rate=1e-9, **recipe)
    data = TrainingData(rows, examples=4, sha256="", order_sha256="", drawn=4)
    log = StepLog()
    train_model(model.train(), data, spec, folder, log, checkpoints=False)
    return log.rows[0]["loss"]


STEPS = [(name, {"accumulation": 2}) for name in (*PACKED, *LEAKING, "bart")]
STEPS += [(name, {"micro_batch": 2}) for name in ("llama", "opt", "qwen3_next", "bart")]


@pytest.mark.parametrize(("name", "recipe"), STEPS)
def test_a_steps_loss_is_the_mean_over_its_answers(name, recipe, tmp_path):
    """Rows of unequal numbers of answers: a mean of their means would be another figure."""
    build = make_bart if name == "bart" else lambda: make(name)
    model = build()
    keep_examples_apart(model)
    rows = draw_rows()
    wanted = loss_by_hand(build(), rows)
    assert first_loss(model, rows, tmp_path, **recipe) == pytest.approx(wanted, rel=2e-5)


def test_chunks_of_a_model_with_another_loss_of_its_own_are_right_too(tmp_path):
    model, rows = make_bart(), draw_rows()
    keep_examples_apart(model)
    found = first_loss(model, rows, tmp_path, accumulation=2, loss="chunked")
    assert found == pytest.approx(loss_by_hand(make_bart(), rows), rel=2e-5)


def make_router():
    """Adds its router's loss, of each micro-batch, to that of the answers."""
    model = make("qwen3_moe")
    model.config.output_router_logits = True
    return model


@pytest.mark.parametrize("loss", ["full", "chunked"])
def test_a_routers_loss_does_not_grow_with_the_micro_batches(loss, tmp_path):
    rows, ids = draw_rows(), torch.arange(2, 30)[None]
    model = make_router()
    with torch.no_grad():
        assert model(input_ids=ids, labels=ids).aux_loss > 0
    keep_examples_apart(model)
    found = first_loss(model, rows, tmp_path, accumulation=2, loss=loss)
    assert found == pytest.approx(loss_by_hand(make("qwen3_moe"), rows), rel=2e-5)


def test_a_loss_of_a_models_own_is_told_from_the_mean_over_answers():
    assert gives_token_mean(make("llama"))
    assert not gives_token_mean(make_router())
    assert not gives_token_mean(make_bart())
