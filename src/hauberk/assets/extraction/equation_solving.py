"""Equation solving: a linear classifier is known from as many answers as it has unknowns."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hauberk.core.access import Access
from hauberk.core.errors import DataError
from hauberk.core.rng import generator
from hauberk.core.target import Target, as_target
from hauberk.core.threat import Bounds


@dataclasses.dataclass
class Solved:
    """A linear model with the same log-odds as the target, as far as a linear model can have them.

    Arguments:
        weight: shape (classes, features), float64; log-odds against the first class, whose row is zero.
        bias: shape (classes,), float64.
        queries: answers it took.
        residual: on points it was not solved from, the share of the log-odds' spread that it leaves unexplained: 0 for a linear
            target, about 1 for one that is nothing like it; infinite, with weights that are not numbers, where an answer is not
            finite (a class that is ruled out) and nothing can be solved.
    """

    weight: Tensor
    bias: Tensor
    queries: int
    residual: float

    @property
    def is_linear(self) -> bool:
        """Whether the target is linear in its inputs, to one part in a hundred."""
        return self.residual <= 0.01

    def logits(self, x: Tensor) -> Tensor:
        """Return log-odds against the first class for x, shape (n, classes), float64."""
        return x.flatten(1).double() @ self.weight.to(x.device).T + self.bias.to(x.device)

    def labels(self, x: Tensor) -> Tensor:
        """Return the labels of x, shape (n,)."""
        return self.logits(x).argmax(1)


def solve_linear(
    target: Target | nn.Module, shape: Sequence[int], *, bounds: Bounds = (0.0, 1.0), extra: int = 0, held_out: int = 64,
    seed: int = 0,
) -> Solved:
    """Solve a model's weights from its scores (Tramèr et al. 2016, arXiv:1609.02943).

    One query at the centre of the input range and one step along each feature give d + 1 equations for the d + 1 unknowns of each
    class, well conditioned whatever d is. Answers that are rounded need more: `extra` random points, solved by least squares.

    Arguments:
        target: with SCORE access.
        shape: of one sample.
        bounds: lowest and highest input; numbers, or one per feature.
        extra: queries beyond d + 1.
        held_out: queries that tell whether the target is linear at all.
        seed: of the random points.

    Returns:
        The solved model.

    Raises:
        AccessDenied: below SCORE access.
        DataError: for bounds that are not finite.
    """
    view = as_target(target).fresh()
    view.need(Access.SCORE, "equation solving")
    low, high = (torch.as_tensor(end, dtype=torch.float64).expand(tuple(shape)).reshape(-1) for end in bounds)
    if not bool((low.isfinite() & high.isfinite()).all()):
        raise DataError("the bounds are infinite", want="a finite input range to ask within")
    centre, reach = (low + high) / 2, (high - low) / 2
    width = len(centre)
    draw = generator(seed, "equation solving")
    points = torch.cat([centre[None], centre + torch.diag(reach), _uniform(low, high, extra, draw)])
    tests = _uniform(low, high, held_out, draw)
    odds, expected = _log_odds(view, points, shape), _log_odds(view, tests, shape)  # (queries, classes)
    if not bool(odds.isfinite().all() & expected.isfinite().all()):
        nothing = torch.full((odds.shape[1], width), torch.nan, dtype=torch.float64)
        return Solved(nothing, nothing.new_full((odds.shape[1],), torch.nan), len(points) + held_out, float("inf"))
    # In steps of the range around the centre the equations are solved as they stand.
    steps = torch.cat([(points - centre) / reach.clamp(min=1e-300), torch.ones(len(points), 1, dtype=torch.float64)], 1)
    steps[:, :width][:, reach == 0] = 0.0
    solution = torch.linalg.lstsq(steps, odds, driver="gelsd").solution  # (features + 1, classes)
    weight = torch.where(reach[:, None] > 0, solution[:width] / reach[:, None].clamp(min=1e-300), 0.0).T
    bias = solution[width] - weight @ centre
    solved = Solved(weight, bias, len(points) + held_out, 1.0)
    missed, spread = (solved.logits(tests) - expected).square().sum(), (expected - expected.mean(0)).square().sum()
    solved.residual = float((missed / spread.clamp(min=1e-12)).sqrt()) if len(tests) else float("nan")
    return solved


def _log_odds(target: Target, points: Tensor, shape: Sequence[int]) -> Tensor:
    dtype = torch.get_default_dtype()
    logits = target.logits(points.reshape(-1, *shape).to(dtype)).double()
    return logits - logits[:, :1]


def _uniform(low: Tensor, high: Tensor, count: int, draw: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(count, len(low), generator=draw, dtype=torch.float64)
