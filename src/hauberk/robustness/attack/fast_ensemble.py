"""A cheap ensemble for every day: close to AutoAttack for a fraction of its price, and not AutoAttack."""

from __future__ import annotations

from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.attacks import attack
from hauberk.core.target import Target
from hauberk.core.threat import Goal, Threat
from hauberk.robustness.attack.apgd import apgd, apgd_t
from hauberk.robustness.attack.square import square
from hauberk.robustness.attack.union import Member, attack_in_turn


@attack(
    question="What is left under a few attacks that differ in kind, at a price for every day?",
    access=Access.GRADIENT,
    paper="after Croce and Hein 2020, arXiv:2003.01690",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.000", "owasp:ML01", "nist:NISTAML.022"),
    preset="thorough",
    norms=("linf", "l2", "l1"),
)
def fast_ensemble(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, steps: int = 50, classes: int = 7, queries: int = 1000,
    seed: int = 0,
) -> Tensor:
    """Run APGD on the margin, APGD towards the nearest classes, and Square, each on the samples that still hold.

    In L1 APGD starts twice, and once more on cross-entropy; in Linf and L2 it goes on, twice as long, from two more starts.

    Figures made with it are not comparable with published ones of AutoAttack: state them under this attack's own name.

    Arguments:
        target: with GRADIENT access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: Linf, L2 or L1, any goal.
        steps: of APGD, and of each target class.
        classes: target classes, those of the smallest margin at x, none for a targeted goal. For the same price more of them, at
            fewer steps each, find more than fewer of them do.
        queries: of Square, per sample.
        seed: of all members.

    Returns:
        Points in the ball, shape (n, ...): adversarial where one was seen, else of the lowest margin among the members'.
    """
    sparse = threat.norm == "l1"  # single runs differ more there: what one misses another start or loss finds
    members = [Member("apgd-margin", apgd, {"steps": steps, "loss": "margin", "restarts": 2 if sparse else 1})]
    if sparse:
        members.append(Member("apgd-ce", apgd, {"steps": steps}))
    if threat.goal is not Goal.TARGETED:
        members.append(Member("apgd-t", apgd_t, {"steps": steps, "classes": classes}))
    if not sparse:  # the few that hold so far: twice the steps from two more starts
        members.append(Member("apgd-margin, again", apgd, {"steps": 2 * steps, "loss": "margin", "restarts": 2}))
    members.append(Member("square", square, {"queries": queries}))
    return attack_in_turn(target, x, y, threat, members, seed=seed).z
