"""NewtonFool: Newton's method on the probability of the true label."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.attacks import attack
from hauberk.core.gradients import input_gradient
from hauberk.core.target import Target
from hauberk.core.threat import Goal, Threat
from hauberk.robustness.attack.nearest import Nearest, interpolate

_HAIR = 1e-3  # share by which the probability sought lies below the one that is enough


@attack(
    question="How near is a wrong answer, by Newton's method on the confidence in the true one?",
    access=Access.GRADIENT,
    paper="Jang et al. 2017, doi:10.1145/3134600.3134635",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.000", "owasp:ML01", "nist:NISTAML.022"),
    preset="thorough",
    norms=("l2",),
    goals=(Goal.UNTARGETED, Goal.CONFIDENCE),
    minimum_norm=True,
    classes_alone=True,
)
def newton_fool(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, steps: int = 100, eta: float = 0.05, halvings: int = 6
) -> Tensor:
    """Step down the gradient of the true label's probability, as far as Newton's method asks, until the answer changes.

    The step that succeeds is shortened by false position, as the paper does not. The gradient is taken of the log-odds, which
    points the same way and does not vanish where the probability is 1.

    Arguments:
        target: with GRADIENT access.
        x: clean inputs, shape (n, ...).
        y: true labels, shape (n,).
        threat: L2, untargeted or of confidence; `eps` is the farthest that counts, `math.inf` gives whatever was found.
        steps: at most; a sample leaves the batch at its first success, or where no gradient is left.
        eta: longest step, in diagonals of the box; the paper's share of |x| would depend on where zero lies.
        halvings: queries per sample by which the last step is shortened.

    Returns:
        The first adversarial point of each sample, shape (n, ...), which is near and not the nearest there is.
    """
    near = Nearest(target, x, y, threat)
    rows = near.start()
    delta = torch.zeros_like(near.clean[rows])
    short, full = torch.zeros_like(near.clean), torch.zeros_like(near.clean)  # the ends of each sample's last step
    crossed = rows[:0]
    for _ in range(steps):
        if not len(rows):
            break
        z, logits, _ = near.follow(delta, rows)
        own = logits.gather(1, y[rows][:, None])[:, 0]
        odds = own - logits.scatter(1, y[rows][:, None], -torch.inf).logsumexp(1)
        slope = input_gradient(odds, z).to(near.dtype).flatten(1)
        room = torch.where(slope > 0, delta - near.low[rows], near.high[rows] - delta)
        slope = slope * (room > 0)
        enough = threat.confidence if threat.goal is Goal.CONFIDENCE else 1 / logits.shape[1]
        odds = odds.detach().to(near.dtype)
        chance = odds.sigmoid()
        steep = slope.norm(dim=1)
        # (p - enough) / |grad p|, with grad p = p (1 - p) grad(log-odds)
        newton = (chance - enough * (1 - _HAIR)) / (chance * (-odds).sigmoid() * steep)
        longest = eta * (near.high - near.low)[rows].norm(dim=1)
        length = torch.minimum(newton.nan_to_num(nan=math.inf), longest).clamp(min=0)
        step = slope * torch.where(steep > 0, length / steep, 0.0)[:, None]
        moved = (delta - step).clamp(near.low[rows], near.high[rows])
        going = (moved != delta).any(1)
        rows, delta, moved = rows[going], delta[going], moved[going]
        if not len(rows):
            break
        hit = near.ask(moved, rows)[1]
        short[rows[hit]], full[rows[hit]] = delta[hit], moved[hit]
        crossed = torch.cat([crossed, rows[hit]])
        rows, delta = rows[~hit], moved[~hit]
    interpolate(near, short[crossed], full[crossed], crossed, halvings)
    return near.finish()
