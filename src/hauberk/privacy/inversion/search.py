"""The search that the attacks by gradient matching share: Adam in the box, many candidates at once, the best iterate kept."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hauberk.core import progress
from hauberk.core.errors import UsageError
from hauberk.core.rng import generator, uniform

# From candidates (candidates * n, ...) to the objective of each candidate, (candidates,), and the slope of their sum.
Objective = Callable[[Tensor], tuple[Tensor, Tensor]]
DECAYS = (3 / 8, 5 / 8, 7 / 8)


def box(bounds: tuple[float, float] | None) -> tuple[float, float, float]:
    """Return the lowest and highest input, and the width that steps are measured in (1 where there are no bounds)."""
    if bounds is None:
        return -math.inf, math.inf, 1.0
    low, high = float(bounds[0]), float(bounds[1])
    if not -math.inf < low < high < math.inf:
        raise UsageError(f"bounds are {low} to {high}", want="a lowest input below the highest, both finite; or None")
    return low, high, high - low


def begin(shape: tuple[int, ...], like: Tensor, bounds: tuple[float, float] | None, seed: int, *names: object) -> Tensor:
    """Return a random start: uniform in the middle half of the bounds, else normal of standard deviation 1 around 0."""
    drawn = generator(seed, *names)
    empty = torch.empty(shape, dtype=like.dtype)
    if bounds is None:
        return torch.randn(shape, generator=drawn, dtype=torch.float64).to(like)
    low, _, width = box(bounds)
    return (low + width * (0.25 + 0.5 * uniform(empty, drawn))).to(like)


def signed_adam(
    objective: Objective, start: Tensor, *, candidates: int, steps: int, lr: float, bounds: tuple[float, float] | None,
    signed: bool = True, label: str = "inversion",
) -> tuple[Tensor, Tensor]:
    """Return the best iterate of each candidate, shape of `start`, and its objective, shape (candidates,).

    Adam on the sign of the slope, at a rate that falls tenfold at 3/8, 5/8 and 7/8 of the steps, clipped to the box each time.

    Arguments:
        objective: what to lower.
        start: shape (candidates * n, ...), candidate by candidate.
        candidates: how many are searched for side by side.
        steps: of Adam.
        lr: its rate, in units of the input range.
        bounds: lowest and highest input.
        signed: False takes the slope itself.
        label: of the progress.

    Raises:
        UsageError: for steps below 1 or a rate that is not above 0.
    """
    if steps < 1 or not lr > 0:
        raise UsageError(f"steps is {steps} and lr is {lr}", want="at least 1 step, at a rate above 0")
    low, high, width = box(bounds)
    x = start.detach().clone().clamp_(low, high)
    n = len(x) // candidates
    best, least = x.clone(), torch.full((candidates,), math.inf, dtype=x.dtype, device=x.device)
    mean, power = torch.zeros_like(x), torch.zeros_like(x)
    for step in range(steps + 1):
        value, slope = objective(x)
        better = value < least
        least = torch.where(better, value, least)
        best = torch.where(better.repeat_interleave(n).reshape(-1, *(1 for _ in x.shape[1:])), x, best)
        if step == steps:
            break
        slope = slope.nan_to_num(0.0, 0.0, 0.0)
        if signed:
            slope = slope.sign_()
        mean.mul_(0.9).add_(slope, alpha=0.1)
        power.mul_(0.999).addcmul_(slope, slope, value=0.001)
        rate = lr * width * 0.1 ** sum(step >= share * steps for share in DECAYS)
        ahead = (power / (1 - 0.999 ** (step + 1))).sqrt_().add_(1e-8)
        x = x.addcdiv(mean, ahead, value=-rate / (1 - 0.9 ** (step + 1))).clamp_(low, high)
        if step % 16 == 0:
            progress.update(label, step, steps)
    progress.update(label, steps, steps)
    return best, least
