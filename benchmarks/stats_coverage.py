"""Do the intervals cover and the tests find what they say? Simulated studies with a known truth.

`python benchmarks/stats_coverage.py [--studies 20000]` prints one line a setting. The tests run the
same simulation with 2,000 studies. A study is drawn as right answers by subject, difficulty, run
and method: given its difficulty an item is a coin toss, so the sums are binomial and a study of
14,042 items and 6 runs costs as little as one of 800.

Not covered: accuracies near 0 or 1, and seed effects that differ between easy and hard items.
"""

import argparse
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats as distributions

from studylib.core import stats

Floats = NDArray[np.float64]
# items of the 57 subjects of MMLU's test split, the most uneven list in use
MMLU_SIZES = np.array(
    [100] * 10
    + [102, 103, 108, 110, 112, 114, 121, 126, 131, 135, 144, 145, 151, 152, 163, 165, 166, 171]
    + [173, 193, 198, 201, 203, 204, 216, 223, 234, 235, 237, 238, 245, 265, 270, 272, 282, 306]
    + [310, 311, 324, 346, 378, 390, 545, 612, 783, 895, 1534]
)
SMALL_SIZES = np.full(16, 50)
EASE = np.array([0.82, 0.55, 0.3])  # chance of a right answer: easy, middling and hard items
SHARES = np.array([0.4, 0.3, 0.3])


@dataclass(frozen=True)
class Setting:
    """One kind of study; standard deviations are of true accuracy, as fractions."""

    sizes: NDArray[np.int64]
    seeds: int
    difference: float = -0.005
    subject_sd: float = 0.04  # of both methods alike
    difference_sd: float = 0.02  # of the difference, between subjects
    seed_sd: float = 0.006  # of the reference, between runs
    method_seed_sd: float | None = None  # as the reference where None


@dataclass(frozen=True)
class Studies:
    """Stacked totals [studies, seeds, subjects] and the two truths an interval may speak for."""

    method: Floats
    reference: Floats
    difference_of_methods: float
    difference_of_runs: Floats
    accuracy_of_runs: Floats


def simulate_studies(setting: Setting, studies: int, seed: int = 1) -> Studies:
    """Draw studies whose subjects, items and runs are all new."""
    rng = np.random.default_rng(seed)
    shape = (studies, len(setting.sizes))
    counts = rng.multinomial(np.broadcast_to(setting.sizes, shape), SHARES)
    subject = rng.normal(0, setting.subject_sd, shape)
    contrast = setting.difference + rng.normal(0, setting.difference_sd, shape)
    spreads = (setting.seed_sd, setting.method_seed_sd)
    ours = setting.seed_sd if spreads[1] is None else spreads[1]
    runs = [rng.normal(0, sd, (studies, setting.seeds)) for sd in (ours, setting.seed_sd)]

    def answer(level: Floats, run: Floats) -> Floats:
        chance = EASE + (level[:, None, :] + run[:, :, None])[..., None]
        return rng.binomial(counts[:, None], np.clip(chance, 0, 1)).sum(-1).astype(np.float64)

    method, reference = answer(subject + contrast, runs[0]), answer(subject, runs[1])
    of_runs = setting.difference + runs[0].mean(1) - runs[1].mean(1)
    level = EASE @ SHARES + runs[1].mean(1)
    return Studies(method, reference, setting.difference, of_runs, level)


def measure_coverage(
    setting: Setting, studies: int, draws: int = 1000, macro: bool = False, alone: bool = False
) -> float:
    """Share of studies whose 95 % interval holds the truth that it speaks for.

    alone: of the reference's accuracy in place of the difference.
    """
    drawn = simulate_studies(setting, studies)
    sizes = setting.sizes.astype(np.float64)
    method, reference = drawn.method, drawn.reference
    if macro:
        method, reference, sizes = method / sizes, reference / sizes, np.ones_like(sizes)
    arms = (reference, None) if alone else (method, reference)
    parts = stats.split_parts(*arms, sizes, draws=draws)
    if alone:
        truth = drawn.accuracy_of_runs if setting.seeds == 1 else EASE @ SHARES
    else:
        truth = drawn.difference_of_runs if setting.seeds == 1 else drawn.difference_of_methods
    return float((abs(parts.value - truth) <= np.hypot(parts.item_half, parts.seed_half)).mean())


def plan_difference(setting: Setting) -> float:
    """Detectable difference of a setting from its true spreads."""
    tosses = 2 * (SHARES * EASE * (1 - EASE)).sum() - 2 * setting.subject_sd**2
    return stats.plan_difference(
        setting.sizes,
        tosses,
        subject_sd=setting.difference_sd,
        seeds=setting.seeds,
        seed_sd=setting.seed_sd,
    )


def measure_power(setting: Setting, studies: int, draws: int = 1000) -> float:
    """Share of studies that find a true difference of this size, its interval excluding zero."""
    drawn = simulate_studies(setting, studies)
    sizes = setting.sizes.astype(np.float64)
    parts = stats.split_parts(drawn.method, drawn.reference, sizes, draws=draws)
    return float((abs(parts.value) > np.hypot(parts.item_half, parts.seed_half)).mean())


def measure_false_equivalence(setting: Setting, studies: int, draws: int = 1000) -> float:
    """Share of studies called equivalent at a margin at which they truly are not (5 % or less)."""
    drawn = simulate_studies(setting, studies)
    arms = (drawn.method, drawn.reference)
    parts = stats.split_parts(*arms, setting.sizes.astype(np.float64), draws=draws)
    totals = stats.Totals(drawn.method[0], setting.sizes * 1.0, (), int(setting.sizes.sum()))
    known = setting.seeds > 1
    called = 0
    for row in zip(*parts, strict=True):
        one = stats.build_estimate(stats.Parts(*row), totals, setting.seeds, known, (-1.0, 1.0))
        called += stats.judge_equivalence(one, abs(setting.difference)).equivalent
    return called / studies


def simulate_timings(
    noise: str, series: int, pairs: int = 20, seed: int = 0
) -> tuple[Floats, Floats]:
    """Interleaved timings of the same thing, [series, pairs] each: the true ratio is 1.

    noise: white, lingering (AR(1), 0.9), drift (10 % up over the series), warming (an exponential
    approach from 10 % below), walk (each step adds to the last), spiky (one timing in ten doubled).
    """
    rng = np.random.default_rng(seed)
    steps = 2 * pairs
    log = rng.normal(0, 0.01, (series, steps))
    if noise == "lingering":
        for step in range(1, steps):
            log[:, step] += 0.9 * log[:, step - 1]
    if noise == "drift":
        log += np.linspace(0, 0.1, steps)
    if noise == "warming":
        log -= 0.1 * np.exp(-np.arange(steps) / 8)
    if noise == "walk":
        log = log.cumsum(1)
    if noise == "spiky":
        log += np.log(2) * (rng.random(log.shape) < 0.1)
    seconds = np.exp(log)
    return seconds[:, 0::2], seconds[:, 1::2]


def measure_timing_coverage(noise: str, series: int, pairs: int = 20) -> float:
    """Share of series in which a base against itself has an interval that holds 1."""
    ratio = stats.compare_timings(*simulate_timings(noise, series, pairs))
    return float(((ratio.low <= 1) & (ratio.high >= 1)).mean())


def measure_false_alarm(studies: int, guess_sd: float, draws: int = 1000) -> float:
    """Share of guessing models, right more often in some subjects, said to be above chance."""
    rng = np.random.default_rng(0)
    chance = 0.25 + rng.normal(0, guess_sd, (studies, len(SMALL_SIZES)))
    scores = rng.binomial(SMALL_SIZES, chance).astype(np.float64)
    labels = np.repeat(np.arange(len(SMALL_SIZES)), SMALL_SIZES)
    alarms = 0
    for row in scores:
        answers = (np.arange(SMALL_SIZES[0]) < row[:, None]).ravel()
        alarms += stats.compare_to_chance(answers, labels, 0.25, draws=draws).distinguishable
    return alarms / studies


def main() -> None:
    """Print coverage, power and error rates, each with the standard error of the simulation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=4000)
    studies = parser.parse_args().studies
    print(f"{studies} studies a line; standard error of a coverage of 95 %: ", end="")
    print(f"{100 * distributions.binom.std(studies, 0.95) / studies:.2f} %")
    for label, sizes in (("57 uneven", MMLU_SIZES), ("16 x 50", SMALL_SIZES)):
        for seeds in (1, 3, 5):
            for extra in (
                {},
                {"difference_sd": 0.0},
                {"difference_sd": 0.05},
                {"seed_sd": 0.03},
                {"seed_sd": 0.0},
                {"seed_sd": 0.03, "method_seed_sd": 0.003},
            ):
                setting = Setting(sizes, seeds, **extra)
                row = [measure_coverage(setting, studies, macro=m) for m in (False, True)]
                row.append(measure_coverage(setting, studies, alone=True))
                words = " ".join(f"{k}={v}" for k, v in extra.items()) or "as set"
                print(f"{label:10} seeds {seeds} {words:38} micro {row[0]:.3f} ", end="")
                print(f"macro {row[1]:.3f} accuracy {row[2]:.3f}", flush=True)
            for seed_sd in (0.0, 0.006, 0.02)[: 1 if seeds == 1 else 3]:
                plan = plan_difference(Setting(sizes, seeds, seed_sd=seed_sd))
                at = Setting(sizes, seeds, plan, seed_sd=seed_sd)
                print(f"{label:10} seeds {seeds} seed_sd {seed_sd}: power at ", end="")
                print(f"{100 * plan:.2f} pp {measure_power(at, studies):.3f} ", end="")
                wrong = measure_false_equivalence(at, min(studies, 2000))
                print(f"false equivalence {wrong:.3f}", flush=True)
    for noise in ("white", "lingering", "drift", "warming", "walk", "spiky"):
        row = [f"{n}: {measure_timing_coverage(noise, studies, n):.3f}" for n in (5, 10, 20, 50)]
        print(f"timings, {noise:9} by pairs", " ".join(row))
    for guess_sd in (0.0, 0.05):
        alarm = measure_false_alarm(min(studies, 2000), guess_sd)
        print(f"guessing, subjects' sd {guess_sd}: called above chance {alarm:.3f}")


if __name__ == "__main__":
    main()
