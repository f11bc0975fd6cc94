"""Membership by the entropy of the answer, with and without the label."""

from __future__ import annotations

from torch import nn

from hauberk.core.access import Access
from hauberk.core.kinds import MembershipScores, inference
from hauberk.core.target import Target, as_target
from hauberk.privacy.membership import signals
from hauberk.privacy.membership.loss import TAGS
from hauberk.privacy.membership.signals import Records

PAPER = "Song and Mittal 2021, arXiv:2003.10595"


@inference(
    question="Does a sharp answer give away that a record was trained on, where its label is not known?", access=Access.SCORE,
    paper=PAPER, tags=TAGS, preset="quick",
)
def entropy_membership(target: Target | nn.Module, members: Records, non_members: Records) -> MembershipScores:
    """Score each record by minus the entropy of the model's answer; its label is not used.

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
    view.need(Access.SCORE, "entropy-membership")
    logits = [signals.answers(view, side)[0] for side in (members, non_members)]
    return signals.both_sides(*(-signals.entropy(one) for one in logits))


@inference(
    question="Does a sharp and right answer give away that a record was trained on?", access=Access.SCORE, paper=PAPER,
    tags=TAGS, preset="quick",
)
def modified_entropy(target: Target | nn.Module, members: Records, non_members: Records) -> MembershipScores:
    """Score each record by minus the entropy that counts confidence in a wrong class as uncertainty.

    Arguments:
        target: with SCORE access.
        members: records that were trained on, x of shape (m, ...) and labels y of shape (m,).
        non_members: records that were not, likewise.

    Returns:
        The scores of both sides.

    Raises:
        AccessDenied: below SCORE access.
        DataError: for labels that are not classes.
    """
    view = as_target(target)
    view.need(Access.SCORE, "modified-entropy")
    sides = [-signals.label_entropy(*signals.answers(view, side)) for side in (members, non_members)]
    return signals.both_sides(*sides)
