"""A figure with what is behind it, and none where nothing was measured."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from hauberk.core.errors import UsageError
from hauberk.core.finding import Interval
from hauberk.core.stats import mean_interval, wilson
from hauberk.core.target import Target


@dataclasses.dataclass(frozen=True)
class Figure:
    """One figure.

    Arguments:
        value: None where nothing was measured: no sample qualified, so that neither 0 nor 1 would be true.
        n: samples behind it.
        interval: its 95 % interval; None where there is none to be had.
    """

    value: float | None = None
    n: int = 0
    interval: Interval | None = None

    @property
    def measured(self) -> bool:
        """Whether there is a value."""
        return self.value is not None

    def words(self, digits: int = 3) -> str:
        """Return the value as text, or "not measured"."""
        return "not measured" if self.value is None else f"{self.value:.{digits}f}"


NOTHING = Figure()


def one_class(target: Target, who: str) -> None:
    """Raise UsageError where the target answers several labels per sample: the figures of `who` are about one class."""
    if target.multi_label:
        raise UsageError(
            f"{who} was given a model of several labels per sample", want="a model that answers one class per sample",
            fix="Measure each label on its own, as a model of one column, or use worst_case or robust_curve",
        )


def share(hits: Tensor) -> Figure:
    """Return the share of True in booleans of shape (n,), with Wilson's interval; not measured for n = 0."""
    n, count = len(hits), int(hits.sum())
    return Figure(count / n, n, wilson(count, n)) if n else NOTHING


def mean(values: Tensor) -> Figure:
    """Return the mean of the finite values of shape (n,), with Student's interval; not measured where there are none."""
    kept = values.double()[values.isfinite()]
    if not len(kept):
        return NOTHING
    interval = mean_interval(kept.cpu().numpy()) if len(kept) > 1 else None
    return Figure(float(kept.mean()), len(kept), interval)


def median(values: Tensor) -> Figure:
    """Return the median of shape (n,) with the interval of order statistics that holds for any distribution.

    The values may be infinite (beyond what was measured): the median is not measured where it falls among those, and an end of
    the interval that does is infinite.
    """
    from scipy.stats import binom

    n = len(values)
    if not n:
        return NOTHING
    ordered = values.double().sort().values
    middle = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    if not bool(torch.isfinite(middle)):
        return Figure(None, n)
    # P(x_(k) <= median <= x_(n + 1 - k)) = 1 - 2 P(Binomial(n, 1/2) < k), k from 1; below six values none reaches 95 %.
    rank = int(binom.ppf(0.025, n, 0.5))
    if rank < 1:
        return Figure(float(middle), n, Interval(float(ordered[0]), float(ordered[-1]), "range", 1 - 2 * 0.5**n))
    return Figure(float(middle), n, Interval(float(ordered[rank - 1]), float(ordered[n - rank]), "order-statistics", 0.95))
