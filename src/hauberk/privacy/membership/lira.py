"""LiRA: is the answer likelier from models that were trained on the record, or from models that were not?"""

from __future__ import annotations

import numpy as np
from torch import nn

from hauberk.core.access import Access
from hauberk.core.errors import UsageError
from hauberk.core.kinds import MembershipScores, inference
from hauberk.core.stats import Floats
from hauberk.core.target import Target, as_target
from hauberk.privacy.membership import signals
from hauberk.privacy.membership.evidence import LEAST, Moments, gathered
from hauberk.privacy.membership.loss import TAGS
from hauberk.privacy.membership.references import References
from hauberk.privacy.membership.signals import Records

VARIANCES = ("fixed", "typical", "per-example")


@inference(
    question="How many training records stand out at few false alarms, against models trained with and without them?",
    access=Access.SCORE, paper="Carlini et al. 2022, arXiv:2112.03570", tags=TAGS, references=True,
)
def lira(
    target: Target | nn.Module, members: Records, non_members: Records, *, references: References | None = None,
    online: bool = True, variance: str = "fixed",
) -> MembershipScores:
    """Score each record by the log-ratio of two Gaussians fitted to the log-odds of reference models.

    Online: log N(s; in) - log N(s; out), where `in` are the references trained on the record and `out` the others. Offline: how
    far s lies above the `out` alone, in their standard deviations (the order of the paper's one-sided test). Each side's
    variance comes from that side's references.

    Arguments:
        target: with SCORE access.
        members: records that were trained on, x of shape (m, ...) and labels y of shape (m,).
        non_members: records that were not, likewise.
        references: from `train_references`; None trains four small perceptrons on all records, the weakest choice.
        online: use the references that were trained on a record as well.
        variance: `fixed` takes one variance for all records, right below some 32 references; `typical` also one, that of the
            typical record (see `Moments.typical`): often better at few false alarms; `per-example` one for each.

    Returns:
        The scores of both sides.

    Raises:
        AccessDenied: below SCORE access.
        UsageError: for another `variance`.
        DataError: where a record has no reference on a side that is needed.
    """
    if variance not in VARIANCES:
        raise UsageError(f"variance is {variance!r}", want=" or ".join(map(repr, VARIANCES)))
    found = gathered(as_target(target), "lira", (members, non_members), references, signals.log_odds).need(inside=online)
    outside = Moments.of(found.references, ~found.inside)
    spread = variance_of(outside, variance)
    if not online:
        return found.split((found.target - outside.mean) / np.sqrt(spread))
    within = Moments.of(found.references, found.inside)
    return found.split(
        log_normal(found.target, within.mean, variance_of(within, variance)) - log_normal(found.target, outside.mean, spread)
    )


def variance_of(side: Moments, kind: str) -> Floats:
    """Return the variance of each record on one side, shape (n,); a record with one reference takes that of all."""
    pooled = np.full(len(side.mean), side.typical if kind == "typical" else side.pooled)
    own = side.squares / np.maximum(side.count - 1, 1)
    return np.maximum(np.where((side.count > 1) & (kind == "per-example"), own, pooled), LEAST)


def log_normal(s: Floats, mean: Floats, variance: Floats) -> Floats:
    """Return the log-density of a normal law, up to the constant."""
    made: Floats = -0.5 * (np.log(variance) + (s - mean) ** 2 / variance)
    return made
