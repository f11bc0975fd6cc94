"""JSMA: the features that matter most, one or two at a time, to their ends."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.attacks import LABEL_GOALS, attack
from hauberk.core.target import Target
from hauberk.core.threat import Goal, Threat
from hauberk.robustness.attack.linear import opening, slopes
from hauberk.robustness.attack.nearest import Nearest, fewer

_FIRST = 64  # features of the largest saliency by themselves, among which pairs are sought


@attack(
    question="How few features have to change for a wrong answer, chosen by a saliency map?",
    access=Access.GRADIENT,
    paper="Papernot et al. 2016, arXiv:1511.07528",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.000", "owasp:ML01", "nist:NISTAML.022"),
    preset="thorough",
    norms=("l0",),
    goals=LABEL_GOALS,
    minimum_norm=True,
    classes_alone=True,
)
def jsma(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, steps: int = 50, pairs: bool = True, theta: float = 1.0,
    trials: int = 5, rivals: int = 9,
) -> Tensor:
    """Change, step by step, the features that raise the wanted logit and lower the others the most.

    Targeted, all other logits together have to fall; untargeted, that of the true label, below the largest other one. Features
    move up or down, whichever helps; one that moved to its end is not chosen again.

    Arguments:
        target: with GRADIENT access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: L0; `eps` is the most features that count, `math.inf` gives the fewest found.
        steps: features, or pairs of them, moved at most.
        pairs: two features at a time, as published; False: one.
        theta: length of a move, in ranges of the feature.
        trials: of the point found, to make do with a feature less, as the paper does not.
        rivals: classes whose planes are looked at to begin with, a gradient each; 0 looks at none.

    Returns:
        The point of fewest changes seen of each sample, shape (n, ...).
    """
    near = Nearest(target, x, y, threat)
    everybody = rows = near.start()
    low, high = near.low, near.high
    opening(near, rows, rivals)
    delta = torch.zeros_like(near.clean[rows])
    for _ in range(steps):
        if not len(rows):
            break
        z, logits, _ = near.follow(delta, rows)
        own, others = logits.gather(1, y[rows][:, None]), logits.scatter(1, y[rows][:, None], -torch.inf)
        if threat.goal is Goal.TARGETED:
            pair = torch.cat([own, logits.sum(1, keepdim=True) - own], 1)
        else:
            pair = torch.cat([others.amax(1, keepdim=True), own], 1)
        slope = slopes(pair, z).to(near.dtype)  # (rows, 2, features): of what shall rise, and of what shall fall
        raised, lowered = slope[:, 0], -slope[:, 1]
        way = (raised + lowered).sign()
        room = torch.where(way > 0, high[rows] - delta, delta - low[rows])
        chosen = _salient(raised * way * room, lowered * way * room, room > 0, pairs)
        moved = delta + chosen * way * theta * (high - low)[rows]
        moved = torch.minimum(torch.maximum(moved, low[rows]), high[rows])
        going = (moved != delta).any(1)
        rows, delta = rows[going], moved[going]
        if len(rows):
            going = ~near.ask(delta, rows)[1]
            rows, delta = rows[going], delta[going]
    fewer(near, everybody, trials)
    return near.finish()


def _salient(raised: Tensor, lowered: Tensor, open_to: Tensor, pairs: bool) -> Tensor:
    """Return a mask of the feature or pair of the largest saliency, shape (n, features).

    Saliency is what is raised times what is lowered, where both are above zero; else their sum, below any product.
    """
    def saliency(up: Tensor, down: Tensor) -> Tensor:
        return torch.where((up > 0) & (down > 0), up * down, torch.where(up + down > 0, -1 / (up + down), -torch.inf))

    alone = torch.where(open_to, saliency(raised, lowered), -torch.inf)
    best = alone.argmax(1, keepdim=True)
    chosen = torch.zeros_like(open_to).scatter(1, best, alone.gather(1, best).isfinite())
    if not pairs or raised.shape[1] < 2:
        return chosen
    first = alone.topk(min(_FIRST, alone.shape[1]), 1)
    up, down = raised.gather(1, first.indices), lowered.gather(1, first.indices)
    both = saliency(up[:, :, None] + up[:, None], down[:, :, None] + down[:, None])  # (n, first, first)
    usable = first.values.isfinite()
    same = torch.eye(up.shape[1], dtype=torch.bool, device=up.device)
    both = torch.where(usable[:, :, None] & usable[:, None] & ~same, both, -torch.inf).flatten(1)
    top = both.argmax(1, keepdim=True)
    some = both.gather(1, top).isfinite()
    two = torch.cat([first.indices.gather(1, top // up.shape[1]), first.indices.gather(1, top % up.shape[1])], 1)
    return torch.where(some, torch.zeros_like(chosen).scatter(1, two, True), chosen)
