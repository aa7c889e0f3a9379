"""Score the same lm-eval tasks with two model wrappers in one process; say how far they differ.

Why: a faster way of scoring is worth nothing if it scores something else. Both sides are timed
over the same call, from tokenised requests to log-likelihoods (`_loglikelihood_tokens`: forward
passes and scoring), in turns stock, ours, stock, ours, so that a busy machine slows both.
Not covered: tasks that generate text or measure perplexity.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from studylib.core.errors import StudyError
from studylib.scoring.evaluate import choose_all


@dataclass(frozen=True)
class Comparison:
    """Stock against ours: counts, seconds summed over the rounds, natural-log differences."""

    items: int
    requests: int
    rounds: int
    time_ratio: float
    stock_model_seconds: float
    our_model_seconds: float
    max_abs_loglikelihood_difference: float
    greedy_flags_changed: int
    answers_changed: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values under the field names, ready for JSON."""
        return asdict(self)


class ModelClock:
    """Seconds spent in a model wrapper's scoring of tokenised requests."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def attach(self, lm: Any) -> Iterator[None]:
        """Time every outermost scoring call of lm while the context is open."""
        score = lm._loglikelihood_tokens

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            answers = score(*args, **kwargs)
            self.seconds += time.perf_counter() - start
            return answers

        lm._loglikelihood_tokens = timed
        try:
            yield
        finally:
            del lm._loglikelihood_tokens


def compare(
    make_stock: Callable[[], Any],
    make_ours: Callable[[], Any],
    task_dict: dict[str, Any],
    limit: int | None = None,
    rounds: int = 1,
) -> Comparison:
    """Evaluate the tasks with both wrappers, rounds times in turn, and compare item by item.

    make_stock, make_ours: build lm-eval models on the CPU or on a device (there, scoring ends with
    a copy to the host, so the clock needs no extra synchronisation). task_dict: name to lm-eval
    task, as `lm_eval.evaluator.evaluate` takes it. limit: items of each task. Raises StudyError
    for tasks without log-likelihoods, NotANumber where a wrapper's answers choose nothing.
    """
    if rounds < 1:
        raise StudyError(f"rounds={rounds}", "must be 1 or more", "Give a positive number.")
    stock, ours = make_stock(), make_ours()
    stock_clock, our_clock = ModelClock(), ModelClock()
    pairs = []
    for _ in range(rounds):
        stock_items = evaluate_items(stock, task_dict, limit, stock_clock)
        our_items = evaluate_items(ours, task_dict, limit, our_clock)
        pairs += list(zip(stock_items, our_items, strict=True))
    answers = [(a, b) for left, right in pairs for a, b in zip(left[0], right[0], strict=True)]
    return Comparison(
        items=len(pairs) // rounds,
        requests=len(answers) // rounds,
        rounds=rounds,
        time_ratio=stock_clock.seconds / our_clock.seconds,
        stock_model_seconds=stock_clock.seconds,
        our_model_seconds=our_clock.seconds,
        max_abs_loglikelihood_difference=max(abs(a[0] - b[0]) for a, b in answers),
        greedy_flags_changed=sum(a[1] != b[1] for a, b in answers),
        answers_changed=sum(left[1:] != right[1:] for left, right in pairs),
    )


def evaluate_items(
    lm: Any, task_dict: dict[str, Any], limit: int | None, clock: ModelClock
) -> list[tuple[list[tuple[float, bool]], int, dict[str, Any]]]:
    """Score all items: (log-likelihood, is greedy) by choice, the best choice, accuracies.

    Raises NotANumber where the answers choose nothing.
    """
    from lm_eval.evaluator import evaluate

    with clock.attach(lm):
        results = evaluate(lm=lm, task_dict=task_dict, limit=limit, bootstrap_iters=0)
    items = []
    for task, samples in sorted(results["samples"].items()):
        for sample in sorted(samples, key=lambda sample: (sample["doc_id"], sample["filter"])):
            answers = [responses[0] for responses in sample["resps"]]
            if not all(isinstance(answer, tuple) and len(answer) == 2 for answer in answers):
                raise StudyError(task, "gives no log-likelihoods", "Compare multiple-choice tasks.")
            # Accuracies follow from the answer (acc_norm from another one than the best); metrics
            # that are functions of the log-likelihoods themselves would differ by rounding.
            accuracies = {name: sample[name] for name in sample["metrics"] if name[:3] == "acc"}
            items.append((answers, accuracies))
    chosen = choose_all([[value for value, _ in answers] for answers, _ in items])
    return [(answers, best, rest) for (answers, rest), best in zip(items, chosen, strict=True)]
