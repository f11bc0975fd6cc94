"""Attacks in turn, each on the samples that held against those before it, with what each broke and spent."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hauberk.core.attacks import Attack
from hauberk.core.rng import derive_seed
from hauberk.core.target import Target, as_target
from hauberk.core.threat import Threat


@dataclasses.dataclass(frozen=True)
class Member:
    """One attack of an ensemble, under the name that reports call it by."""

    name: str
    attack: Attack
    options: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class MemberReport:
    """What one member did.

    Arguments:
        name: of the member; `clean` is the look at the undisturbed samples.
        asked: how many samples it was given.
        broken: which samples it broke, shape (n,), bool: those of the members before it are not among them.
        queries, gradients: what it spent, the queries by which its points were verified included.
    """

    name: str
    asked: int
    broken: Tensor
    queries: int
    gradients: int


@dataclasses.dataclass(frozen=True)
class UnionReport:
    """What attacks in turn did.

    Arguments:
        z: the points found, shape (n, ...): adversarial where one was verified, else of the lowest margin among those that the
            members returned.
        broken: which samples reach the goal at z, shape (n,), bool.
        members: what each did, in the order of their turns; their masks have no sample in common.
    """

    z: Tensor
    broken: Tensor
    members: tuple[MemberReport, ...]


def attack_in_turn(
    model: Target | nn.Module, x: Tensor, y: Tensor, threat: Threat, members: Sequence[Member], *, answers: int = 1,
    seed: int = 0,
) -> UnionReport:
    """Let the members attack in turn; whatever one has broken is not shown to the next.

    Every point is asked about again after the member returned it: what counts is the answer, not the member's word.

    Arguments:
        model: with the access that the members need.
        x: clean inputs, shape (n, ...).
        y: labels, as the attacks take them.
        threat: with a norm and a goal that all members support.
        members: in the order of their turns; the cheapest first spends least, and in no order is more or less broken.
        answers: asked for about each point; it is broken when every one of them reaches the goal.
        seed: from which those of the members are derived.
    """
    target = as_target(model)
    best, margin = x.clone(), torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
    broken = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    reports = []
    for name, member in [("clean", None), *((one.name, one) for one in members)]:
        rows, view, new = (~broken).nonzero()[:, 0], target.fresh(), torch.zeros_like(broken)
        if len(rows):
            part, labels = threat.subset(rows, x), y[rows]
            z = x[rows] if member is None else _play(member, view, x[rows], labels, part, seed)
            hit, height = torch.ones_like(rows, dtype=torch.bool), torch.zeros_like(margin[rows])
            for _ in range(answers):
                logits = view.logits(z)
                hit &= part.success(logits, labels)
                height += part.margin(logits, labels).double() / answers
            better = hit | (height < margin[rows])
            best[rows[better]], margin[rows[better]] = z[better], height[better]
            new[rows[hit]] = True
            broken |= new
        reports.append(MemberReport(name, len(rows), new, view.ledger.queries, view.ledger.gradients))
    return UnionReport(best, broken, tuple(reports))


def _play(member: Member, view: Target, x: Tensor, y: Tensor, threat: Threat, seed: int) -> Tensor:
    options = dict(member.options)
    if "seed" in inspect.signature(member.attack).parameters:
        options["seed"] = derive_seed(seed, "in turn", member.name)
    return member.attack(view, x, y, threat, **options)
