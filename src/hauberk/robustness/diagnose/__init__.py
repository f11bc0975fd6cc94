"""Diagnosis: can an evaluation be believed, or do the gradients, the loss or the model's own noise fool it?"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from hauberk.core import rng
from hauberk.core.access import Access
from hauberk.core.errors import UsageError
from hauberk.core.target import Target, as_target
from hauberk.core.threat import Goal, Threat, labels_of
from hauberk.robustness.diagnose.alarm import Alarm as Alarm
from hauberk.robustness.diagnose.alarm import Diagnosis as Diagnosis
from hauberk.robustness.diagnose.alarm import Treatment as Treatment
from hauberk.robustness.diagnose.case import Case, hookable
from hauberk.robustness.diagnose.case import Search as Search
from hauberk.robustness.diagnose.contest import contest
from hauberk.robustness.diagnose.signs import repeats
from hauberk.robustness.diagnose.treat import treat

_ASKS = 9


def diagnose(
    target: Target | nn.Module, x: Tensor, y: Tensor, threat: Threat, *, remedy: bool = False, search: Search | None = None,
    seed: int = 0,
) -> Diagnosis:
    """Look for the signs of gradient masking and of attacks that fail for reasons of their own.

    Arguments:
        target: with GRADIENT access.
        x, y: samples and true labels; those misclassified already are left out.
        threat: the ball under which robustness was measured, untargeted; its radius is above zero.
        remedy: apply the remedies that the signs call for, and say what they bring to light.
        search: the attack in question, its effort, and examples of another model; None takes PGD and a substitute.
        seed: of all attacks.

    Raises:
        UsageError: for a radius of zero, where there is nothing to attack, or a goal other than untargeted.

    Returns:
        Fourteen signs, the accuracy left before and after, and a verdict; no signs where no sample is classified correctly. After
        Athalye et al. 2018 (arXiv:1802.00420), Carlini et al. 2019 (arXiv:1902.06705), Croce and Hein 2020 (arXiv:2003.01690),
        Pintor et al. 2022 (arXiv:2106.09947) and Zimmermann et al. 2022 (arXiv:2206.13991).
    """
    view = hookable(as_target(target).seen_at(Access.GRADIENT))
    threat = threat.within(view.bounds if view.bounds is not None else (0.0, 1.0))
    if not bool((torch.as_tensor(threat.eps) > 0).all()):
        raise UsageError(f"the radius is {threat.eps}", want="a radius above zero", fix="Give the radius the model should hold")
    if threat.goal is not Goal.UNTARGETED:
        raise UsageError(f"the goal is '{threat.goal.value}'", want="untargeted", fix="Diagnose the threat without a target")
    # Models that draw, and those of ours, draw from streams of their own.
    with rng.isolated(rng.derive_seed(seed, "diagnose"), x.device):
        return _diagnose(view, x, y, threat, remedy, search or Search(), seed)


def _diagnose(
    view: Target, x: Tensor, y: Tensor, threat: Threat, remedy: bool, how: Search, seed: int
) -> Diagnosis:
    logits = view.logits(x)
    right = labels_of(logits) == y
    index = right.nonzero()[:, 0]
    if how.sister is not None:
        how = dataclasses.replace(how, sister=how.sister[right])
    case = Case(view, x[index], y[index], threat.subset(index, x), how, seed)
    if not len(case):
        return Diagnosis((), len(x), 0, 0, 0, (), view.ledger.queries, view.ledger.gradients)
    first = repeats(view, case.x, logits[right])
    if first.level == "raised":
        case = dataclasses.replace(case, asks=_ASKS)
    found = contest(case)
    alarms = [first, *found.alarms]
    treatments, fallen = treat(case, alarms, found.plain, len(x)) if remedy else ([], found.plain)
    before, after = int((~found.plain).sum()), int((~(found.known | fallen)).sum())
    return Diagnosis(alarms, len(x), len(case), before, after, treatments, view.ledger.queries, view.ledger.gradients)
