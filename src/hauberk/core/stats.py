"""Statistics: intervals, tests and corrections. Every figure of a report gets its interval here."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats as _stats

from hauberk.core.finding import Interval

Floats = NDArray[np.float64]


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Return the Wilson score interval of a rate (Wilson 1927); (0, 1) when n is 0."""
    if n == 0:
        return Interval(0.0, 1.0, "wilson", confidence)
    z = float(_stats.norm.ppf(0.5 + confidence / 2))
    rate = successes / n
    centre = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Interval(float(low), float(high), "wilson", confidence)


def clopper_pearson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Return the exact interval of a rate (Clopper and Pearson 1934); (0, 1) when n is 0."""
    return Interval(*_clopper_pearson(int(successes), int(n), (1 - confidence) / 2), "clopper-pearson", confidence)


@functools.lru_cache(maxsize=4096)
def _clopper_pearson(successes: int, n: int, tail: float) -> tuple[float, float]:
    low = 0.0 if successes == 0 else float(_stats.beta.ppf(tail, successes, n - successes + 1))
    high = 1.0 if successes == n else float(_stats.beta.ppf(1 - tail, successes + 1, n - successes))
    return low, high


def newcombe(successes_a: int, n_a: int, successes_b: int, n_b: int, confidence: float = 0.95) -> Interval:
    """Return the interval of rate a minus rate b, from the Wilson interval of each (Newcombe 1998, method 10)."""
    if n_a == 0 or n_b == 0:
        return Interval(-1.0, 1.0, "newcombe", confidence)
    a, b = wilson(successes_a, n_a, confidence), wilson(successes_b, n_b, confidence)
    rate_a, rate_b = successes_a / n_a, successes_b / n_b
    low = rate_a - rate_b - np.hypot(rate_a - a.low, b.high - rate_b)
    high = rate_a - rate_b + np.hypot(a.high - rate_a, rate_b - b.low)
    return Interval(float(low), float(high), "newcombe", confidence)


def paired_difference(only_first: int, only_second: int, n: int, confidence: float = 0.95) -> Interval:
    """Return the interval of the difference of two rates of the same n samples, from the counts where only one of them hits.

    One success is added to each of the two counts (Bonett and Price 2012); (-1, 1) when n is 0.
    """
    if n == 0:
        return Interval(-1.0, 1.0, "bonett-price", confidence)
    a, b = (only_first + 1) / (n + 2), (only_second + 1) / (n + 2)
    half = float(_stats.norm.ppf(0.5 + confidence / 2)) * float(np.sqrt((a + b - (a - b) ** 2) / (n + 2)))
    seen = (only_first - only_second) / n
    return Interval(min(seen, max(-1.0, a - b - half)), max(seen, min(1.0, a - b + half)), "bonett-price", confidence)


def bootstrap(
    values: ArrayLike, statistic: Callable[[Floats], float], *, rng: np.random.Generator, draws: int = 1000,
    confidence: float = 0.95,
) -> Interval:
    """Return the percentile bootstrap interval of a statistic of the rows of `values` (Efron 1979)."""
    rows = np.asarray(values, dtype=float)
    if len(rows) == 0:
        return Interval(float("nan"), float("nan"), "bootstrap", confidence)
    drawn = [statistic(rows[rng.integers(0, len(rows), len(rows))]) for _ in range(draws)]
    low, high = np.nanquantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high), "bootstrap", confidence)


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Return Student's interval of a mean."""
    rows = np.asarray(values, dtype=float)
    if len(rows) < 2:
        return Interval(float("-inf"), float("inf"), "student", confidence)
    half = float(_stats.t.ppf(0.5 + confidence / 2, len(rows) - 1)) * rows.std(ddof=1) / np.sqrt(len(rows))
    return Interval(float(rows.mean() - half), float(rows.mean() + half), "student", confidence)


def permutation_test(
    a: ArrayLike, b: ArrayLike, statistic: Callable[[Floats, Floats], float], *, rng: np.random.Generator,
    draws: int = 999,
) -> float:
    """Return the one-sided p-value of statistic(a, b) being so large by chance, by exchanging members of the two samples.

    The observed order counts as one of the draws, so that the p-value is never zero (Phipson and Smyth 2010).
    """
    left, right = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    seen = statistic(left, right)
    pool = np.concatenate([left, right])
    beyond, slack = 0, 1e-12 * max(1.0, abs(seen))
    for _ in range(draws):
        mixed = pool[rng.permutation(len(pool))]
        beyond += statistic(mixed[: len(left)], mixed[len(left) :]) >= seen - slack
    return (1 + beyond) / (1 + draws)


def benjamini_hochberg(p_values: Sequence[float]) -> Floats:
    """Return p-values adjusted for the false discovery rate (Benjamini and Hochberg 1995), in the order given."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)
    stepped = p[order] * len(p) / np.arange(1, len(p) + 1)
    adjusted = np.minimum.accumulate(stepped[::-1])[::-1].clip(max=1)
    answer = np.empty_like(adjusted)
    answer[order] = adjusted
    return answer


def holm(p_values: Sequence[float]) -> Floats:
    """Return p-values adjusted for the family-wise error (Holm 1979), in the order given."""
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p)
    stepped = p[order] * (len(p) - np.arange(len(p)))
    answer = np.empty_like(p)
    answer[order] = np.maximum.accumulate(stepped).clip(max=1)
    return answer


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the exact two-sided p-value that two paired rates are equal, from the counts of disagreement."""
    total = only_first + only_second
    return 1.0 if total == 0 else float(_stats.binomtest(only_first, total, 0.5).pvalue)


def separate(a: Interval, b: Interval) -> bool:
    """Whether two intervals have no point in common."""
    return a.high < b.low or b.high < a.low
