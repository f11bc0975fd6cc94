"""The attack of Carlini and Wagner: the smallest change, by Adam in a space without walls."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.attacks import attack
from hauberk.core.gradients import input_gradient
from hauberk.core.target import Target
from hauberk.core.threat import Threat
from hauberk.robustness.attack.linear import opening
from hauberk.robustness.attack.losses import hinge_gradient
from hauberk.robustness.attack.nearest import Nearest, cosine

_STRETCH = 1.1  # the ends of the range lie where tanh still has a slope: at infinity, pixels of exactly 0 or 1 would be frozen
_TINY = 1e-30  # keeps a gradient of zero from a division by zero


@attack(
    question="How near is a wrong answer, weighed against the distance by optimisation?",
    access=Access.GRADIENT,
    paper="Carlini and Wagner 2017, arXiv:1608.04644",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.000", "owasp:ML01", "nist:NISTAML.022"),
    preset="thorough",
    norms=("l2", "linf"),
    minimum_norm=True,
)
def carlini_wagner(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, steps: int = 100, rounds: int = 5, step_size: float = 0.05,
    weight: float = 3.0, rivals: int = 9,
) -> Tensor:
    """Minimise distance + c max(margin, 0) in tanh space, and search the c of each sample for the least distance.

    For Linf the distance is what features exceed a limit by, and every success lowers the limit.

    Arguments:
        target: with GRADIENT access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: L2 or Linf, any goal; `eps` is the farthest that counts, `math.inf` gives the nearest found.
        steps: steps of Adam for each c.
        rounds: values of c tried.
        step_size: of Adam, in tanh space; it falls to a tenth by a half cosine.
        weight: the first c, as a multiple of the least one at which a linear model of the same slope would give way.
        rivals: classes whose planes are looked at to begin with, a gradient each; 0 begins at x.

    Returns:
        The nearest adversarial point seen of each sample, shape (n, ...).
    """
    near = Nearest(target, x, y, threat)
    rows = near.start()
    if not len(rows):
        return near.finish()
    space = _Space(near.low[rows], near.high[rows])
    opening(near, rows, rivals)
    c = weight * _least_weight(near, rows)
    low, high = torch.zeros_like(c), torch.full_like(c, torch.inf)  # what is known of the best c
    for _ in range(rounds):
        reached = _descend(near, rows, space, c, steps, step_size)
        low, high = torch.where(reached, low, torch.maximum(low, c)), torch.where(reached, torch.minimum(high, c), high)
        lower = (low + high) / 2
        # What pulls back in Linf does not grow with the distance: any c that reaches will do.
        c = torch.where(reached, c, 4 * c) if threat.norm == "linf" else torch.where(high.isfinite(), lower, 10 * c)
    return near.finish()


def _least_weight(near: Nearest, rows: Tensor) -> Tensor:
    """Return the c, shape (rows,), above which a model of the slope at the clean sample is brought to its boundary.

    For Linf, where any c will do within the limit: one at which no feature alone is pushed beyond it.
    """
    z, logits, _ = near.follow(torch.zeros_like(near.clean[rows]), rows)
    margin = near.threat.margin(logits, near.y[rows])
    slope = input_gradient(margin, z).to(near.dtype).flatten(1) * (near.low < near.high)[rows]
    if near.threat.norm == "linf":
        least = 1 / slope.abs().sum(1)
    else:
        least = 2 * margin.detach().to(near.dtype).clamp(min=1e-6) / slope.square().sum(1)
    return torch.where(least.isfinite(), least, torch.ones_like(least))


def _descend(near: Nearest, rows: Tensor, space: _Space, c: Tensor, steps: int, step_size: float) -> Tensor:
    """Run Adam for one c per sample; return which samples reached their goal on the way."""
    norm, y = near.threat.norm, near.y[rows]
    w = space.inverse(near.delta(rows))
    mean, square = torch.zeros_like(w), torch.zeros_like(w)
    limit = near.distance[rows].to(near.dtype)  # of a feature's change, for Linf
    reached = torch.zeros_like(rows, dtype=torch.bool)
    for step in range(steps):
        delta, stretch = space.at(w)
        z, logits, hit = near.follow(delta, rows)
        reached |= hit
        slope = hinge_gradient(logits, y, near.threat, z).to(near.dtype).flatten(1)
        if norm == "linf":
            share, best = cosine(0.1, 0.005, step, steps), near.distance[rows].to(near.dtype)
            limit = torch.where(hit, torch.minimum(limit, best) * (1 - share), torch.minimum(limit * (1 + share), best))
            pull = delta.sign() * (delta.abs() > limit[:, None])
        else:
            pull = 2 * delta
        # In place from here: Adam's own tensors are nobody else's. A gradient that comes from a model may be.
        gradient = (slope * c[:, None]).add_(pull).mul_(stretch)
        mean.lerp_(gradient, 0.1)
        square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        size = (square / (1 - 0.999 ** (step + 1))).sqrt_().add_(_TINY)
        length = cosine(step_size, step_size / 10, step, steps) / (1 - 0.9 ** (step + 1))
        w.addcdiv_(mean, size, value=-length).clamp_(-space.edge, space.edge)
    return reached | near.ask(space.at(w)[0], rows)[1]


class _Space:
    """Changes as the tanh of coordinates, whose ends lie at finite places."""

    def __init__(self, low: Tensor, high: Tensor) -> None:
        self.middle, self.half = (low + high) / 2, (high - low) / 2 * _STRETCH
        self.edge = float(torch.atanh(torch.tensor(1 / _STRETCH)))

    def at(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Return the changes at w, and how fast they change with it."""
        tanh = torch.tanh(w)
        return self.middle + self.half * tanh, self.half * (1 - tanh.square())

    def inverse(self, delta: Tensor) -> Tensor:
        tiny = torch.finfo(delta.dtype).tiny
        return torch.atanh(((delta - self.middle) / self.half.clamp(min=tiny)).clamp(-1 / _STRETCH, 1 / _STRETCH))
