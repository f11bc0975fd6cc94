"""Drift by feature: does each measured quantity still have the distribution it had?"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as _stats
from torch import Tensor

from hauberk.core.errors import DataError
from hauberk.core.stats import benjamini_hochberg
from hauberk.trust.arrays import Floats, floats

_FLOOR = 1e-4


@dataclasses.dataclass(frozen=True)
class FeatureDrift:
    """How far one feature has moved.

    Arguments:
        name: of the feature.
        test: `ks` for quantities, `chi-square` for those of few levels, `constant` where nothing varies.
        statistic: of that test.
        p: its p-value; `adjusted`: after Benjamini and Hochberg over all features.
        psi: population stability index; by habit, 0.1 is noticeable and 0.25 large. Noise alone gives about
            (bins - 1) (1/n + 1/m).
        jensen_shannon: distance in [0, 1] (base 2).
        wasserstein: in standard deviations of the reference.
    """

    name: str
    test: str
    statistic: float
    p: float
    adjusted: float
    psi: float
    jensen_shannon: float
    wasserstein: float


def feature_drift(
    reference: ArrayLike | Tensor, current: ArrayLike | Tensor, *, names: Sequence[str] = (), levels: int = 10, bins: int = 10
) -> list[FeatureDrift]:
    """Compare every feature of two samples.

    Arguments:
        reference: what was, shape (n, features).
        current: what is, shape (m, features).
        names: of the features; empty numbers them.
        levels: a feature with at most so many distinct values is categorical.
        bins: of the stability index and the Jensen-Shannon distance, at quantiles of the reference.

    Returns:
        One entry per feature, in their order. Independent tests; the adjusted p-values hold the share of false alarms among the
        alarms at the level one compares them with (Benjamini and Hochberg 1995).

    Raises:
        DataError: for samples of different widths.
    """
    old, new = _pair(reference, current)
    called = list(names) or [f"feature {column}" for column in range(old.shape[1])]
    if len(called) != old.shape[1]:
        raise DataError(f"{len(called)} names were given for {old.shape[1]} features", want="one name per feature")
    statistics, p_values = ks(old, new)
    found = []
    for column, name in enumerate(called):
        a, b = old[:, column], new[:, column]
        distinct = np.unique(np.concatenate([a, b]))
        statistic, p, test = float(statistics[column]), float(p_values[column]), "ks"
        if len(distinct) == 1:
            statistic, p, test = 0.0, 1.0, "constant"
        elif len(distinct) <= levels:
            statistic, p = chi_square(a, b)
            test = "chi-square"
        before, after = shares(a, b, bins=bins, levels=levels)
        scale = float(a.std()) or float(np.concatenate([a, b]).std()) or 1.0
        moved = float(_stats.wasserstein_distance(a, b)) / scale
        found.append(FeatureDrift(name, test, statistic, p, p, psi(before, after), jensen_shannon(before, after), moved))
    adjusted = benjamini_hochberg([one.p for one in found])
    return [dataclasses.replace(one, adjusted=float(p)) for one, p in zip(found, adjusted, strict=True)]


def ks(reference: ArrayLike | Tensor, current: ArrayLike | Tensor) -> tuple[Floats, Floats]:
    """Return the two-sample Kolmogorov-Smirnov statistics and p-values of all features, both of shape (features,).

    The p-values are asymptotic, and too large where values tie: they raise no false alarms.
    """
    old, new = _pair(reference, current)
    n, m = len(old), len(new)
    statistics = np.empty(old.shape[1])
    for column in range(old.shape[1]):
        a, b = np.sort(old[:, column]), np.sort(new[:, column])
        points = np.concatenate([a, b])
        gaps = np.searchsorted(a, points, side="right") / n - np.searchsorted(b, points, side="right") / m
        statistics[column] = np.abs(gaps).max()
    return statistics, np.clip(_stats.kstwo.sf(statistics, max(1, round(n * m / (n + m)))), 0, 1)


def chi_square(reference: ArrayLike, current: ArrayLike, *, least: float = 5.0) -> tuple[float, float]:
    """Return Pearson's statistic and p-value that two samples have the same levels in the same shares.

    Arguments:
        reference, current: shapes (n,) and (m,).
        least: levels expected more rarely than this, in either sample, are joined into one, as the approximation needs.
    """
    a, b = floats(reference, "the reference", 1), floats(current, "the current sample", 1)
    distinct, index = np.unique(np.concatenate([a, b]), return_inverse=True)
    table = np.stack([np.bincount(part, minlength=len(distinct)) for part in (index[: len(a)], index[len(a) :])])
    expected = table.sum(0) * min(len(a), len(b)) / table.sum()
    rare = expected < least
    if rare.any():
        table = np.concatenate([table[:, ~rare], table[:, rare].sum(1, keepdims=True)], 1)
    if table.shape[1] < 2:
        return 0.0, 1.0
    result = _stats.chi2_contingency(table, correction=False)
    return float(result.statistic), float(result.pvalue)


def shares(reference: ArrayLike, current: ArrayLike, *, bins: int = 10, levels: int = 10) -> tuple[Floats, Floats]:
    """Return the shares of both samples in common bins: quantiles of the reference, or the levels where there are few.

    Arguments:
        reference, current: shapes (n,) and (m,).
        bins: at most; equal quantiles are joined.
        levels: a sample with at most so many distinct values is binned by value.
    """
    a, b = floats(reference, "the reference", 1), floats(current, "the current sample", 1)
    distinct = np.unique(np.concatenate([a, b]))
    quantiles = np.unique(np.quantile(a, np.linspace(0, 1, bins + 1)[1:-1]))
    cuts = distinct[:-1] if len(distinct) <= levels else quantiles
    counted = [np.bincount(np.searchsorted(cuts, part, side="left"), minlength=len(cuts) + 1) for part in (a, b)]
    return counted[0] / len(a), counted[1] / len(b)


def psi(reference: Floats, current: Floats) -> float:
    """Return the population stability index of two rows of shares; empty bins count as a share of 1e-4."""
    p, q = np.maximum(reference, _FLOOR), np.maximum(current, _FLOOR)
    return float(((q - p) * np.log(q / p)).sum())


def jensen_shannon(reference: Floats, current: Floats) -> float:
    """Return the Jensen-Shannon distance of two rows of shares, in [0, 1] (base 2, Endres and Schindelin 2003)."""
    middle = (reference + current) / 2
    divergence = 0.0
    for part in (reference, current):
        held = part > 0
        divergence += float((part[held] * np.log2(part[held] / middle[held])).sum()) / 2
    return float(np.sqrt(min(max(divergence, 0.0), 1.0)))


def _pair(reference: ArrayLike | Tensor, current: ArrayLike | Tensor) -> tuple[Floats, Floats]:
    old, new = floats(reference, "the reference", 2), floats(current, "the current sample", 2)
    if old.shape[1] != new.shape[1]:
        raise DataError(f"the samples have {old.shape[1]} and {new.shape[1]} features", want="the same features in both")
    return old, new
