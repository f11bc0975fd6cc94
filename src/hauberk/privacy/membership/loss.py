"""Membership by loss, and by confidence alone."""

from __future__ import annotations

from torch import nn

from hauberk.core.access import Access
from hauberk.core.kinds import MembershipScores, inference
from hauberk.core.target import Target, as_target
from hauberk.privacy.membership import signals
from hauberk.privacy.membership.signals import Records

TAGS = ("aisec:information-leakage", "atlas:AML.T0024.000", "owasp:ML04", "nist:NISTAML.033")


@inference(
    question="Does a low loss give away that a record was trained on?", access=Access.SCORE, tags=TAGS, preset="quick",
    paper="Yeom et al. 2018, arXiv:1709.01604",
)
def loss_membership(target: Target | nn.Module, members: Records, non_members: Records) -> MembershipScores:
    """Score each record by minus its cross-entropy loss.

    Arguments:
        target: with SCORE access.
        members: records that were trained on, x of shape (m, ...) and labels y of shape (m,).
        non_members: records that were not, likewise.

    Returns:
        The scores of both sides, not tied by rounding while no logit leads the others by more than 700.

    Raises:
        AccessDenied: below SCORE access.
        DataError: for labels that are not classes.
    """
    view = as_target(target)
    view.need(Access.SCORE, "loss-membership")
    sides = [-signals.cross_entropy(*signals.answers(view, side)) for side in (members, non_members)]
    return signals.both_sides(*sides)


@inference(
    question="Does high confidence give away that a record was trained on, where its label is not known?", access=Access.SCORE,
    paper="Salem et al. 2019, arXiv:1806.01246", tags=TAGS, preset="quick",
)
def confidence_membership(target: Target | nn.Module, members: Records, non_members: Records) -> MembershipScores:
    """Score each record by the log-probability of the class that the model prefers; its label is not used.

    Arguments:
        target: with SCORE access.
        members: records that were trained on, x of shape (m, ...) and labels y of shape (m,).
        non_members: records that were not, likewise.

    Returns:
        The scores of both sides.

    Raises:
        AccessDenied: below SCORE access.
    """
    view = as_target(target)
    view.need(Access.SCORE, "confidence-membership")
    logits = [signals.answers(view, side)[0] for side in (members, non_members)]
    return signals.both_sides(*(-signals.cross_entropy(one, one.argmax(1)) for one in logits))
