"""Fairness: does the model serve every group alike? Rates by group, and the gaps between groups with honest intervals."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from hauberk.core.errors import DataError
from hauberk.core.finding import Interval
from hauberk.core.stats import newcombe, wilson
from hauberk.trust.arrays import Floats, Ints, labels

Flags = NDArray[np.bool_]


@dataclasses.dataclass(frozen=True)
class Rate:
    """A share with the counts behind it."""

    hits: int
    n: int

    @property
    def value(self) -> float:
        """The share; not a number where n is 0."""
        return self.hits / self.n if self.n else float("nan")

    def interval(self, confidence: float = 0.95) -> Interval:
        """Its Wilson interval."""
        return wilson(self.hits, self.n, confidence)


@dataclasses.dataclass(frozen=True)
class GroupRates:
    """What one group meets, `positive` being the class that counts as being selected."""

    group: int
    n: int
    accuracy: Rate
    selection: Rate
    tpr: Rate
    fpr: Rate


@dataclasses.dataclass(frozen=True)
class Gap:
    """The largest difference of a rate between two groups.

    Arguments:
        value: the difference, or the ratio of the lowest to the highest.
        interval: simultaneous over all pairs that were compared.
        p: chance of a gap so large if groups were named at random.
        high, low: the groups with the highest and lowest rate.
        positive: the class for which it was found; -1 where no class plays a part.
    """

    value: float
    interval: Interval
    p: float
    high: int
    low: int
    positive: int = -1


def group_rates(
    y: ArrayLike | Tensor, predicted: ArrayLike | Tensor, groups: ArrayLike | Tensor, *, positive: int = 1
) -> list[GroupRates]:
    """Return the rates of every group, in the order of their numbers.

    Arguments:
        y: true labels, shape (n,).
        predicted: predicted labels, shape (n,).
        groups: the group of each sample, shape (n,), whole numbers from 0.
        positive: the class that counts as selected.
    """
    truth, guess, member = _triple(y, predicted, groups)
    found = []
    for group in np.unique(member):
        t, g = truth[member == group], guess[member == group]
        chosen, right, yes = g == positive, g == t, t == positive
        found.append(GroupRates(
            int(group), len(t), Rate(int(right.sum()), len(t)), Rate(int(chosen.sum()), len(t)),
            Rate(int((chosen & yes).sum()), int(yes.sum())), Rate(int((chosen & ~yes).sum()), int((~yes).sum())),
        ))
    return found


def accuracy_gap(
    y: ArrayLike | Tensor, predicted: ArrayLike | Tensor, groups: ArrayLike | Tensor, *, rng: np.random.Generator,
    permutations: int = 500, least: int = 10,
) -> Gap:
    """Return the difference between the group served best and the one served worst.

    Arguments:
        y, predicted, groups: as in `group_rates`.
        rng: of the permutations.
        permutations: for the p-value.
        least: groups with fewer samples are not compared.

    Returns:
        The gap; its interval holds for all pairs of groups at once (Newcombe 1998, Bonferroni).

    Raises:
        DataError: where fewer than two groups can be compared.
    """
    truth, guess, member = _triple(y, predicted, groups)
    question = _Rates([truth == guess], [np.ones(len(truth), bool)], [-1], np.zeros_like(truth))
    return _gap(question, member, rng, permutations, least)


def demographic_parity(
    predicted: ArrayLike | Tensor, groups: ArrayLike | Tensor, *, rng: np.random.Generator, classes: int = 2,
    permutations: int = 500, least: int = 10,
) -> Gap:
    """Return the largest difference between groups in how often a class is given, over all classes.

    Arguments: as in `accuracy_gap`; `classes` of the model. With two classes this is the usual demographic parity difference.
    """
    _, guess, member = _triple(predicted, predicted, groups)
    everyone = np.ones(len(guess), bool)
    question = _Rates([guess == c for c in range(classes)], [everyone] * classes, list(range(classes)), np.zeros_like(guess))
    return _gap(question, member, rng, permutations, least)


def demographic_parity_ratio(
    predicted: ArrayLike | Tensor, groups: ArrayLike | Tensor, *, positive: int = 1, least: int = 10
) -> tuple[float, Interval]:
    """Return the lowest selection rate over the highest, and an interval that holds for all pairs of groups.

    The "four fifths rule" asks for 0.8 or more. 1 where nobody is selected.
    """
    _, guess, member = _triple(predicted, predicted, groups)
    compared = _compared(member, least)
    rates = [Rate(int((guess[member == group] == positive).sum()), int((member == group).sum())) for group in compared]
    top = max(rate.value for rate in rates)
    value = min(rate.value for rate in rates) / top if top > 0 else 1.0
    pairs = list(itertools.permutations(rates, 2))
    confidence = 1 - 0.05 / (len(pairs) / 2)
    spans = [ratio_interval(one, other, confidence) for one, other in pairs]
    low, high = min(span.low for span in spans), min(1.0, *(span.high for span in spans))
    return value, Interval(min(low, value), max(high, value), "mover, Bonferroni")


def equalised_odds(
    y: ArrayLike | Tensor, predicted: ArrayLike | Tensor, groups: ArrayLike | Tensor, *, rng: np.random.Generator,
    classes: int = 2, permutations: int = 500, least: int = 10,
) -> Gap:
    """Return the largest difference between groups in a true- or false-positive rate, over all classes (Hardt et al. 2016).

    Arguments: as in `accuracy_gap`; `classes` of the model. With two classes this is the usual equalised-odds difference.
    A rate of a group behind which there are fewer than `least` samples is not compared.
    """
    truth, guess, member = _triple(y, predicted, groups)
    hits = [guess == c for c in range(classes)] * 2
    bases = [truth == c for c in range(classes)] + [truth != c for c in range(classes)]
    # Groups are exchanged among samples of one true label: groups may differ in their labels without any unfairness of the model.
    return _gap(_Rates(hits, bases, list(range(classes)) * 2, truth), member, rng, permutations, least)


def ratio_interval(a: Rate, b: Rate, confidence: float = 0.95) -> Interval:
    """Return the interval of the ratio a / b of two independent shares (MOVER, Donner and Zou 2012); high may be infinite."""
    p, q, first, second = a.value, b.value, a.interval(confidence), b.interval(confidence)

    def bound(left: float, right: float, sign: int) -> float:
        # The roots of a quadratic in the ratio; its leading term vanishes where the limit is twice the share.
        lead, middle, rest = right * (2 * q - right), p * q, left * (2 * p - left)
        if abs(lead) < 1e-12:
            return rest / (2 * middle) if middle > 0 and right > 0 else float("inf")
        return (middle + sign * float(np.sqrt(max(0.0, middle**2 - lead * rest)))) / lead

    return Interval(max(0.0, bound(first.low, second.high, -1)), bound(first.high, second.low, 1), "mover", confidence)


@dataclasses.dataclass(frozen=True)
class _Rates:
    """The shares hits / bases, per rate a mask of samples each; the class each belongs to; who may be exchanged with whom."""

    hits: list[Flags]
    bases: list[Flags]
    positives: list[int]
    strata: Ints


def _gap(rates: _Rates, member: Ints, rng: np.random.Generator, permutations: int, least: int) -> Gap:
    """The largest difference of any of the rates between two groups."""
    compared = _compared(member, least)
    inside = np.isin(member, compared)
    base = np.stack(rates.bases)[:, inside].astype(np.float64)  # (rates, n)
    hit = np.stack(rates.hits)[:, inside] * base
    place, strata = np.searchsorted(compared, member[inside]), rates.strata[inside]
    n, count = _table(base, place, len(compared)), _table(hit, place, len(compared))  # (rates, groups)
    usable = n >= least
    if not (usable.sum(1) >= 2).any():
        raise DataError("no two groups have enough samples of one kind", want=f"at least {least} each", fix="Give more samples")
    wide, top, bottom = _widest(n, count, usable)
    row = int(wide.argmax())
    pairs = [(r, a, b) for r in range(len(n)) for a, b in itertools.permutations(np.flatnonzero(usable[r]).tolist(), 2)]
    # A pair and its mirror image share one interval.
    confidence = 1 - 0.05 / (len(pairs) / 2)
    spans = [
        newcombe(int(count[r, a]), int(n[r, a]), int(count[r, b]), int(n[r, b]), confidence) for r, a, b in pairs
    ]
    sorted_once, mixed, beyond = np.argsort(strata, kind="stable"), np.empty_like(place), 0
    for _ in range(permutations):
        mixed[sorted_once] = place[np.lexsort((rng.random(len(place)), strata))]
        other = _table(base, mixed, len(compared))
        beyond += int(_widest(other, _table(hit, mixed, len(compared)), other >= least)[0].max() >= wide[row] - 1e-12)
    value = float(wide[row])
    low, high = max(0.0, max(span.low for span in spans)), max(value, max(span.high for span in spans))
    return Gap(
        value, Interval(low, high, "newcombe, Bonferroni"), (1 + beyond) / (1 + permutations), int(compared[top[row]]),
        int(compared[bottom[row]]), rates.positives[row],
    )


def _table(rows: Floats, place: Ints, groups: int) -> Floats:
    member = np.zeros((len(place), groups))
    member[np.arange(len(place)), place] = 1
    return np.asarray(rows @ member)


def _widest(n: Floats, count: Floats, usable: Flags) -> tuple[Floats, Ints, Ints]:
    """Per rate: the largest difference between usable groups, the group with the highest and the one with the lowest."""
    rate = count / np.maximum(n, 1)
    high, low = np.where(usable, rate, -np.inf), np.where(usable, rate, np.inf)
    wide = np.where(usable.sum(1) >= 2, high.max(1) - low.min(1), 0.0)
    return wide, high.argmax(1), low.argmin(1)


def _compared(member: Ints, least: int) -> Ints:
    found, count = np.unique(member, return_counts=True)
    compared = found[count >= least]
    if len(compared) < 2:
        raise DataError(
            f"{len(compared)} of {len(found)} groups have {least} samples or more", want="at least two groups to compare",
            fix="Give more samples, or join small groups",
        )
    return compared


def _triple(y: ArrayLike | Tensor, predicted: ArrayLike | Tensor, groups: ArrayLike | Tensor) -> tuple[Ints, Ints, Ints]:
    n = len(np.asarray(groups.cpu() if isinstance(groups, Tensor) else groups))
    return labels(y, n), labels(predicted, n), labels(groups, n)
