"""Membership by whether the model is right: what any answer gives away, labels alone included."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hauberk.core.access import Access
from hauberk.core.kinds import MembershipScores, inference
from hauberk.core.target import Target, as_target
from hauberk.privacy.membership import signals
from hauberk.privacy.membership.loss import TAGS
from hauberk.privacy.membership.signals import Records


@inference(
    question="Does being right give away that a record was trained on?", access=Access.LABEL, tags=TAGS, preset="quick",
    paper="Yeom et al. 2018, arXiv:1709.01604",
)
def gap_membership(target: Target | nn.Module, members: Records, non_members: Records) -> MembershipScores:
    """Score each record 1 where the model's label is its own, else 0.

    Its balanced accuracy is (1 + training accuracy - test accuracy) / 2: every other attack should do better than that.

    Arguments:
        target: with LABEL access.
        members: records that were trained on, x of shape (m, ...) and labels y of shape (m,).
        non_members: records that were not, likewise.

    Returns:
        The scores of both sides.
    """
    view = as_target(target)
    return signals.both_sides(*(right(view, side).double() for side in (members, non_members)))


def right(view: Target, records: Records) -> Tensor:
    """Return whether the model's label is the record's, shape (n,), bool."""
    x, y = signals.paired(records)
    if not len(x):
        return torch.zeros(0, dtype=torch.bool)
    return view.labels(x.detach()).cpu() == y.cpu()
