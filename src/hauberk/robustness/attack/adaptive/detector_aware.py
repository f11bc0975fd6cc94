"""Gradient descent against a model and its detector at once: an example counts when it fools the one and passes the other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from hauberk.core.access import Access
from hauberk.core.attacks import attack
from hauberk.core.errors import UsageError, nearest
from hauberk.core.gradients import input_gradient
from hauberk.core.rng import generator
from hauberk.core.target import Target, as_target
from hauberk.core.threat import Ball, Threat
from hauberk.robustness.attack.climb import Climb
from hauberk.robustness.attack.pgd import ascent

METHODS = ("orthogonal", "selective", "joint")


@runtime_checkable
class SoftDetector(Protocol):
    """A detector as its adversary sees it: the score it decides by, and one to differentiate."""

    @property
    def threshold(self) -> float:
        """The score above which an input is flagged."""
        ...

    def score(self, x: Tensor) -> Tensor:
        """Return the score that decides, shape (n,), each of its own sample alone."""
        ...

    def soft_score(self, x: Tensor) -> Tensor:
        """Return a differentiable score, shape (n,): the same, or one that rises where it does."""
        ...


@dataclasses.dataclass
class Softened:
    """A detector with a differentiable score beside its own.

    Arguments:
        detector: has `score(x)` and `threshold`, as every fitted detector does.
        soft: differentiable, inputs (n, ...) to scores (n,); None: the detector's own score is differentiable.
    """

    detector: Any
    soft: Callable[[Tensor], Tensor] | None = None

    @property
    def threshold(self) -> float:
        """The detector's threshold."""
        return float(self.detector.threshold)

    def score(self, x: Tensor) -> Tensor:
        """Return the detector's own score, shape (n,)."""
        found: Tensor = self.detector.score(x)
        return found

    def soft_score(self, x: Tensor) -> Tensor:
        """Return the differentiable score, shape (n,)."""
        return self.score(x) if self.soft is None else self.soft(x)


def softened_squeezing(detector: Any, model: Target | nn.Module) -> Softened:
    """Return a fitted `FeatureSqueezing` with a score that lets gradients straight through its squeezers.

    Arguments:
        detector: fitted to the model.
        model: the model it guards, with GRADIENT access; what the differentiable score asks of it is counted there.
    """
    target = as_target(model)

    def soft(x: Tensor) -> Tensor:
        plain, moved = target.logits(x).softmax(1), []
        for squeezed in detector.squeezed(x.detach()):
            through = x + (squeezed - x).detach()
            moved.append((target.logits(through).softmax(1) - plain).abs().sum(1))
        return torch.stack(moved).amax(0)

    return Softened(detector, soft)


@attack(
    question="Does a detector hold against an adversary who differentiates it as well?",
    access=Access.GRADIENT,
    paper="Bryniarski et al. 2022, arXiv:2106.15023; joint: Carlini and Wagner 2017, arXiv:1705.07263",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.000", "owasp:ML01", "nist:NISTAML.022"),
    preset="thorough",
)
def detector_aware_pgd(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, detector: SoftDetector | None = None, method: str = "orthogonal",
    steps: int = 100, step_size: float | None = None, weight: float = 1.0, loss: str = "margin", random_start: bool = True,
    seed: int = 0,
) -> Tensor:
    """Climb the model's loss and descend the detector's score, until a point reaches the goal and is not flagged.

    Arguments:
        target: with GRADIENT access. What the detector asks is counted where the detector counts it.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: any norm and goal.
        detector: a `SoftDetector`, such as `softened_squeezing(detector, model)` or `Softened(detector, soft)`. None: there is
            nothing to evade.
        method: which way a step goes. `orthogonal`: along the gradient of what is not reached yet, the model's first, less its
            share along the other, so that neither undoes the other's work; `selective`: along that gradient as it is; `joint`:
            along the gradient of the loss less `weight` times the score.
        steps: gradient steps.
        step_size: length of every step in the threat's norm; None starts at 20 eps / steps and falls to zero by a half cosine.
        weight: of the score in the joint loss.
        loss: `margin` (difference of logits) or `ce` (cross-entropy).
        random_start: begin at a random point of the ball, else at x.
        seed: of the random start.

    Returns:
        Points in the ball, shape (n, ...): adversarial and not flagged where one was seen, else adversarial and of the lowest
        score, else of the highest loss.
    """
    if method not in METHODS:
        raise UsageError(f"method is '{method}'", want=" | ".join(METHODS), fix=nearest(method, METHODS))
    if detector is not None and not isinstance(detector, SoftDetector):
        raise UsageError(
            f"detector is a {type(detector).__name__}", want="threshold, score(x) and soft_score(x)",
            fix="Wrap it: Softened(detector, soft=a differentiable score)",
        )
    run = Climb(target, x, y, threat, loss=loss, steps=steps, step_size=step_size, early_stop=True)
    if step_size is None:
        run.set_length(20 / max(steps, 1))
    start = run.ball.random_start(generator(seed, "detector-aware-pgd", device=x.device)) if random_start else x
    run.ascend(
        start, lambda run, z: _way(run, z, detector, method, weight), fall=step_size is None,
        stride=ascent if detector is None or method != "orthogonal" else _stride, look=lambda run, z: _seen(run, z, detector),
    )
    return run.best


def _seen(run: Climb, z: Tensor, detector: SoftDetector | None) -> tuple[Tensor, Tensor]:
    """Ask about z and note what comes of it; return the loss, differentiable where z is, and what reaches the goal."""
    logits = run.target.logits(z)
    height, broken = run.rise(logits), run.threat.success(logits, run.y)
    if detector is None:
        run.note(z.detach(), height, broken)
        return height, broken
    with torch.no_grad():
        spare = detector.threshold - detector.score(z.detach()).to(height)  # below zero: flagged; NaN: flagged as well
    # Flagged points that reach the goal rank above all that do not, the less suspect the higher.
    rank = torch.where(broken, 2 + _squashed(spare.nan_to_num(-torch.inf)), _squashed(height.detach()))
    run.note(z.detach(), rank, broken & (spare >= 0))
    return height, broken


def _way(run: Climb, z: Tensor, detector: SoftDetector | None, method: str, weight: float) -> Tensor:
    """Return the direction of the next step from z, shape (alive, ...)."""
    z = z.detach().requires_grad_()
    height, broken = _seen(run, z, detector)
    if detector is None:
        return input_gradient(height, z)
    up = input_gradient(height, z)
    down = -input_gradient(detector.soft_score(z), z)
    if method == "joint":
        return up + weight * down
    chosen = broken.reshape((-1,) + (1,) * (z.ndim - 1))
    if method == "selective":
        return torch.where(chosen, down, up)
    return torch.where(chosen, _without(down, up), _without(up, down))


def _without(way: Tensor, other: Tensor) -> Tensor:
    """Return what is orthogonal to the other in a way, or the way itself where that is nothing but rounding."""
    column = (-1,) + (1,) * (way.ndim - 1)
    # Both to a largest entry of 1 first: the square of a vanishing gradient is zero.
    tiny = torch.finfo(way.dtype).tiny
    size = way.flatten(1).abs().amax(1).clamp(min=tiny)
    ahead = way.flatten(1) / size[:, None]
    across = other.flatten(1) / other.flatten(1).abs().amax(1, keepdim=True).clamp(min=tiny)
    share = (ahead * across).sum(1) / across.square().sum(1).clamp(min=tiny)
    rest = ahead - share[:, None] * across
    left = rest.norm(dim=1) > 1e-6 * ahead.norm(dim=1)
    return torch.where(left.reshape(column), (rest * size[:, None]).view_as(way), way)


def _stride(ball: Ball, z: Tensor, direction: Tensor, length: Tensor) -> Tensor:
    """Return a step along the direction itself: its sign would not be orthogonal any more."""
    if ball.norm != "linf":
        return ascent(ball, z, direction, length)
    column = (-1,) + (1,) * (direction.ndim - 1)
    flat = direction.flatten(1)
    # In Linf as long as a sign step is in L2, so that features of small slope get somewhere in the same number of steps.
    scale = length * flat.shape[1] ** 0.5 / flat.norm(dim=1).clamp(min=torch.finfo(flat.dtype).tiny)
    return direction * scale.reshape(column)


def _squashed(value: Tensor) -> Tensor:
    """Return the value, of any size, between -1 and 1 in the same order."""
    return torch.where(value.isinf(), value.sign(), value / (1 + value.abs()))
