"""AutoAttack: the ensemble of parameter-free attacks by which the field compares defences."""

from __future__ import annotations

from torch import Tensor, nn

from hauberk.core import rng
from hauberk.core.access import Access
from hauberk.core.attacks import attack
from hauberk.core.errors import UsageError, nearest
from hauberk.core.target import Target
from hauberk.core.threat import Goal, Threat
from hauberk.robustness.attack.apgd import apgd, apgd_t
from hauberk.robustness.attack.fab import fab, fab_t
from hauberk.robustness.attack.square import square
from hauberk.robustness.attack.union import Member, UnionReport, attack_in_turn

VERSIONS = ("standard", "plus", "rand")
_ANSWERS = 20  # averaged by the version for models that answer at random


@attack(
    question="What is left under AutoAttack, by which published defences are compared?",
    access=Access.GRADIENT,
    paper="Croce and Hein 2020, arXiv:2003.01690; for L1 2021, arXiv:2103.01208",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.000", "owasp:ML01", "nist:NISTAML.022"),
    preset="thorough",
    norms=("linf", "l2", "l1"),
)
def auto_attack(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, version: str = "standard", steps: int = 100, queries: int = 5000,
    seed: int = 0,
) -> Tensor:
    """Run the ensemble as published, each attack on the samples that held against those before it.

    What is broken leaves at once, within an attack as between them, so that a model without a defence costs a few gradients a
    sample; which samples hold does not change by it. Models of two or three classes work: there are as many targets as classes
    but one, and the ratio of logits, not defined there, is their difference.

    Arguments:
        target: with GRADIENT access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: Linf, L2 or L1. Published for untargeted goals; for others the members that choose their own target classes give
            way to those of one way alone.
        version: `standard` (APGD on cross-entropy, APGD-T, FAB-T, Square), `plus` (as well APGD on the ratio of logits and FAB,
            and five restarts), or `rand` for models that answer at random (APGD on both losses, twenty answers averaged; a
            point counts as broken when all twenty are wrong).
        steps: of every gradient attack, restart and target class; published: 100.
        queries: of Square, per sample; published: 5,000.
        seed: of all members.

    Returns:
        Points in the ball, shape (n, ...): adversarial where one was seen, else of the lowest margin among the members'.
    """
    members = auto_attack_members(threat, version, steps=steps, queries=queries)
    return attack_in_turn(target, x, y, threat, members, answers=_answers(version), seed=seed).z


def auto_attack_report(
    model: Target | nn.Module, x: Tensor, y: Tensor, threat: Threat, *, version: str = "standard", seed: int = 0
) -> UnionReport:
    """Run AutoAttack and return, beside the points, what each of its members broke and spent.

    Arguments:
        model: with GRADIENT access.
        x: clean inputs, shape (n, ...).
        y: labels, as `auto_attack` takes them.
        threat: Linf, L2 or L1.
        version: as of `auto_attack`.
        seed: of all members.
    """
    members = auto_attack_members(threat, version)
    with rng.isolated(rng.derive_seed(seed, "auto-attack"), x.device):  # a model that draws leaves the caller's stream alone
        return attack_in_turn(model, x, y, threat, members, answers=_answers(version), seed=seed)


def _answers(version: str) -> int:
    return _ANSWERS if version == "rand" else 1


def auto_attack_members(threat: Threat, version: str, *, steps: int = 100, queries: int = 5000) -> list[Member]:
    """Return the attacks of a version, the cheapest first."""
    if version not in VERSIONS:
        raise UsageError(f"version is '{version}'", want=" | ".join(VERSIONS), fix=nearest(version, VERSIONS))
    if version == "rand":
        random = {"steps": steps, "answers": _answers(version)}
        return [Member(f"apgd-{loss}", apgd, {**random, "loss": loss}) for loss in ("ce", "dlr")]
    sparse, plus = threat.norm == "l1", version == "plus"
    # In L1 more starts pay and more target classes do not (section 5 of the second paper).
    restarts, classes = (5 if sparse or plus else 1), (5 if sparse else 9)
    found = []
    if sparse and threat.goal is Goal.UNTARGETED:
        # APGD goes through wider balls first, where no point counts: a part of FAB-T spares it most of what is easily broken.
        found.append(Member("fab-t, first class", fab_t, {"steps": steps, "classes": 1, "early_stop": True}))
    found.append(Member("apgd-ce", apgd, {"steps": steps, "restarts": restarts}))
    if plus or threat.goal is Goal.TARGETED:
        found.append(Member("apgd-dlr", apgd, {"steps": steps, "restarts": restarts, "loss": "dlr"}))
    if threat.goal is not Goal.TARGETED:
        found.append(Member("apgd-t", apgd_t, {"steps": steps, "classes": classes}))
    if threat.goal is Goal.UNTARGETED:
        found.append(Member("fab-t", fab_t, {"steps": steps, "classes": 9, "early_stop": True}))
    if plus or threat.goal is not Goal.UNTARGETED:
        found.append(Member("fab", fab, {"steps": steps, "restarts": 5 if plus else 1, "early_stop": True}))
    return [*found, Member("square", square, {"queries": queries})]
