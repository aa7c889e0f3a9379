"""Ask a model the questions, through lm-eval, and keep every answer.

Not covered: the tasks (studylib.scoring.tasks), comparing methods (studylib.core.stats).
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import nn

from studylib.inputs.questions import question_id
from studylib.schema.profile import EvaluateSettings
from studylib.schema.records import Score, canonical
from studylib.scoring.tasks import build_tasks


@dataclass(frozen=True)
class Answers:
    """What a model answered: counts by task, every item, and how the prompts were read.

    items has the columns task, weights, subject, item, question, choices, answer, chosen, correct,
    loglikelihoods. prompts_cut counts requests that were cut from the left to fit the context.
    """

    scores: list[Score]
    items: pd.DataFrame
    engine: str
    prompts_cut: int

    def __add__(self, other: Answers) -> Answers:
        """Both together, this one's first; of the same questions by other weights."""
        items = pd.concat([self.items, other.items], ignore_index=True)
        cut = self.prompts_cut + other.prompts_cut
        return Answers(self.scores + other.scores, items, self.engine, cut)


def evaluate_model(
    model: nn.Module, tokenizer: Any, settings: EvaluateSettings, weights: str
) -> Answers:
    """Ask the questions, and those on what was known before. weights: which, in words."""
    lm = build_lm(model, tokenizer)
    sources = {"questions": settings.questions, "retention": settings.retention}
    frames = [
        ask(lm, task, source, settings).assign(weights=weights)
        for task, source in sources.items()
        if source
    ]
    reason = lm.fallback_reason
    engine = "shared prefixes" if reason is None else f"lm-eval's own path: {reason}"
    items = pd.concat(frames, ignore_index=True)
    return Answers([score_items(frame) for frame in frames], items, engine, lm.prompts_cut)


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
    lm = view(
        pretrained=model, tokenizer=tokenizer, batch_size=batch_size, softmax_dtype=torch.float32
    )
    del model.tie_weights
    # lm-eval draws its bars whatever the environment says; in a log they are noise.
    lm.loglikelihood = functools.partial(lm.loglikelihood, disable_tqdm=not sys.stderr.isatty())
    return lm


def ask(lm: Any, task: str, source: str, settings: EvaluateSettings) -> pd.DataFrame:
    """All items of one set of questions, asked in one go."""
    import lm_eval

    tasks = build_tasks(source, settings)
    answered = lm_eval.evaluate(
        lm, tasks, limit=settings.limit, bootstrap_iters=0, log_samples=True
    )
    rows = []
    for subject in tasks:
        for sample in answered["samples"][subject]:
            rows.append({"task": task, **read_sample(subject, sample)})
    return pd.DataFrame(rows)


def read_sample(subject: str, sample: dict[str, Any]) -> dict[str, Any]:
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
    loglikelihoods = [float(response[0]) for response in sample["filtered_resps"]]
    chosen = max(range(len(loglikelihoods)), key=loglikelihoods.__getitem__)
    return {
        "subject": subject,
        "item": question_id(doc),
        "question": doc["question"],
        "choices": list(doc["choices"]),
        "answer": int(doc["answer"]),
        "chosen": chosen,
        "correct": bool(sample["acc"]),
        "loglikelihoods": loglikelihoods,
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
