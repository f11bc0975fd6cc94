"""ROC: true against false positives, with ties handled, and the rates at low false positives that privacy asks for."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import special as _special
from scipy import stats as _stats

from hauberk.core.finding import Curve, Interval, Series
from hauberk.core.stats import Floats, clopper_pearson


@dataclasses.dataclass(frozen=True)
class Roc:
    """A receiver operating characteristic: one point per distinct score, from (0, 0) to (1, 1)."""

    fpr: Floats
    tpr: Floats
    thresholds: Floats
    positives: int
    negatives: int

    @property
    def auc(self) -> float:
        """Area under the curve; ties count one half, so that equal scores give .5."""
        return float(np.trapezoid(self.tpr, self.fpr))

    @property
    def balanced_accuracy(self) -> float:
        """The best (tpr + 1 - fpr) / 2 over all thresholds."""
        return float(((self.tpr + 1 - self.fpr) / 2).max())

    def balanced_interval(self, confidence: float = 0.95) -> Interval:
        """Return an interval of the best balanced accuracy that these scores really have, whichever threshold is the best one.

        Both distributions lie within the band of Dvoretzky, Kiefer and Wolfowitz (with Massart's constant) at all thresholds at
        once; each side gets half of 1 - confidence.
        """
        tail = (1 - confidence) / 2
        reach = float(sum(np.sqrt(np.log(2 / tail) / (2 * n)) for n in (self.positives, self.negatives))) / 2
        centre = self.balanced_accuracy
        return Interval(max(0.5, centre - reach), min(1.0, centre + reach), "dvoretzky-kiefer-wolfowitz", confidence)

    def tpr_at(self, fpr: float) -> float:
        """Return the largest true-positive rate at a false-positive rate of at most `fpr`; nothing is interpolated."""
        return float(self.tpr[self.fpr <= fpr + 1e-12].max())

    def tpr_interval(self, fpr: float, confidence: float = 0.95) -> Interval:
        """Return an interval of the true-positive rate that these scores really have at a false-positive rate of at most `fpr`.

        The threshold is estimated too: how many of the negatives lie beyond the true one is binomial, which puts it between two
        of them whatever the scores' law. The ends are those of Clopper and Pearson at these two thresholds. Each of the four
        errors gets a quarter of 1 - confidence (Bonferroni), so that the interval holds the truth at least that often, ties
        included. Where `fpr` x negatives is below some 4, no threshold is surely low enough and the lower end is 0:
        `surely_ahead` still tells whether positives stand out.
        """
        tail = (1 - confidence) / 4
        fewest, most = _beyond(self.negatives, min(max(fpr, 0.0), 1.0), tail)
        low = self._hits((fewest - 1) / self.negatives) if fewest else 0
        high = self._hits(most / self.negatives)
        return Interval(
            clopper_pearson(low, self.positives, 1 - 2 * tail).low, clopper_pearson(high, self.positives, 1 - 2 * tail).high,
            "order statistics and clopper-pearson", confidence,
        )

    def surely_ahead(self, fpr: float, confidence: float = 0.95) -> float:
        """Return how many times as many positives as negatives surely lie beyond the threshold of `tpr_at(fpr)`.

        A lower bound of the ratio of the two true rates at that threshold. It lies at the next negative, whose own
        false-positive rate follows a beta law whatever the scores' law; Bonferroni joins the bounds of both rates.
        """
        alarms = int(fpr * self.negatives + 1e-9)
        low = clopper_pearson(self._hits(fpr), self.positives, confidence).low
        return low / clopper_pearson(min(alarms, self.negatives), self.negatives, confidence).high

    def _hits(self, fpr: float) -> int:
        return round(self.tpr_at(fpr) * self.positives)

    def curve(self, title: str, name: str, floor: float = 1e-3) -> Curve:
        """Return the curve on log axes; points below `floor` lie on its edge."""
        keep = np.unique(np.concatenate([np.flatnonzero(np.diff(self.tpr, prepend=-1, append=2))[:-1], [len(self.tpr) - 1]]))
        if len(keep) > 200:
            keep = keep[np.unique(np.linspace(0, len(keep) - 1, 200).astype(int))]
        x, y = np.maximum(self.fpr[keep], floor), np.maximum(self.tpr[keep], floor)
        series = [Series(name, x.tolist(), y.tolist())]
        return Curve(title, "false-positive rate", "true-positive rate", series, log_x=True, log_y=True, diagonal=True)


@functools.lru_cache(maxsize=256)
def _beyond(n: int, rate: float, tail: float) -> tuple[int, int]:
    """Return two counts of a binomial law: fewer than the one, and more than the other, come with probability <= tail each."""
    law = _stats.binom(n, rate)
    return int(law.ppf(tail)), int(law.isf(tail))


def roc(positive_scores: ArrayLike, negative_scores: ArrayLike) -> Roc:
    """Return the ROC of scores that should be higher for positives.

    Arguments:
        positive_scores, negative_scores: shapes (p,) and (q,), both at least one long, no NaN.

    Raises:
        ValueError: for an empty side or a NaN.
    """
    positive, negative = np.asarray(positive_scores, dtype=float), np.asarray(negative_scores, dtype=float)
    if not len(positive) or not len(negative):
        raise ValueError(f"a ROC needs both sides, got {len(positive)} positive and {len(negative)} negative scores")
    if np.isnan(positive).any() or np.isnan(negative).any():
        raise ValueError("a ROC cannot order NaN scores")
    thresholds = np.unique(np.concatenate([positive, negative]))[::-1]
    hits = len(positive) - np.searchsorted(np.sort(positive), thresholds, side="left")
    alarms = len(negative) - np.searchsorted(np.sort(negative), thresholds, side="left")
    return Roc(
        np.concatenate([[0.0], alarms / len(negative)]), np.concatenate([[0.0], hits / len(positive)]),
        np.concatenate([[np.inf], thresholds]), len(positive), len(negative),
    )


def auc_interval(positive_scores: ArrayLike, negative_scores: ArrayLike, confidence: float = 0.95) -> Interval:
    """Return the interval of the area under the ROC: DeLong's variance (1988) on the logit scale, as for other rates.

    Taken straight, it would miss an area near 1 far too often: it is not symmetric there. Where one side's scores all stand
    alike against the other's, DeLong takes that side to be certain; then one score below all and one above are added to each
    side, as Agresti and Caffo (2000) add successes and failures. Where the two sides do not overlap, the exact interval of
    min(p, q) disjoint pairs, all won or all lost, is returned.
    """
    positive, negative = np.asarray(positive_scores, dtype=float), np.asarray(negative_scores, dtype=float)
    if len(positive) < 2 or len(negative) < 2:
        return Interval(0.0, 1.0, "delong", confidence)
    wins, losses = beaten(positive, negative)
    seen = centre = float(wins.mean())
    if centre in (0.0, 1.0):
        pairs = min(len(positive), len(negative))
        return clopper_pearson(pairs if centre else 0, pairs, confidence)
    z = float(_stats.norm.ppf(0.5 + confidence / 2))
    if not np.ptp(wins) or not np.ptp(losses):
        wins, losses = beaten(*(np.concatenate([one, [-np.inf, np.inf]]) for one in (positive, negative)))
        centre = float(wins.mean())
        half = z * _deviation(wins, losses)
        return Interval(max(0.0, min(seen, centre - half)), min(1.0, max(seen, centre + half)), "delong, added", confidence)
    half = z * _deviation(wins, losses) / (centre * (1 - centre))
    low, high = (float(_special.expit(_special.logit(centre) + end)) for end in (-half, half))
    return Interval(low, high, "delong, logit", confidence)


def _deviation(wins: Floats, losses: Floats) -> float:
    return float(np.sqrt(wins.var(ddof=1) / len(wins) + losses.var(ddof=1) / len(losses)))


def beaten(positive_scores: ArrayLike, negative_scores: ArrayLike) -> tuple[Floats, Floats]:
    """Return the share of negatives below each positive, and of positives above each negative; ties count one half.

    The mean of either is the area; their spread is what DeLong's variance is made of.
    """
    positive, negative = np.asarray(positive_scores, dtype=float), np.asarray(negative_scores, dtype=float)
    joint = _stats.rankdata(np.concatenate([positive, negative]))
    wins = (joint[: len(positive)] - _stats.rankdata(positive)) / len(negative)
    losses = 1 - (joint[len(positive) :] - _stats.rankdata(negative)) / len(positive)
    return wins, losses


def auc_gain(
    a: Sequence[tuple[ArrayLike, ArrayLike]], b: Sequence[tuple[ArrayLike, ArrayLike]],
    records: Sequence[tuple[ArrayLike, ArrayLike]] | None = None, confidence: float = 0.95,
) -> tuple[float, Interval]:
    """Return the area of rule a less that of rule b on the same records, averaged over runs, with its paired interval.

    DeLong's variance of a difference. A record that appears in several runs (a member of one model, not of another) is one
    cluster: what it adds to each run is summed before the variance is taken (Obuchowski 1997).

    Arguments:
        a, b: per run the scores of positives and negatives, in one order for both rules.
        records: per run which record each score belongs to, whole numbers; None where no record appears twice.

    Raises:
        ValueError: for runs of different sizes.
    """
    gains, names, shares, next_name = [], [], [], 0
    for run, (left, right) in enumerate(zip(a, b, strict=True)):
        sides = [beaten(*left), beaten(*right)]
        differences = [one - other for one, other in zip(*sides, strict=True)]
        gains.append(float(differences[0].mean()))
        for side, one in enumerate(differences):
            shares.append((one - one.mean()) / len(one) / len(a))
            own = np.arange(next_name, next_name + len(one)) if records is None else np.asarray(records[run][side])
            names.append(own)
            next_name += len(one)
    _, place = np.unique(np.concatenate(names), return_inverse=True)
    total = np.bincount(place, weights=np.concatenate(shares))
    half = float(_stats.norm.ppf(0.5 + confidence / 2)) * float(np.sqrt((total**2).sum()))
    gain = float(np.mean(gains))
    return gain, Interval(gain - half, gain + half, "delong, paired", confidence)
