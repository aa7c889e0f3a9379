"""What full fine-tuning stands on: the checkpoint, attention, packing, the loss, scoring, memory.

Each column compares the study's own path with a reference that does not take it
(studylib.checking.model_subject).

Not covered: adapters and 4-bit weights (studylib.checking.adapter_columns).
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import torch

from studylib.checking.model_subject import (
    EXACT,
    RANK,
    Subject,
    alone,
    apart,
    checked_spec,
    hand_gradients,
    hand_loss,
    judged_cell,
    or_endless,
    parse_tried_method,
    relative_off,
    silence_settings,
    training_mode,
)
from studylib.core.errors import StudyError
from studylib.forecasting.forecast import ForecastSettings, forecast
from studylib.modelling.chunked_loss import install_chunked_loss
from studylib.modelling.methods import attach
from studylib.modelling.skeleton import read_config
from studylib.schema.methods import ADAPTER, WHOLE
from studylib.schema.model_report import Cell
from studylib.schema.settings import TrainSettings
from studylib.scoring.evaluate import build_lm
from studylib.training.train import PackedCollator, StepLog, train_model

LOSS_LIMIT = 2e-5  # relative; float32 over some hundred tokens gives 1e-7 to 1e-6
GRADIENT_LIMIT = 1e-3  # relative, of a gradient or its norm
FORECAST_LIMIT = 0.02
ROWS_A_STEP = 2


def loads_column(subject: Subject) -> Cell:
    loaded = subject.opened()
    logits = alone(loaded.model.eval(), subject.examples[0]["input_ids"])
    if not logits.isfinite().all():
        return Cell(text="not a number", fault="its logits are not numbers")
    off = apart(logits, alone(subject.reference[0], subject.examples[0]["input_ids"]))
    fault = f"its logits differ from transformers' own by {off:.2g}"
    return judged_cell(off <= EXACT, "yes", {"logits": off}, fault, wrong="other")


def whole_column(subject: Subject) -> Cell:
    info = subject.reference[1]
    loads = (subject.opened(), subject.load())
    first, second = (dict(loaded.model.named_parameters()) for loaded in loads)
    found = {
        "missing": sorted(info["missing_keys"]),
        "of another shape": sorted(str(key[0]) for key in info.get("mismatched_keys") or ()),
        "differ between two loads": sorted(
            name for name in first if not torch.equal(first[name], second[name])
        ),
    }
    figures = {words: len(names) for words, names in found.items()}
    fault = next((f"{len(n)} tensors {words}: {n[0]}" for words, n in found.items() if n), "")
    return judged_cell(not fault, "yes", figures, fault, wrong="no")


def attention_column(subject: Subject) -> Cell:
    loaded = subject.opened()
    config: Any = loaded.model.config
    used = config._attn_implementation
    reason = loaded.attention_reason
    if loaded.attention != used:
        fault = f"{used}, though the study says {loaded.attention}"
        return Cell(text="other", note=fault, fault=fault)
    return Cell(text=used, note=reason)


def causal_column(subject: Subject) -> Cell:
    model = subject.opened().model
    ids = subject.examples[0]["input_ids"]
    keep = len(ids) // 2
    other = ids[:keep] + subject.examples[1]["input_ids"][: len(ids) - keep]
    with torch.no_grad():
        off = apart(alone(model, other)[:keep], alone(model, ids)[:keep])
    fault = "a token sees those that come after it"
    return judged_cell(off <= EXACT, "yes", {"std": off}, fault, wrong="no")


def packing_column(subject: Subject) -> Cell:
    """Every example of every row against itself alone, by the study's collator and model."""
    loaded = subject.opened()
    model, worst = loaded.model.eval(), 0.0
    with torch.no_grad():
        for row in subject.rows:
            batch = PackedCollator()([row])
            batch.pop("labels")
            batch = {name: part.to(model.device) for name, part in batch.items()}
            logits, start = model(**batch).logits[0].float(), 0
            for example in row:
                length = len(example["input_ids"])
                wanted = alone(subject.reference[0], example["input_ids"])
                worst = max(worst, apart(logits[start : start + length], wanted))
                start += length
    reason = loaded.packing_reason
    text = "packed" if reason is None else "one by one"
    fault = f"an example's logits move by {worst:.2g} standard deviations in a row of several"
    return judged_cell(worst <= EXACT, text, {"std": worst}, fault, f"{text}, wrong", reason)


def trained_by(subject: Subject) -> str:
    """All weights of a small model; of a large one, whose states have no room, a LoRA."""
    return WHOLE if subject.small else ADAPTER


@functools.lru_cache(maxsize=1)  # two columns read the same two steps
def train_steps(subject: Subject) -> StepLog:
    """Two steps of the study's own training, at a rate that leaves the weights where they are, so
    that every step's loss is the first's."""
    method, log = trained_by(subject), StepLog()
    recipe = TrainSettings(steps=2, seq_len=80, accumulation=ROWS_A_STEP)
    spec = checked_spec(str(subject.ref), parse_tried_method(method), recipe, 1e-12, "check")
    model = attach(subject.load(method).model, spec.method, spec.seed)
    with tempfile.TemporaryDirectory() as folder:
        train_model(model, subject.data, spec, Path(folder), log, checkpoints=False)
    return log


def loss_column(subject: Subject) -> Cell:
    """Both steps' loss, and for a model whose gradients have room their norm."""
    rows = train_steps(subject).rows
    model, off, norm = subject.reference[0], 0.0, 0.0
    for step, row in enumerate(rows):
        part = subject.rows[step * ROWS_A_STEP : (step + 1) * ROWS_A_STEP]
        examples = [example for one in part for example in one]
        with torch.no_grad():
            off = max(off, relative_off(row["loss"], hand_loss(model, examples).item()))
        if subject.small:
            wanted = total_norm(hand_gradients(model, examples))
            norm = max(norm, relative_off(row["grad_norm"], wanted))
    fault = ""
    # transformers logs a loss rounded to five digits or so; what is wrong is off by more.
    if off > LOSS_LIMIT:
        fault = f"the training loss is {off:.2g} off, relative"
    elif norm > GRADIENT_LIMIT:
        fault = f"the gradient's norm is {norm:.2g} off, relative"
    return judged_cell(not fault, "exact", {"loss": off, "gradient norm": norm}, fault, "wrong")


def total_norm(gradients: dict[str, torch.Tensor]) -> float:
    return sum(g.double().square().sum().item() for g in gradients.values()) ** 0.5


def chunked_column(subject: Subject) -> Cell:
    """One row of one example, so that packing plays no part. A refusal is an answer."""
    model: Any = subject.load().model
    example = subject.rows[0][0]
    try:
        install_chunked_loss(model)
    except StudyError as error:
        return Cell(text="refused", note=error.rule)
    ids = torch.tensor([example["input_ids"]], device=model.device)
    labels = torch.tensor([example["labels"]], device=model.device)
    reference = subject.reference[0]
    with training_mode(model):
        model.zero_grad()
        loss = model(input_ids=ids, labels=labels).loss
        off = relative_off(loss.item(), hand_loss(reference, [example]).item())
        worst = 0.0
        if subject.small:
            loss.backward()
            wanted = hand_gradients(reference, [example])
            named = dict(model.named_parameters())
            scale = total_norm(wanted)
            for name, gradient in wanted.items():
                found = named[name].grad
                found = torch.zeros_like(gradient) if found is None else found
                off_by = (found - gradient.to(found.device)).norm().item() / scale
                worst = max(worst, or_endless(off_by))
    fault = f"its loss is {off:.2g} off, a gradient {worst:.2g}, relative"
    holds = off <= LOSS_LIMIT and worst <= GRADIENT_LIMIT
    return judged_cell(holds, "exact", {"loss": off, "worst gradient": worst}, fault, "wrong")


def prefixes_column(subject: Subject) -> Cell:
    """Log-likelihoods of made requests that share contexts, against each prompt alone."""
    loaded = subject.opened()
    lm = build_lm(loaded.model, loaded.tokenizer)
    contexts = [example["input_ids"][:18] for example in subject.examples[:2]]
    endings = [example["input_ids"][:size] for size, example in enumerate(subject.examples[2:6], 1)]
    requests = [(("", ""), context, ending) for context in contexts for ending in endings]
    found = [answer[0] for answer in lm._loglikelihood_tokens(requests, disable_tqdm=True)]
    worst = 0.0
    with torch.no_grad():
        for (_, context, ending), answer in zip(requests, found, strict=True):
            logits = alone(subject.reference[0], context + ending)[len(context) - 1 : -1]
            picked = logits.double().log_softmax(-1).gather(-1, torch.tensor(ending)[:, None])
            worst = max(worst, or_endless(abs(picked.sum().item() - answer) / (10 + abs(answer))))
    reason = lm.fallback_reason
    text = "shared" if reason is None else "own path"
    fault = f"log-likelihoods are {worst:.2g} off those of each prompt alone, relative"
    return judged_cell(worst <= EXACT, text, {"relative": worst}, fault, f"{text}, wrong", reason)


def forecast_column(subject: Subject) -> Cell:
    """The peak of live tensors of the second step of a real training against the trace.

    Experts multiply in bf16 alone where no tensor is real: such a kind is traced as on a card.
    """
    lengths = [sum(len(e["input_ids"]) for e in row) for row in subject.rows[ROWS_A_STEP:]]
    settings = ForecastSettings(
        model=str(subject.ref), method=trained_by(subject), rank=RANK, seq_len=max(lengths),
        masked=True, accumulation=ROWS_A_STEP, weights="fp32", autocast=False,
        optimizer="adamw-foreach", checkpointing=False, kernels="cpu",
    )  # fmt: skip
    config = read_config(subject.ref)
    silence_settings(config)  # the counted step has no dropout either
    try:
        traced = forecast(settings, config=config)
    except StudyError as error:
        note = error.rule.splitlines()[0]
        for_a_card = {"kernels": "cuda", "weights": "bf16", "autocast": True, "masked": False}
        try:
            forecast(settings.model_copy(update=for_a_card), config=config)
        except StudyError:
            return Cell(text="none", note=note)
        return Cell(text="a card's alone", note=note)
    counted = train_steps(subject).memory.get("live_tensor_peak_bytes")
    if counted is None:
        return Cell(text="traced", figures={"seconds": traced.trace_seconds})
    off = traced.peak_bytes / counted - 1
    text = f"within {FORECAST_LIMIT:.0%}" if abs(off) <= FORECAST_LIMIT else f"{off:+.0%}"
    return Cell(text=text, figures={"peak": off, "seconds": traced.trace_seconds})
