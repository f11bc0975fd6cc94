"""ALMA: an augmented Lagrangian for the nearest wrong answer."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.attacks import attack
from hauberk.core.gradients import input_gradient
from hauberk.core.target import Target
from hauberk.core.threat import Threat
from hauberk.robustness.attack.linear import opening
from hauberk.robustness.attack.nearest import Nearest, unit
from hauberk.robustness.attack.polish import polish

_LOOKS = 100  # times that it is asked whether the penalty has to grow
_PROGRESS, _GROWTH = 0.95, 1.2  # it grows by the second where the margin fell by less than to the first, and nothing was found
_KEPT = 0.9  # share of the averages that each step keeps
_ENDS = (1e-6, 1e12)  # of the multiplier


@attack(
    question="How near is a wrong answer, by an augmented Lagrangian?",
    access=Access.GRADIENT,
    paper="Rony et al. 2021, arXiv:2011.11857",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.000", "owasp:ML01", "nist:NISTAML.022"),
    preset="thorough",
    norms=("l2", "l1"),
    minimum_norm=True,
)
def alma(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, steps: int = 100, step_size: float = 0.3, multiplier: float = 1.0,
    penalty: float = 1.0, trials: int = 5, rivals: int = 9,
) -> Tensor:
    """Descend distance plus a penalty of the margin, whose multiplier follows the margin by a running average.

    The margin counts in units of that of the clean sample, so that no scale of the logits matters and two classes will do,
    where the published ratio of logits takes three.

    Arguments:
        target: with GRADIENT access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: L2 or L1, any goal; `eps` is the farthest that counts, `math.inf` gives the nearest found.
        steps: gradient steps.
        step_size: Euclidean length of the first step, in widths of the box; it falls to a hundredth, by the same share each step.
        multiplier: the first one, of the margin.
        penalty: how sharply a margin above zero is punished at first.
        trials: of the point found, to come nearer by the slope there, as the paper does not.
        rivals: classes whose planes are looked at to begin with, a gradient each; 0 begins at x.

    Returns:
        The nearest adversarial point seen of each sample, shape (n, ...).
    """
    near = Nearest(target, x, y, threat)
    rows = near.start()
    opening(near, rows, rivals)
    delta = near.delta(rows)
    low, high, width = near.low[rows], near.high[rows], near.width[rows]
    mu, rho = torch.full_like(width, multiplier), torch.full_like(width, penalty)
    square, last = torch.zeros_like(width), torch.full_like(width, torch.inf)
    found = torch.zeros_like(rows, dtype=torch.bool)  # since the last look
    scale = _clean_margin(near, rows)
    for step in range(steps if len(rows) else 0):
        z, logits, hit = near.follow(delta, rows)
        margin = threat.margin(logits, y[rows])
        slope = input_gradient(margin, z).to(near.dtype).flatten(1) * (low < high) / scale[:, None]
        gap = margin.detach().to(near.dtype) / scale
        found |= hit
        if (step + 1) % max(steps // _LOOKS, 1) == 0:
            rho = torch.where(~found & (gap > _PROGRESS * last), _GROWTH * rho, rho)
            last, found = gap, torch.zeros_like(found)
        mu = (_KEPT * mu + (1 - _KEPT) * _rise(gap, rho, mu)).clamp(*_ENDS) if step else mu
        length = width * step_size * 0.01 ** (step / max(steps, 1))
        if threat.norm == "l2":
            pull = unit(delta)
        else:  # round where the step would jump over the corner
            pull = delta / (delta.square() + (0.1 * length[:, None]).square()).sqrt().clamp(min=torch.finfo(delta.dtype).tiny)
        gradient = pull + _rise(gap, rho, mu)[:, None] * slope
        square = _KEPT * square + (1 - _KEPT) * gradient.square().sum(1)
        pace = (square / (1 - _KEPT ** (step + 1))).sqrt().clamp(min=torch.finfo(delta.dtype).tiny)
        delta = (delta - (length / pace)[:, None] * gradient).clamp(low, high)
    if len(rows):
        near.ask(delta, rows)
        polish(near, rows, trials)
    return near.finish()


def _clean_margin(near: Nearest, rows: Tensor) -> Tensor:
    """Return the margins of the clean samples, shape (rows,), above zero and finite."""
    if not len(rows):
        return near.width[rows]
    margin = near.threat.margin(near.ask(torch.zeros_like(near.clean[rows]), rows)[0], near.y[rows]).to(near.dtype)
    return torch.where(margin.isfinite(), margin, 1.0).clamp(min=1e-6)


def _rise(gap: Tensor, rho: Tensor, mu: Tensor) -> Tensor:
    """Return the derivative, shape (rows,), of mu g + mu rho g^2 + rho^2 g^3 / 6 for a gap g > 0, else of mu g / (1 - rho g)."""
    above = gap.clamp(min=0)
    return torch.where(
        gap >= 0, mu + 2 * mu * rho * above + rho.square() * above.square() / 2, mu / (1 - rho * gap.clamp(max=0)).square()
    )
