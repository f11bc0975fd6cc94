"""L-BFGS in a box: the first attack there was."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.attacks import attack
from hauberk.core.gradients import input_gradient
from hauberk.core.target import Target
from hauberk.core.threat import Goal, Threat
from hauberk.robustness.attack.nearest import Nearest
from hauberk.robustness.attack.polish import polish

_PAIRS = 6  # steps and changes of slope that stand for the curvature
_LOOKS = 6  # lengths of a step tried, each a third of the one before
_ENOUGH = 1e-4  # share of the fall that the slope promises which a step has to bring


@attack(
    question="How near is a wrong answer, by the first attack published?",
    access=Access.GRADIENT,
    paper="Szegedy et al. 2014, arXiv:1312.6199",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.000", "owasp:ML01", "nist:NISTAML.022"),
    preset="thorough",
    norms=("l2",),
    minimum_norm=True,
)
def lbfgs(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, steps: int = 15, rounds: int = 8, weight: float = 10.0,
    trials: int = 5,
) -> Tensor:
    """Minimise |d|_2^2 + c loss in the box by L-BFGS, and search the least c of each sample that reaches the goal.

    The loss is the cross-entropy of reaching the goal: -log p of the wanted label, or -log(1 - p) of the true one.

    Arguments:
        target: with GRADIENT access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: L2, any goal; `eps` is the farthest that counts, `math.inf` gives the nearest found.
        steps: of L-BFGS for each c, a gradient each and up to 6 queries.
        rounds: values of c tried: tenfold while the goal is not reached, then by bisection.
        weight: the first c, as a multiple of the least one at which a linear model of the same slope would give way.
        trials: of the point found, to come nearer by the slope there, as the paper does not.

    Returns:
        The nearest adversarial point seen of each sample, shape (n, ...).
    """
    near = Nearest(target, x, y, threat)
    everybody = rows = near.start()
    if not len(rows):
        return near.finish()
    zero = torch.zeros_like(near.clean[rows])
    z, logits, _ = near.follow(zero, rows)
    margin = threat.margin(logits, y[rows])
    slope = input_gradient(margin, z).to(near.dtype).flatten(1) * (near.low < near.high)[rows]
    c = 2 * weight * margin.detach().to(near.dtype).clamp(min=1e-6) / slope.square().sum(1)
    c = torch.where(c.isfinite(), c, torch.ones_like(c))
    low, high, delta = torch.zeros_like(c), torch.full_like(c, torch.inf), zero
    for _ in range(rounds):
        delta, reached = _minimise(near, rows, delta, c, steps)
        low, high = torch.where(reached, low, torch.maximum(low, c)), torch.where(reached, torch.minimum(high, c), high)
        c = torch.where(high.isfinite(), (low + high) / 2, 10 * c)
        # Where nothing was reached the last point leads on; else the one just behind the boundary does.
        delta = torch.where(near.found(rows)[:, None], near.delta(rows), delta)
    polish(near, everybody, trials)
    return near.finish()


def _loss(threat: Threat, logits: Tensor, y: Tensor) -> Tensor:
    """Return -log of the probability that the goal is reached, shape (n,), differentiable, exact where it is near 0 or 1."""
    if y.ndim == 2:  # several labels: the logit of the one that decides
        return torch.nn.functional.softplus(threat.margin(logits, y))
    own = logits.gather(1, y[:, None])[:, 0]
    odds = own - logits.scatter(1, y[:, None], -torch.inf).logsumexp(1)
    return torch.nn.functional.softplus(-odds if threat.goal is Goal.TARGETED else odds)


def _minimise(near: Nearest, rows: Tensor, delta: Tensor, c: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Return where projected L-BFGS ends for one c per sample, and which samples reached their goal on the way."""
    low, high = near.low[rows], near.high[rows]
    moves: list[Tensor] = []
    turns: list[Tensor] = []
    reached = torch.zeros_like(rows, dtype=torch.bool)
    last_delta = last_slope = delta
    for step in range(steps):
        z, logits, hit = near.follow(delta, rows)
        reached |= hit
        loss = _loss(near.threat, logits, near.y[rows])
        value = delta.square().sum(1) + c * loss.detach().to(near.dtype)
        slope = 2 * delta + c[:, None] * input_gradient(loss, z).to(near.dtype).flatten(1)
        if step:
            moves, turns = [*moves[1 - _PAIRS :], delta - last_delta], [*turns[1 - _PAIRS :], slope - last_slope]
        last_delta, last_slope = delta, slope
        # Features held at an end by their slope take no part: the curvature is that of the others.
        free = ~(((delta <= low) & (slope > 0)) | ((delta >= high) & (slope < 0)))
        way = _two_loops(slope * free, [one * free for one in moves], [one * free for one in turns])
        fall = (way * slope).sum(1)
        way = torch.where((fall < 0)[:, None], way, -0.5 * slope * free)
        # The first step has no curvature to go by: 1 / 2 is right for the distance alone, and bounded by the box.
        delta, hit = _shorten(near, rows, delta, way, slope, value, c)
        reached |= hit
    return delta, reached


def _two_loops(slope: Tensor, moves: list[Tensor], turns: list[Tensor]) -> Tensor:
    """Return minus the inverse curvature times the slope, row by row; pairs without positive curvature are left out."""
    way, shares = slope, []
    scale = torch.full_like(slope[:, 0], 0.5)
    for move, turn in zip(reversed(moves), reversed(turns), strict=True):
        bend = (move * turn).sum(1)
        usable = bend > 1e-10 * turn.square().sum(1)
        share = torch.where(usable, (move * way).sum(1) / bend, 0.0)
        way = way - share[:, None] * turn
        shares.append((share, bend, usable))
    if moves:
        bend, length = (moves[-1] * turns[-1]).sum(1), turns[-1].square().sum(1)
        scale = torch.where(bend > 1e-10 * length, bend / length, scale)
    way = way * scale[:, None]
    for move, turn, (share, bend, usable) in zip(moves, turns, reversed(shares), strict=True):
        back = torch.where(usable, (turn * way).sum(1) / bend, 0.0)
        way = way + (share - back)[:, None] * move
    return -way


def _shorten(
    near: Nearest, rows: Tensor, delta: Tensor, way: Tensor, slope: Tensor, value: Tensor, c: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the end of the first of ever shorter steps, bent along the box, that lowers the objective, and who reached the goal.

    Where none does the sample stays where it is.
    """
    end, reached = delta.clone(), torch.zeros_like(rows, dtype=torch.bool)
    open_ = torch.arange(len(rows), device=rows.device)
    # No farther than the box is wide: a feature never has to move more.
    length = (near.width[rows] / way.abs().amax(1).clamp(min=torch.finfo(way.dtype).tiny)).clamp(max=1)
    for look in range(_LOOKS):
        here, part = delta[open_], rows[open_]
        moved = here + (length[open_] * 3.0**-look)[:, None] * way[open_]
        moved = torch.minimum(torch.maximum(moved, near.low[part]), near.high[part])
        logits, hit = near.ask(moved, part)
        new = moved.square().sum(1) + c[open_] * _loss(near.threat, logits, near.y[part]).to(near.dtype)
        promised = ((moved - here) * slope[open_]).sum(1)
        good = new <= value[open_] + _ENOUGH * promised
        end[open_[good]] = moved[good]
        reached[open_[hit & good]] = True
        open_ = open_[~good]
        if not len(open_):
            break
    return end, reached
