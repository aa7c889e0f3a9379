"""Ask a model the questions, through lm-eval, and keep every answer.

Not covered: the tasks (studylib.scoring.tasks), comparing methods (studylib.core.stats).
"""

from __future__ import annotations

import functools
import hashlib
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import nn

from studylib.inputs.questions import question_id
from studylib.schema.profile import EvaluateSettings
from studylib.schema.records import Score, canonical
from studylib.scoring.tasks import build_tasks


class NotANumber(Exception):
    """A model's log-likelihoods choose nothing: a result without an accuracy, not a crash."""


@dataclass(frozen=True)
class Answers:
    """What a model answered: counts by task, every item, and how the prompts were read.

    items has the columns task, weights, subject, item, question, choices, answer, chosen, correct,
    loglikelihoods. chosen is -1 where all choices are equally likely. prompts_cut counts requests
    that were cut from the left to fit the context.
    """

    scores: list[Score]
    items: pd.DataFrame
    engine: str
    prompts_cut: int

    @property
    def undecided(self) -> int:
        """Items all of whose choices are equally likely, counted as wrong."""
        return int((self.items["chosen"] < 0).sum())

    def counts(self) -> dict[str, Any]:
        """What a record holds of the answers."""
        return {
            "scores": tuple(self.scores),
            "engine": self.engine,
            "prompts_cut": self.prompts_cut,
            "undecided": self.undecided,
        }

    def __add__(self, other: Answers) -> Answers:
        """Both together, this one's first; of the same questions by other weights."""
        items = pd.concat([self.items, other.items], ignore_index=True)
        cut = self.prompts_cut + other.prompts_cut
        return Answers(self.scores + other.scores, items, self.engine, cut)


def evaluate_model(
    model: nn.Module, tokenizer: Any, settings: EvaluateSettings, weights: str, lm: Any = None
) -> Answers:
    """Ask the questions, and those on what was known before. weights: which, in words. lm: what
    build_lm made of the model, where that is at hand.

    Raises NotANumber where the answers of one of the two sets choose nothing.
    """
    lm = build_lm(model, tokenizer) if lm is None else lm
    sources = {"questions": settings.questions, "retention": settings.retention}
    try:
        frames = [
            ask_questions(lm, task, source, settings).assign(weights=weights)
            for task, source in sources.items()
            if source
        ]
    except NotANumber as error:
        raise NotANumber(f"{weights}: {error}") from None
    items = pd.concat(frames, ignore_index=True)
    return Answers([score_items(frame) for frame in frames], items, engine_of(lm), lm.prompts_cut)


def engine_of(lm: Any) -> str:
    """How prompts were read, in words; to be asked after the first of them."""
    reason = lm.fallback_reason
    return "shared prefixes" if reason is None else f"lm-eval's own path: {reason}"


def build_lm(model: nn.Module, tokenizer: Any, batch_size: int = 8, stock: bool = False) -> Any:
    """lm-eval's view of a model in evaluation mode, scoring in float32, shared prefixes once.

    batch_size counts prompts, in lm-eval's own path only: stock, or a model that falls back to it.
    """
    from lm_eval.models.huggingface import HFLM

    from studylib.scoring.prefix_lm import PrefixLM

    model.eval()
    view = HFLM if stock else PrefixLM
    # lm-eval ties weights anew, which fails on trained embeddings that peft has wrapped and tied.
    model.tie_weights = lambda: None  # type: ignore[assignment]
    # "causal": by the configuration alone the decoders of BART and its kin pass for whole ones.
    lm = view(
        pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size,
        softmax_dtype=torch.float32,
    )  # fmt: skip
    del model.tie_weights
    # lm-eval draws its bars whatever the environment says; in a log they are noise.
    lm.loglikelihood = functools.partial(lm.loglikelihood, disable_tqdm=not sys.stderr.isatty())
    return lm


def ask_questions(lm: Any, task: str, source: str, settings: EvaluateSettings) -> pd.DataFrame:
    """All items of one set of questions, asked in one go; NotANumber where nothing is chosen."""
    import lm_eval

    tasks = build_tasks(source, settings)
    answered = lm_eval.evaluate(
        lm, tasks, limit=settings.limit, bootstrap_iters=0, log_samples=True
    )
    samples = [(subject, s) for subject in tasks for s in answered["samples"][subject]]
    chosen = choose_all([read_loglikelihoods(sample) for _, sample in samples])
    rows = [
        {"task": task, **read_sample(subject, sample, best)}
        for (subject, sample), best in zip(samples, chosen, strict=True)
    ]
    return pd.DataFrame(rows)


def choose_all(items: Sequence[Sequence[float]]) -> list[int]:
    """The likeliest choice of every item, -1 where all are equally likely.

    items: the log-likelihoods of each item's choices. Raises NotANumber where one of them is not
    finite, for then the model is broken and the rest of its answers mean nothing, and where no item
    is decided: the first choice, which a maximum takes then, would be right as often as A is.
    """
    broken = sum(not all(map(math.isfinite, values)) for values in items)
    if broken:
        raise NotANumber(
            f"{broken:,} of {len(items):,} questions have log-likelihoods that are not finite"
        )
    chosen = [likeliest_choice(values) for values in items]
    if chosen and max(chosen) < 0:
        raise NotANumber(f"all choices are equally likely in all of {len(items):,} questions")
    return chosen


def likeliest_choice(loglikelihoods: Sequence[float]) -> int:
    """The first of the likeliest choices, as lm-eval takes it; -1 where several are all equal."""
    best = max(loglikelihoods)
    if len(loglikelihoods) > 1 and min(loglikelihoods) == best:
        return -1
    return loglikelihoods.index(best)


def read_loglikelihoods(sample: dict[str, Any]) -> list[float]:
    """The log-likelihood of each choice of one of lm-eval's samples."""
    return [float(response[0]) for response in sample["filtered_resps"]]


def read_sample(subject: str, sample: dict[str, Any], chosen: int) -> dict[str, Any]:
    """One answered item. Where a document is not in MMLU's form, its prompt and choices are read
    from the requests that were made of it."""
    doc = sample["doc"]
    if not {"question", "choices", "answer"} <= doc.keys() or type(doc["answer"]) is not int:
        requests = sample["arguments"]
        doc = {
            "question": requests[0][0],
            "choices": [continuation for _, continuation in requests],
            "answer": int(sample["target"]),
        }
    return {
        "subject": subject,
        "item": question_id(doc),
        "question": doc["question"],
        "choices": list(doc["choices"]),
        "answer": int(doc["answer"]),
        "chosen": chosen,
        "correct": chosen >= 0 and bool(sample["acc"]),
        "loglikelihoods": read_loglikelihoods(sample),
        "prompt_sha256": sample["prompt_hash"],
    }


def score_items(items: pd.DataFrame) -> Score:
    """Counts of one task's items."""
    groups = items.groupby("subject")["correct"].agg(["size", "sum"])
    return Score(
        task=items["task"].iloc[0],
        weights=items["weights"].iloc[0],
        questions=len(items),
        correct=int(items["correct"].sum()),
        chance=float((1 / items["choices"].str.len()).mean()),
        by_subject={str(name): (int(n), int(right)) for name, n, right in groups.itertuples()},
    )


def hash_column(items: pd.DataFrame, columns: Iterable[str]) -> str:
    """One hash of some columns in order: which items, or which prompts, were asked."""
    return hashlib.sha256(canonical(items[list(columns)].values.tolist())).hexdigest()
