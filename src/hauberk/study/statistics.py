"""Means over few images, with intervals that say how few."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from hauberk.core.finding import Interval
from hauberk.core.rng import numpy_generator

DRAWS = 10_000
LEAST_IMAGES = 4  # a correlation over fewer is always near 1 or -1


def mean_interval(values: Sequence[float], seed: int = 0, *, together: int = 1) -> tuple[float, Interval]:
    """Return the mean and its 95 % interval by resampling the images (bootstrap); without ends for fewer than two.

    The percentiles are those at which the interval of a normal sample is as wide as Student's (expanded percentiles, Hesterberg
    2015, The American Statistician 69(4)): the plain ones hold the mean of six images in 86 % of samples, not in 95.

    Arguments:
        values: one an image.
        seed: of the resampling.
        together: how many such intervals are read side by side; each is made so much wider that all hold in 95 % (Bonferroni).
    """
    table = np.asarray(values, dtype=np.float64)
    n = len(table)
    if n < 2:
        return float(table.mean()) if n else math.nan, Interval(-math.inf, math.inf, "bootstrap")
    draws = numpy_generator(seed, "mean").integers(0, n, (DRAWS, n))
    tail = _tail(n, together)
    low, high = np.quantile(table[draws].mean(1), [tail, 1 - tail])
    return float(table.mean()), Interval(float(low), float(high), "bootstrap")


def _tail(n: int, together: int = 1) -> float:
    from scipy import stats

    return float(stats.norm.sf(stats.t.ppf(1 - 0.025 / together, n - 1) * math.sqrt(n / (n - 1))))


def paired_interval(
    left: Sequence[float], right: Sequence[float], seed: int = 0, *, together: int = 1
) -> tuple[float, Interval]:
    """Return the mean of left - right over the same images, and its 95 % interval by resampling them."""
    return mean_interval([a - b for a, b in zip(left, right, strict=True)], seed, together=together)


def rank_interval(
    x: Sequence[Sequence[float]], y: Sequence[Sequence[float]], *, over: str, seed: int = 0
) -> tuple[float, Interval]:
    """Return a rank correlation of figures x and y, and its 95 % interval by resampling the images.

    The same images are seen by every model, so that the figures of one image are drawn together: taken for independent they
    would make the interval too narrow by far. NaN without ends for fewer than four images, or figures that do not vary.

    Arguments:
        x, y: by model, then by image.
        over: `models` ranks the models on each image, `images` ranks the images of each model.
        seed: of the resampling.
    """
    from scipy import stats

    axis = ("models", "images").index(over)
    ranks = [stats.rankdata(np.asarray(one, dtype=np.float64), axis=axis) for one in (x, y)]
    a, b = (one - one.mean(axis, keepdims=True) for one in ranks)
    n = a.shape[1]
    parts = np.stack([(a * b).sum(0), (a * a).sum(0), (b * b).sum(0)])  # (3, images): what each adds to the correlation
    if n < LEAST_IMAGES or not parts[1].sum() or not parts[2].sum():
        return math.nan, Interval(-math.inf, math.inf, "bootstrap")
    drawn = parts[:, numpy_generator(seed, "rank").integers(0, n, (DRAWS, n))].sum(2)
    size = np.sqrt(drawn[1] * drawn[2])
    tail = _tail(n)
    low, high = np.quantile(drawn[0] / np.where(size > 0, size, np.inf), [tail, 1 - tail])
    whole = parts.sum(1)
    return float(whole[0] / np.sqrt(whole[1] * whole[2])), Interval(float(low), float(high), "bootstrap")


def cell(value: float, interval: Interval, digits: int = 2) -> str:
    """Return a figure with its interval, as a table shows it."""
    if not math.isfinite(value):
        return "-"
    if value != 0 and (abs(value) < 10.0**-digits or abs(value) >= 1e5):
        return f"{value:.1e} [{interval.low:.1e}, {interval.high:.1e}]"
    return f"{value:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"
