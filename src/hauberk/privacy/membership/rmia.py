"""RMIA: how many other records does the target prefer this one to, beyond what references would?"""

from __future__ import annotations

import numpy as np
from torch import nn

from hauberk.core.access import Access
from hauberk.core.errors import UsageError
from hauberk.core.kinds import MembershipScores, inference
from hauberk.core.stats import Floats
from hauberk.core.target import Target, as_target
from hauberk.privacy.membership import signals
from hauberk.privacy.membership.evidence import Evidence, gathered
from hauberk.privacy.membership.loss import TAGS
from hauberk.privacy.membership.references import References
from hauberk.privacy.membership.signals import Records


@inference(
    question="How many training records does the target favour, against other records and what references say of both?",
    access=Access.SCORE, paper="Zarifzadeh et al. 2024, arXiv:2312.03262", tags=TAGS, references=True,
)
def rmia(
    target: Target | nn.Module, members: Records, non_members: Records, *, references: References | None = None,
    online: bool = False, gamma: float = 2.0, a: float = 0.3,
) -> MembershipScores:
    """Score each record x by the share of records z with (p(x | target) / p(x)) / (p(z | target) / p(z)) >= gamma.

    p(x) is the mean score of the label over trainings with and without x, one half each. Offline only those without are at
    hand, and p(x) = ((1 + a) p_out + (1 - a)) / 2. The z are all records at hand: which of them are members is not used.

    Arguments:
        target: with SCORE access.
        members: records that were trained on, x of shape (m, ...) and labels y of shape (m,).
        non_members: records that were not, likewise.
        references: from `train_references`; None trains four small perceptrons on all records, the weakest choice.
        online: use the references that were trained on a record as well.
        gamma: how much a record must be preferred to another; 1 or more.
        a: how far a record's score without training on it also holds with it, offline: 0 lifts every score to 1, 1 lifts none.

    Returns:
        The scores of both sides, from 0 to 1.

    Raises:
        AccessDenied: below SCORE access.
        UsageError: for a gamma below 1, or an `a` outside 0 to 1.
        DataError: where a record has no reference on a side that is needed.
    """
    if gamma < 1 or not 0 <= a <= 1:
        raise UsageError(f"gamma is {gamma} and a is {a}", want="gamma 1 or more, a from 0 to 1")
    found = gathered(as_target(target), "rmia", (members, non_members), references, signals.log_score).need(inside=online)
    ratio = log_ratio(found, online, a)
    # Counted by their order: n numbers sorted, in place of n x n comparisons.
    ordered = np.sort(ratio)
    return found.split(np.searchsorted(ordered, ratio - np.log(gamma), side="right") / max(len(ordered), 1))


def log_ratio(found: Evidence, online: bool, a: float) -> Floats:
    """Return log p(x | target) - log p(x), shape (n,)."""
    outside = _mean(found, ~found.inside)
    lifted = _mean(found, found.inside) if online else a * outside + (1 - a)
    mean = 0.5 * (outside + lifted)
    made: Floats = found.target - np.log(np.maximum(mean, np.finfo(float).tiny))
    return made


def _mean(found: Evidence, side: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> Floats:
    made: Floats = np.where(side, np.exp(found.references), 0.0).sum(0) / np.maximum(side.sum(0), 1)
    return made
