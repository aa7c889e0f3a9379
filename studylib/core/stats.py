"""Intervals, tests and power for accuracies over benchmark items, and for interleaved timings.

Why: the gaps that the study judges (0.2 to 1.1 points) are as small as one score's standard error.
A score alone settles nothing; the difference on the same items, with its interval, may.

What an interval speaks for. Questions of one subject succeed and fail together, so subjects, not
items, are resampled: an interval generalises to new subjects and new questions of the same kind,
as if the benchmark's subjects were drawn from a larger pool. For this very list of subjects and no
other it is too wide rather than too narrow. Training runs differ too: with two seeds or more of
every trained method the interval also speaks for new seeds (`seed_se` is a number); with one seed
it speaks for these runs alone (`seed_se` is None), which no number of items can mend.

How it is made. The item part is a symmetric bootstrap-t over subjects (Hall 1988, Annals of
Statistics 16; Cameron, Gelbach & Miller 2008, Review of Economics and Statistics 90): a percentile
bootstrap covers about 92 % where 95 is meant with 16 subjects. The seed part is the variance
between runs less what the items already explain (two-way clustering: Cameron, Gelbach & Miller
2011, Journal of Business & Economic Statistics 29), with Student quantiles at Welch's degrees of
freedom, and the two half-widths are added in quadrature (Howe 1974, JASA 69; Zou & Donner 2008,
Statistics in Medicine 27). Items are paired and seeds are not: two methods answer the same
questions, but a run of one and the run of another with the same seed number are independent draws.
Should a shared data order make them alike, the interval is too wide, never too narrow; taken as
pairs, three seeds would leave 2 degrees of freedom in place of up to 4.

Arrays: `correct` is [seeds, items] or [items], true or 1 for a right answer; `subjects` is [items],
or None where every item is its own cluster. All results are fractions, not percentage points.
benchmarks/stats_coverage.py measures the coverage and the power of what is here.

Not covered: accuracies close to 0 or 1, where symmetric intervals cover less (they are cut at 0 and
1); prompts and few-shot examples as a source of spread. Three seeds are few: where one method
varies ten times as much between runs as the other, or the methods differ alike in every subject of
a large benchmark, the interval of 95 % covers 92.5 to 94 %.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats as distributions
from scipy.optimize import brentq

from studylib.core.errors import StudyError

Floats = NDArray[np.float64]
Mean = Literal["micro", "macro"]
CONFIDENCE, ALPHA, POWER = 0.95, 0.05, 0.8
DRAWS = 10_000
CELLS_PER_CHUNK = 4_000_000  # bounds the memory of one block of bootstrap weights to 32 MB
MOST_GIVEN_BACK = 0.15  # of the item variance; see negative_seed_part
FEWEST_DF = 2.0  # where hardly any subject varies, resampling cannot give a finite quantile


@dataclass(frozen=True)
class Totals:
    """Right answers by subject: `scores` [seeds, subjects], `sizes` and `names` [subjects]."""

    scores: Floats
    sizes: Floats
    names: tuple[str, ...]
    items: int


@dataclass(frozen=True)
class Estimate:
    """A value with its interval; `se` and `df` are Student's t that reproduces this interval.

    `item_se` and `seed_se` are the two parts before small-sample widening; `seed_se` is None where
    the interval speaks for these runs alone, 0.0 where the runs differ no more than items explain.
    `items` are questions, `clusters` subjects, `seeds` the fewest runs of any trained method.
    """

    value: float
    low: float
    high: float
    se: float
    df: float
    item_se: float
    seed_se: float | None
    items: int
    clusters: int
    seeds: int

    @property
    def p_value(self) -> float:
        """Two-sided p-value of the value being zero, by `se` and `df`."""
        return float(2 * distributions.t.sf(abs(self.value) / self.se, self.df))


class Parts(NamedTuple):
    """Vectorised results, each [...]: one entry a study."""

    value: Floats
    item_half: Floats
    item_se: Floats
    seed_half: Floats
    seed_se: Floats


class Ratio(NamedTuple):
    """Ratio other/base with its interval; floats, or arrays for stacked series."""

    value: Any
    low: Any
    high: Any


class McNemar(NamedTuple):
    """Items that only one of two methods gets right, and the exact two-sided p-value."""

    only_method: int
    only_reference: int
    p_value: float


class Equivalence(NamedTuple):
    """Two one-sided tests: the p-value is the larger of the two."""

    p_lower: float
    p_upper: float
    p_value: float
    equivalent: bool


class ChanceTest(NamedTuple):
    """`distinguishable` needs both tests: items as exact coin tosses, and subjects as clusters."""

    accuracy: float
    chance: float
    binomial_p: float
    clustered_p: float
    distinguishable: bool


def answer_rows(correct: ArrayLike) -> Floats:
    """Answers as [seeds, items] of 0.0 and 1.0; StudyError where they are anything else."""
    answers = np.atleast_2d(np.asarray(correct, dtype=np.float64))
    if answers.ndim != 2 or answers.size == 0:
        raise StudyError(np.shape(correct), "answers are [seeds, items]", "Stack one row a seed.")
    strange = ~np.isin(answers, (0.0, 1.0))
    if strange.any():
        raise StudyError(answers[strange][0], "an answer is 0 or 1", "Score or drop the item.")
    return answers


def sum_subjects(correct: ArrayLike, subjects: ArrayLike | None, mean: Mean = "micro") -> Totals:
    """Sum answers by subject; for the macro mean each subject weighs 1 and scores its own mean.

    correct: [seeds, items] or [items] of 0 and 1; subjects: [items] labels or None.
    StudyError: other shapes, other values than 0 and 1, fewer than two subjects.
    """
    if mean not in ("micro", "macro"):
        raise StudyError(mean, "a mean is micro or macro", "Choose one of the two.")
    answers = answer_rows(correct)
    labels = np.arange(answers.shape[1]) if subjects is None else np.asarray(subjects)
    if labels.shape != answers.shape[1:]:
        raise StudyError(labels.shape, "one subject an item", f"Expected {answers.shape[1]}.")
    names, member = np.unique(labels, return_inverse=True)
    if len(names) < 2:
        raise StudyError(
            names[0],
            "an interval needs two subjects or more",
            "Pass subjects=None for items alone.",
        )
    sizes: Floats = np.bincount(member).astype(np.float64)
    scores: Floats = np.stack([np.bincount(member, weights=row) for row in answers])
    if mean == "macro":
        scores, sizes = scores / sizes, np.ones_like(sizes)
    return Totals(scores, sizes, tuple(map(str, names)), answers.shape[1])


def measure_accuracy(
    correct: ArrayLike,
    subjects: ArrayLike | None,
    mean: Mean = "micro",
    *,
    fixed: bool = False,
    draws: int = DRAWS,
) -> Estimate:
    """Accuracy of one method over seeds, micro (all items alike) or macro (all subjects alike).

    fixed: the model was not trained here (base), so that seeds add no spread.
    """
    totals = sum_subjects(correct, subjects, mean)
    parts = split_parts(totals.scores, None, totals.sizes, (fixed, True), draws)
    known = fixed or len(totals.scores) > 1
    apart = float(distributions.sem(answer_rows(correct).mean(0)))
    return build_estimate(parts, totals, len(totals.scores), known, (0.0, 1.0), apart)


def compare_methods(
    method: ArrayLike,
    reference: ArrayLike,
    subjects: ArrayLike | None,
    *,
    reference_fixed: bool = False,
) -> Estimate:
    """Difference method - reference on the same items, seeds averaged on each side.

    method, reference: [seeds, items], the numbers of seeds may differ. reference_fixed: the
    reference was not trained here (base), so that its one row is all there is.
    """
    ours, theirs = (sum_subjects(x, subjects) for x in (method, reference))
    if ours.items != theirs.items:
        raise StudyError(
            f"{ours.items} and {theirs.items} items", "items are paired", "Align them."
        )
    fixed = (False, reference_fixed)
    parts = split_parts(ours.scores, theirs.scores, ours.sizes, fixed)
    seeds = len(ours.scores) if reference_fixed else min(len(ours.scores), len(theirs.scores))
    apart = float(distributions.sem(answer_rows(method).mean(0) - answer_rows(reference).mean(0)))
    return build_estimate(parts, ours, seeds, seeds > 1, (-1.0, 1.0), apart)


def split_parts(
    method: Floats,
    reference: Floats | None,
    sizes: Floats,
    fixed: tuple[bool, bool] = (False, False),
    draws: int = DRAWS,
) -> Parts:
    """Split the spread of stacked studies into items and seeds.

    method, reference: [..., seeds, subjects] sums; sizes: [subjects]; fixed: which side adds no
    seed part. The same bootstrap weights serve every study of the stack.
    """
    scores = method.mean(-2) - (0.0 if reference is None else reference.mean(-2))
    value, item_variance = cluster_variance(scores, sizes)
    quantile = bootstrap_quantile(scores, sizes, draws)
    arms = [method] if reference is None else [method, reference]
    arms = [arm for arm, still in zip(arms, fixed, strict=False) if not still]
    if any(arm.shape[-2] < 2 for arm in arms):
        arms = []
    between, within, welch = np.zeros_like(value), np.zeros_like(value), np.zeros_like(value)
    for arm in arms:
        runs, overlap = seed_variance(arm, sizes)
        between, within = between + runs, within + overlap
        welch = welch + runs**2 / (arm.shape[-2] - 1)
    seed_df = np.divide(between**2, welch, out=np.ones_like(value), where=welch > 0)
    runs_alone = between - within
    seed_se = np.sqrt(np.maximum(runs_alone, 0.0))
    item_se = np.sqrt(item_variance + negative_seed_part(runs_alone, item_variance))
    seed_half = seed_se * distributions.t.ppf((1 + CONFIDENCE) / 2, seed_df)
    return Parts(value, quantile * item_se, item_se, seed_half, seed_se)


def cluster_variance(scores: Floats, sizes: Floats) -> tuple[Floats, Floats]:
    """Ratio sum(scores)/sum(sizes) and its linearised variance over clusters, [...] each."""
    total, clusters = sizes.sum(), len(sizes)
    value = scores.sum(-1) / total
    residuals = scores - value[..., None] * sizes
    return value, (residuals**2).sum(-1) * clusters / (clusters - 1) / total**2


def seed_variance(scores: Floats, sizes: Floats) -> tuple[Floats, Floats]:
    """Variance of a mean over seeds: as seen between runs, and the part that items explain.

    scores: [..., seeds, subjects]. The second is the variance of the seed by subject residuals; the
    first less the second estimates the variance of the runs themselves without bias.
    """
    seeds, total = scores.shape[-2], sizes.sum()
    accuracy = scores.sum(-1) / total
    between = accuracy.var(-1, ddof=1) / seeds
    shift = accuracy - accuracy.mean(-1, keepdims=True)
    residuals = scores - scores.mean(-2, keepdims=True) - sizes * shift[..., None]
    # each cluster's own share of the mean shrinks its residual (CR2: Bell & McCaffrey 2002)
    squares = (residuals**2 / (1 - sizes / total)).sum((-1, -2))
    return between, squares / (seeds - 1) / total**2 / seeds


def negative_seed_part(seed_part: Floats, item_variance: Floats) -> Floats:
    """What a seed part that came out below zero takes off the item variance, 0 or less.

    The two together are unbiased only if a negative estimate counts; cut at zero, 97 % are covered
    where runs do not differ. The bound keeps a chance agreement of runs from narrowing an interval.
    """
    return np.clip(seed_part, -MOST_GIVEN_BACK * item_variance, 0.0)


def bootstrap_quantile(scores: Floats, sizes: Floats, draws: int) -> Floats:
    """Quantile of |t| when whole subjects are drawn with replacement, [...] for scores [..., C]."""
    flat = scores.reshape(-1, scores.shape[-1])
    clusters, total, rng = len(sizes), sizes.sum(), np.random.default_rng(0)
    value = flat.sum(-1) / total
    centred = flat - value[:, None] * sizes  # so that each draw's ratio is its shift
    ratios = np.empty((draws, len(flat)))
    rows = max(1, CELLS_PER_CHUNK // clusters)
    for start in range(0, draws, rows):
        block = ratios[start : start + rows]
        picks = rng.integers(0, clusters, (len(block), clusters))
        picks += clusters * np.arange(len(block))[:, None]
        weights = np.bincount(picks.ravel(), minlength=picks.size).reshape(picks.shape)
        weights = weights.astype(np.float64)
        size = (weights @ sizes)[:, None]
        shift = weights @ centred.T / size
        squares = weights @ (centred**2).T - 2 * shift * (weights @ (centred * sizes).T)
        squares += shift**2 * (weights @ sizes**2)[:, None]
        error = np.sqrt(np.maximum(squares, 0) * clusters / (clusters - 1)) / size
        still = error <= 1e-9 * np.abs(centred).max(-1) / total
        block[:] = np.where(still, np.where(np.abs(shift) > 0, np.inf, 0.0), np.abs(shift))
        np.divide(block, error, out=block, where=~still)
    # linear interpolation between infinities has no value
    quantile = np.quantile(ratios, CONFIDENCE, axis=0, method="higher")
    widest = distributions.t.ppf((1 + CONFIDENCE) / 2, min(FEWEST_DF, clusters - 1))
    return np.minimum(quantile, widest).reshape(scores.shape[:-1])


def build_estimate(
    parts: Parts,
    totals: Totals,
    seeds: int,
    seeds_known: bool,
    bounds: tuple[float, float],
    apart_se: float = 0.0,
) -> Estimate:
    """One study's parts as an estimate, cut at the bounds.

    Where subjects agree by chance (20 of 40 right in each), `apart_se` of items stands in. Where no
    item varies, the half-width is the exact binomial bound on an event that none of n items showed,
    1 - (alpha/2)^(1/n) (Clopper & Pearson 1934), since zero would claim certainty.
    """
    half = float(np.hypot(parts.item_half, parts.seed_half))
    spread = float(np.hypot(parts.item_se, parts.seed_se))
    if spread <= 1e-12 < apart_se:
        half, spread = apart_se * distributions.norm.ppf((1 + CONFIDENCE) / 2), apart_se
    elif spread <= 1e-12:
        half = 1 - ((1 - CONFIDENCE) / 2) ** (1 / totals.items)
        spread = half / distributions.norm.ppf((1 + CONFIDENCE) / 2)
    se, df = calibrate_t(half, spread)
    value = float(parts.value)
    return Estimate(
        value=value,
        low=max(value - half, bounds[0]),
        high=min(value + half, bounds[1]),
        se=se,
        df=df,
        item_se=float(parts.item_se),
        seed_se=float(parts.seed_se) if seeds_known else None,
        items=totals.items,
        clusters=len(totals.sizes),
        seeds=seeds,
    )


def calibrate_t(half: float, se: float) -> tuple[float, float]:
    """Standard error and degrees of freedom of the Student's t that has this half-width.

    The standard error stays where some df from 1 up fits, and moves where none does.
    """
    tail = (1 + CONFIDENCE) / 2

    def excess(log_df: float) -> float:
        return float(distributions.t.ppf(tail, np.exp(log_df)) - half / se)

    ends = (0.0, np.log(1e6))
    if excess(ends[0]) <= 0:
        return float(half / distributions.t.ppf(tail, 1.0)), 1.0
    if excess(ends[1]) >= 0:
        return float(half / distributions.t.ppf(tail, 1e6)), 1e6
    return se, float(np.exp(brentq(excess, *ends)))


def exact_mcnemar(method: ArrayLike, reference: ArrayLike) -> McNemar:
    """Exact McNemar test on paired answers, [items] or [seeds, items] of the same shape.

    Two-sided binomial test of the items that one method gets right and the other wrong (McNemar
    1947, Psychometrika 12). With several seeds an item counts once, for the method that is right on
    it in more seeds (a sign test on items): counting it at every seed would take repeats of a
    question for new questions. It tells whether these runs differ on these items, each taken as
    independent: subjects and seeds are left to `compare_methods`, on which verdicts rest.
    """
    ours, theirs = answer_rows(method), answer_rows(reference)
    if ours.shape != theirs.shape:
        raise StudyError(f"{ours.shape}, {theirs.shape}", "answers are paired", "Align the items.")
    lead = (ours - theirs).sum(0)
    wins, losses = int((lead > 0).sum()), int((lead < 0).sum())
    p = distributions.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    return McNemar(wins, losses, float(p))


def judge_equivalence(estimate: Estimate, margin: float) -> Equivalence:
    """Two one-sided tests that the true difference lies within +-margin (a fraction, above 0).

    Schuirmann 1987, Journal of Pharmacokinetics and Biopharmaceutics 15. Equivalent at ALPHA
    exactly where the Student interval of confidence 1 - 2 ALPHA lies within the margin.
    """
    if not margin > 0:
        raise StudyError(margin, "a margin is above zero", "Take the gap that would matter.")
    lower = float(distributions.t.sf((estimate.value + margin) / estimate.se, estimate.df))
    upper = float(distributions.t.cdf((estimate.value - margin) / estimate.se, estimate.df))
    return Equivalence(lower, upper, max(lower, upper), max(lower, upper) <= ALPHA)


def detectable_difference(se: float, df: float = np.inf, alpha: float = ALPHA) -> float:
    """Smallest true difference that a two-sided t-test finds with POWER, in the unit of se.

    `estimate.se` and `estimate.df` give it for a finished study, as far as one study can tell its
    own spread; `plan_difference` for one to come. About 2.8 standard errors with many subjects.
    """
    if not se > 0:
        raise StudyError(se, "a standard error is above zero", "Give a planned or measured one.")
    df = min(df, 1e6)
    middles = (np.arange(4000) + 0.5) / 4000
    halves = distributions.t.ppf(1 - alpha / 2, df) * np.sqrt(
        distributions.chi2.ppf(middles, df) / df
    )
    return se * solve_power(halves, 1.0)


def solve_power(halves: Floats, sd: float) -> float:
    """True value whose normal estimate, of this sd, leaves its interval's half-width behind.

    halves: equally likely half-widths; averaging over them replaces the noncentral t, which scipy
    cannot compute far out, and also holds where a half-width is no multiple of one chi.
    """

    def missing(value: float) -> float:
        found = distributions.norm.sf(halves - value, scale=sd)
        found += distributions.norm.cdf(-halves - value, scale=sd)
        return float(found.mean()) - POWER

    return float(brentq(missing, 0.0, halves.max() + 10 * sd))


def plan_difference(
    sizes: ArrayLike,
    discordance: float,
    *,
    subject_sd: float = 0.0,
    seeds: int = 1,
    seed_sd: float = 0.0,
) -> float:
    """Smallest true difference that a study of this plan finds with POWER, as a fraction.

    sizes: items in each subject. discordance: share of items that one method gets right and the
    other wrong at one seed, which is the variance of an item's difference. subject_sd: standard
    deviation of the true difference between subjects; a new seed redraws the rest of the
    discordance. seed_sd: standard deviation of one method's true accuracy between runs, alike on
    both sides; with one seed it is left out, as in the interval. Half-widths are drawn from the
    sampling distribution of `split_parts`: chi squares at Satterthwaite's degrees of freedom (1946,
    Biometrics Bulletin 2).
    StudyError: discordance not above subject_sd^2 and up to 1, fewer than 2 subjects or 1 seed.
    """
    size = np.asarray(sizes, dtype=np.float64)
    if not subject_sd**2 < discordance <= 1:
        raise StudyError(discordance, "discordance is a share of items", "Mend it or subject_sd.")
    if len(size) < 2 or seeds < 1:
        raise StudyError(f"{len(size)}, {seeds}", "2 subjects and 1 seed at least", "Add some.")
    total, own = size.sum(), discordance - subject_sd**2
    variances = size**2 * subject_sd**2 + size * own / seeds
    item_variance = variances.sum() / total**2
    centre = np.eye(len(size)) - size[:, None] / total
    form = centre.T @ centre * variances
    item_df = np.trace(form) ** 2 / np.trace(form @ form)
    seen = np.trace(form) * len(size) / (len(size) - 1) / variances.sum()  # the large hide some
    rng = np.random.default_rng(0)
    tail = 1 - ALPHA / 2
    item_part = seen * item_variance * rng.chisquare(item_df, DRAWS) / item_df
    squares = item_part
    seed_variance_sum, seed_squares = 0.0, np.zeros(DRAWS)
    if seeds > 1:
        tosses = own / 2 / total  # of one run's accuracy, from its items
        runs = (seed_sd**2 + tosses) / seeds * rng.chisquare(seeds - 1, (2, DRAWS)) / (seeds - 1)
        welch_df = runs.sum(0) ** 2 / (runs**2).sum(0) * (seeds - 1)
        alone = runs.sum(0) - 2 * tosses / seeds
        seed_squares = distributions.t.ppf(tail, welch_df) ** 2 * np.maximum(alone, 0)
        squares = squares + negative_seed_part(alone, item_part)
        seed_variance_sum = 2 * seed_sd**2 / seeds
    squares = squares * distributions.t.ppf(tail, item_df) ** 2 + seed_squares
    return solve_power(np.sqrt(squares), float((item_variance + seed_variance_sum) ** 0.5))


def adjust_holm(p_values: ArrayLike) -> Floats:
    """P-values corrected for their number, in the order given (Holm 1979, Scand. J. Stat. 6)."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, axis=-1, kind="stable")
    steps = np.take_along_axis(p, order, -1) * np.arange(p.shape[-1], 0, -1)
    steps = np.minimum(np.maximum.accumulate(steps, axis=-1), 1.0)
    out = np.empty_like(p)
    np.put_along_axis(out, order, steps, -1)
    return out


def compare_timings(base_seconds: ArrayLike, other_seconds: ArrayLike) -> Ratio:
    """Ratio other/base of timings taken in turn (base, other, base, other, ...), [..., pairs].

    Student's t on log ratios of neighbours, geometric mean. The base comes first in each pair, so a
    drift would speak for it: the drift of one step, from the ends of both series, is taken off,
    which removes a linear and a quadratic trend of the logs whole and adds n/(8(n-1)^2) of the
    variance. Noise that lingers from one timing to the next makes the interval too wide, not too
    narrow: it cancels in neighbours. StudyError: fewer than 3 pairs, or a time not finite above 0.
    """
    base, other = (np.asarray(x, dtype=np.float64) for x in (base_seconds, other_seconds))
    pairs = base.shape[-1]
    if base.shape != other.shape or pairs < 3:
        raise StudyError(f"{base.shape}, {other.shape}", "3 pairs or more", "Repeat the timing.")
    if not all(((x > 0) & np.isfinite(x)).all() for x in (base, other)):
        raise StudyError("a timing", "seconds are above zero", "Drop the broken measurement.")
    a, b = np.log(base), np.log(other)
    step = (a[..., -1] - a[..., 0] + b[..., -1] - b[..., 0]) / (4 * (pairs - 1))
    middle = (b - a).mean(-1) - step
    inflation = 1 + pairs / (8 * (pairs - 1) ** 2)
    se = (b - a).std(-1, ddof=1) * np.sqrt(inflation / pairs)
    half = distributions.t.ppf((1 + CONFIDENCE) / 2, pairs - 1) * se
    values = (np.exp(middle), np.exp(middle - half), np.exp(middle + half))
    return Ratio(*(float(v) if np.ndim(v) == 0 else v for v in values))


def compare_to_chance(
    correct: ArrayLike,
    subjects: ArrayLike | None,
    chance: float,
    draws: int = DRAWS,
) -> ChanceTest:
    """Is the accuracy above what guessing gives (one-sided)? chance: 0.25 for four choices.

    The exact binomial test takes items as independent; a model that always says B is wrong in
    clumps, so the clustered interval must agree. Over seeds the binomial p-values are averaged and
    doubled, which holds however they depend (Vovk & Wang 2020, Biometrika 107).
    """
    if not 0 < chance < 1:
        raise StudyError(chance, "chance lies between 0 and 1", "Take 1 over the choices.")
    answers = answer_rows(correct)
    estimate = measure_accuracy(answers, subjects, draws=draws)
    p = distributions.binom.sf(answers.sum(1) - 1, answers.shape[1], chance)
    binomial_p = float(p[0]) if len(p) == 1 else min(1.0, 2 * float(p.mean()))
    clustered_p = float(distributions.t.sf((estimate.value - chance) / estimate.se, estimate.df))
    above = max(binomial_p, clustered_p) <= ALPHA
    return ChanceTest(estimate.value, chance, binomial_p, clustered_p, above)
