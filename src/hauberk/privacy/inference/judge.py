"""What attribute guesses are worth: the advantage over a guess that never saw the model, and how often the surest are right."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from hauberk.core.errors import DataError
from hauberk.core.finding import Interval
from hauberk.core.stats import mcnemar, paired_difference, wilson
from hauberk.privacy.inference.sensitive import Guesses


@dataclasses.dataclass(frozen=True)
class AttributeVerdict:
    """Attribute guesses beside their baseline, on the same records.

    Arguments:
        n: records.
        accuracy, accuracy_interval: of the attack (Wilson).
        baseline: accuracy of the imputation.
        advantage, advantage_interval: accuracy minus baseline, over the same records (Bonett and Price).
        p: that the two are equally accurate (McNemar, exact, two-sided).
        top: how many of the surest guesses of the positive value are looked at.
        ppv, ppv_interval: share of them that truly hold it.
        baseline_ppv: the same of the imputation's surest.
        share: of the records that hold the positive value: what guessing at random would hit.
    """

    n: int
    accuracy: float
    accuracy_interval: Interval
    baseline: float
    advantage: float
    advantage_interval: Interval
    p: float
    top: int
    ppv: float
    ppv_interval: Interval
    baseline_ppv: float
    share: float


def judge_attributes(
    attack: Guesses, baseline: Guesses, truth: Tensor, *, positive: int | None = None, top: int = 100
) -> AttributeVerdict:
    """Score guesses of an attribute against those of an imputation, which never saw the model.

    Arguments:
        attack, baseline: of the same records in the same order.
        truth: the value each truly holds, shape (n,).
        positive: the value that the ranking is about; None takes the rarest of those that one record in twenty holds.
        top: records in the ranking's head; at most n.

    Raises:
        DataError: for guesses of different records, or none.
    """
    n = len(truth)
    if not n or attack.scores.shape != baseline.scores.shape or len(attack.scores) != n:
        raise DataError(
            f"there are {len(attack.scores)} guesses, {len(baseline.scores)} of the baseline and {n} truths",
            want="the same records for each, at least one",
        )
    truth = truth.cpu()
    right, other = attack.codes == truth, baseline.codes == truth
    counts = truth.bincount(minlength=attack.scores.shape[1]).double()
    common = counts >= n / 20
    held = torch.where(common if bool(common.any()) else counts > 0, counts, torch.inf)
    value = int(held.argmin()) if positive is None else positive
    top = min(top, n)
    found, blind = (int((truth[order_of(one, value)[:top]] == value).sum()) for one in (attack, baseline))
    first, second = int((right & ~other).sum()), int((other & ~right).sum())
    return AttributeVerdict(
        n, float(right.double().mean()), wilson(int(right.sum()), n), float(other.double().mean()), (first - second) / n,
        paired_difference(first, second, n), mcnemar(first, second), top, found / top, wilson(found, top), blind / top,
        float((truth == value).double().mean()),
    )


def order_of(guesses: Guesses, value: int) -> Tensor:
    """Return the records from the surest of that value to the least sure, by its lead over the best other value, shape (n,)."""
    others = guesses.scores.clone()
    others[:, value] = -torch.inf
    return (guesses.scores[:, value] - others.max(1).values).argsort(descending=True, stable=True)
