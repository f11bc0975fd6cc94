"""What searches from a model share: a descent that keeps each sample's best iterate, and what they refuse at the door."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from hauberk.core.errors import DataError, UsageError
from hauberk.core.train import class_logits

TAGS = ("aisec:data-recovery-in-the-model", "atlas:AML.T0024.001", "owasp:ML03", "nist:NISTAML.032")
Objective = Callable[[Tensor], tuple[Tensor, Tensor]]


def adam(
    start: Tensor, objective: Objective, *, steps: int, rate: float, low: float = -math.inf, high: float = math.inf
) -> tuple[Tensor, Tensor]:
    """Return the best iterate of each sample and its figure, by Adam with a step that falls to zero along a cosine.

    Arguments:
        start: shape (n, ...).
        objective: of the iterates: what is descended, a scalar or shape (n,), and the figure by which iterates are compared,
            shape (n,), lower is better.
        steps: gradient steps.
        rate: length of the first step, per coordinate.
        low, high: iterates are clipped to them.
    """
    x = start.detach().clone().clamp(low, high)
    best, least = x.clone(), torch.full((len(x),), math.inf, dtype=torch.float64, device=x.device)
    mean, power = torch.zeros_like(x), torch.zeros_like(x)
    with torch.enable_grad():
        for step in range(steps + 1):
            x.requires_grad_(True)
            loss, figure = objective(x)
            (slope,) = torch.autograd.grad(loss.sum(), x)
            x = x.detach()
            keep(best, least, x, figure)
            mean, power = 0.9 * mean + 0.1 * slope, 0.99 * power + 0.01 * slope.square()
            ahead = (mean / (1 - 0.9 ** (step + 1))) / (power / (1 - 0.99 ** (step + 1))).sqrt().clamp_min(1e-30)
            x = (x - falling(rate, step, steps) * ahead).clamp(low, high)
    return best, least


def falling(rate: float, step: int, steps: int) -> float:
    """Return the length of a step: from `rate` to zero along a cosine."""
    return rate * (1 + math.cos(math.pi * step / max(steps, 1))) / 2


def keep(best: Tensor, least: Tensor, x: Tensor, figure: Tensor) -> None:
    """Write into `best` and `least`, in place, the iterates whose figure is lower than any before."""
    found = figure.detach().to(least)
    better = found < least
    best[better], least[better] = x[better], found[better]


def variation(x: Tensor) -> Tensor:
    """Return the mean squared difference of neighbours on the last two axes, shape (n,); zero for what is no image."""
    if x.ndim < 4 or min(x.shape[-2:]) < 2:
        return x.new_zeros(len(x))
    return x.diff(dim=-2).square().flatten(1).mean(1) + x.diff(dim=-1).square().flatten(1).mean(1)


def classes_of(module: nn.Module, x: Tensor) -> int:
    """Return how many classes the model, in the mode it is in, tells inputs x, shape (n, ...), apart; 1 where there are none.

    Raises:
        DataError: when it does not take them.
    """
    if not len(x):
        return 1
    try:
        with torch.no_grad():
            return class_logits(module(x)).shape[1]
    except (RuntimeError, ValueError) as error:
        raise DataError(
            f"the model refuses inputs of shape {tuple(x.shape[1:])} ({str(error).splitlines()[0]})",
            want="the shape of one input",
        ) from error


def refuse_labels(labels: Tensor, classes: int) -> None:
    """Raise DataError for targets that are not classes of the model."""
    if not isinstance(labels, Tensor) or labels.ndim != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
        raise DataError("the labels to invert are missing", want="whole numbers, shape (n,), one per input to be made")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise DataError(
            f"the labels span {int(labels.min())} to {int(labels.max())}", want=f"classes 0 to {classes - 1} of the model"
        )


def refuse_steps(steps: int, bounds: tuple[float, float] | None = None) -> None:
    """Raise UsageError for a number of steps below 1, or bounds in the wrong order."""
    if steps < 1:
        raise UsageError(f"steps is {steps}", want="at least 1")
    if bounds is not None and not bounds[0] < bounds[1]:
        raise UsageError(f"bounds are {bounds}", want="two numbers, the lower first")
