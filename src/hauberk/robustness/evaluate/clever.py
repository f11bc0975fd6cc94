"""CLEVER: an estimate of the distance within which no change can alter the answer."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hauberk.core.access import Access
from hauberk.core.errors import UsageError, nearest
from hauberk.core.rng import derive_seed, generator
from hauberk.core.target import Target, as_target
from hauberk.core.threat import Bounds, Threat
from hauberk.robustness.attack.linear import DUAL
from hauberk.robustness.evaluate.figure import one_class

NORMS = ("linf", "l2", "l1")
_SHAPES = (0.0, math.log(200.0))  # of the fit: log c; below c = 1 the likelihood has no maximum
_GAPS = (-14.0, 3.0)  # log of (location - largest value) / (spread of the values)


@dataclasses.dataclass(frozen=True)
class Clever:
    """Scores, and what they rest on.

    Arguments:
        scores: the least change that can make each class win over the true one, shape (n, classes), float64; infinite in the
            column of the true class, 0 for a class that wins already, at most the radius. NaN, which is not measured, where a
            sampled slope, or the margin itself, is not finite: nothing can be said of that class.
        lipschitz: the estimated largest slope of the margin in the ball, shape (n, classes); 0 in the column of the true class,
            NaN where a sampled one is not finite.
    """

    scores: Tensor
    lipschitz: Tensor

    @property
    def untargeted(self) -> Tensor:
        """The score towards the nearest class, shape (n,); NaN where that of any class was not measured."""
        return self.scores.amin(1) if self.scores.shape[1] else self.scores.new_zeros(len(self.scores))

    def targeted(self, wanted: Tensor) -> Tensor:
        """Return the score towards the wanted class of each sample, shape (n,)."""
        return self.scores.gather(1, wanted[:, None])[:, 0]


def clever(
    target: Target | nn.Module, x: Tensor, y: Tensor, *, norm: str = "l2", radius: float | None = None, batches: int = 50,
    points: int = 64, seed: int = 0,
) -> Clever:
    """Estimate, by extreme values of sampled gradients, how far every change must at least go.

    Weng et al. 2018, arXiv:1801.10578. An estimate and no proof: a slope that no sampled point shows is not in it. It is exact
    where the margin is linear.

    Arguments:
        target: with GRADIENT access.
        x: inputs, shape (n, ...).
        y: true labels, shape (n,).
        norm: `linf`, `l2` or `l1`: of the change.
        radius: of the ball that points are drawn from, cut by the target's bounds, and the largest score; None takes 2, .5 or
            .05 widths of the bounds for L1, L2 and Linf.
        batches: how many largest slopes the distribution is fitted to; the paper takes 500.
        points: drawn for each of them; the paper takes 1024.
        seed: of the draws; those of a sample do not depend on its place in the batch.

    Returns:
        Scores by class; `.untargeted` for the nearest.
    """
    if norm not in NORMS:
        raise UsageError(f"norm is '{norm}'", want=" | ".join(NORMS), fix=nearest(norm, NORMS))
    if batches < 2 or points < 1:
        raise UsageError(f"{batches} batches of {points} points were asked for", want="2 batches or more, of 1 point or more")
    target = as_target(target)
    one_class(target, "clever")
    target.need(Access.GRADIENT, "clever")
    bounds = target.bounds if target.bounds is not None else (0.0, 1.0)
    size = _radius(norm, bounds) if radius is None else radius
    threat = Threat(norm, size, bounds)
    logits = target.logits(x.detach()).double()
    margin = logits.gather(1, y[:, None]) - logits  # (n, classes)
    slope = torch.zeros_like(margin)
    draw = derive_seed(seed, "clever")
    for index in range(len(x)):
        largest = _largest_slopes(target, x[index], int(y[index]), threat, batches, points, draw)  # (batches, classes)
        slope[index] = torch.tensor([fit_largest(column) for column in largest.T.cpu().numpy()], dtype=torch.float64)
    own = torch.nn.functional.one_hot(y, logits.shape[1]).bool() if len(x) else torch.zeros_like(margin, dtype=torch.bool)
    # A margin that nothing moves cannot be lost: 0 / 0 is no danger.
    reach = torch.where(slope > 0, margin.clamp(min=0) / slope.clamp(min=1e-300), torch.where(margin > 0, math.inf, 0.0))
    unknown = ~(slope.isfinite() & margin.isfinite())
    scores = reach.clamp(max=size).masked_fill(unknown, math.nan).masked_fill(own, math.inf)
    return Clever(scores, slope.masked_fill(own, 0.0))


def fit_largest(values: NDArray[np.float64]) -> float:
    """Return the end point of the reverse Weibull distribution that fits the values best by maximum likelihood.

    Values that hardly differ are taken for their largest: there is no spread to fit. So is a fit that ends nowhere. Of values
    that are not all finite it is NaN.
    """
    from scipy.optimize import minimize

    rows = np.asarray(values, dtype=float)
    if not np.isfinite(rows).all():
        return math.nan
    top, spread = float(rows.max(initial=0.0)), float(np.ptp(rows)) if len(rows) else 0.0
    if spread <= 1e-6 * abs(top):
        return top
    below = (top - rows) / spread  # from 0, the largest, to 1

    def cost(place: NDArray[np.float64]) -> float:
        # With the scale at its optimum, scale^c = mean(d^c), two unknowns are left.
        gap, c = math.exp(place[0]), math.exp(place[1])
        logs = np.log(below + gap)
        power = c * logs
        peak = power.max()
        return float(peak + np.log(np.mean(np.exp(power - peak))) - math.log(c) - (c - 1) * logs.mean())

    starts = ((-2.0, 0.7), (0.0, 1.5), (1.5, 3.0))
    found = [minimize(cost, start, method="L-BFGS-B", bounds=(_GAPS, _SHAPES)) for start in starts]
    best = min(found, key=lambda one: float(one.fun))
    return top + spread * math.exp(float(best.x[0])) if np.isfinite(best.fun) else top


def _largest_slopes(
    target: Target, x: Tensor, y: int, threat: Threat, batches: int, points: int, seed: int
) -> Tensor:
    """Return the largest slope of the margin over each class among the points of each batch, shape (batches, classes)."""
    noise, found = generator(seed, device=x.device), []
    total = batches * points
    for part in torch.arange(total).split(max(1, target.batch_size)):
        around = x[None].expand(len(part), *x.shape).contiguous()
        z = threat.around(around).random_start(noise).requires_grad_()
        with torch.enable_grad():
            logits = target.logits(z)
            margins = logits[:, y : y + 1] - logits  # (points, classes)
            gradient = _slopes(margins, z)  # (points, classes, features)
        found.append(torch.linalg.vector_norm(gradient.double(), DUAL[threat.norm], dim=2))
    return torch.cat(found).reshape(batches, points, -1).amax(1)


def _slopes(margins: Tensor, z: Tensor) -> Tensor:
    """Return the gradients of `margins`, shape (points, classes), towards z, shape (points, classes, features), NaN as NaN.

    An attack may go on where a gradient is NaN, as if it were zero; a score that did so would be the best there is.
    """
    if not margins.requires_grad:
        return z.new_zeros(*margins.shape, z[0].numel())
    found = [
        torch.autograd.grad(margins[:, k].sum(), z, retain_graph=True, materialize_grads=True)[0] for k in range(margins.shape[1])
    ]
    return torch.stack([one.flatten(1) for one in found], 1)


def _radius(norm: str, bounds: Bounds) -> float:
    low, high = (torch.as_tensor(end, dtype=torch.float64) for end in bounds)
    width = float((high - low).max())
    if not math.isfinite(width):
        raise UsageError("the bounds are infinite", want="a radius", fix="State it: clever(..., radius=1.0)")
    return {"l1": 2.0, "l2": 0.5, "linf": 0.05}[norm] * width
