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

from torch import nn

from studylib.core.errors import StudyError
from studylib.scoring.evaluate import choose_all


@dataclass(frozen=True)
class LmComparison:
    """Stock against ours: counts, seconds summed over the rounds, natural-log differences.

    time_ratio is of the clock's seconds, cpu_ratio of the processor's, which other work on the
    machine hardly moves; token_ratio of the tokens that went through the model, padding included.
    """

    items: int
    requests: int
    rounds: int
    time_ratio: float
    stock_model_seconds: float
    our_model_seconds: float
    cpu_ratio: float
    token_ratio: float
    stock_tokens: int
    our_tokens: int
    stock_passes: int
    our_passes: int
    max_abs_loglikelihood_difference: float
    greedy_flags_changed: int
    answers_changed: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values under the field names, ready for JSON."""
        return asdict(self)


class ModelClock:
    """Of a model wrapper's scoring of tokenised requests: seconds by the clock and of this process
    on processors, tokens that its model read, padding included, and passes."""

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0
        self.tokens = self.passes = 0

    @contextmanager
    def attach(self, lm: Any) -> Iterator[None]:
        """Time every outermost scoring call of lm while the context is open."""
        score = lm._loglikelihood_tokens

        def timed(*args: Any, **kwargs: Any) -> Any:
            start, cpu_start = time.perf_counter(), time.process_time()
            answers = score(*args, **kwargs)
            self.seconds += time.perf_counter() - start
            self.cpu_seconds += time.process_time() - cpu_start
            return answers

        lm._loglikelihood_tokens = timed
        hook = lm.model.register_forward_pre_hook(self._count, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()
            del lm._loglikelihood_tokens

    def _count(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.tokens += (kwargs["input_ids"] if "input_ids" in kwargs else args[0]).numel()
        self.passes += 1


def compare_wrappers(
    make_stock: Callable[[], Any],
    make_ours: Callable[[], Any],
    task_dict: dict[str, Any],
    limit: int | None = None,
    rounds: int = 1,
) -> LmComparison:
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
    return LmComparison(
        items=len(pairs) // rounds,
        requests=len(answers) // rounds,
        rounds=rounds,
        time_ratio=stock_clock.seconds / our_clock.seconds,
        stock_model_seconds=stock_clock.seconds,
        our_model_seconds=our_clock.seconds,
        cpu_ratio=stock_clock.cpu_seconds / our_clock.cpu_seconds,
        token_ratio=stock_clock.tokens / our_clock.tokens,
        stock_tokens=stock_clock.tokens // rounds,
        our_tokens=our_clock.tokens // rounds,
        stock_passes=stock_clock.passes // rounds,
        our_passes=our_clock.passes // rounds,
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
