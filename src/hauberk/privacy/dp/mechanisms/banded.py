"""Matrix-factorisation noise with a banded Toeplitz strategy: the best correlation that a memory of a few steps allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hauberk.core.errors import UsageError
from hauberk.privacy.dp.accounting import Release
from hauberk.privacy.dp.mechanisms.correlated import CorrelatedNoise
from hauberk.privacy.dp.noise import Source


class BandedNoise(CorrelatedNoise):
    """Noise C⁻¹ z, where C is lower-triangular Toeplitz with the coefficients of `strategy` and z is independent.

    What is private is C G + z, with G the clipped sums of all steps; what training sees, G + C⁻¹ z, follows from it.

    Arguments:
        noise_multiplier: standard deviation of z over how far one record moves C G, at least 0.
        strategy: coefficients c_0 ... c_(b-1), c_0 above 0: `square_root(b)`, `optimised(steps, b)`; (1,) is independent noise.
        steps: of the whole run.
        participations: most steps that one record takes part in.
        separation: fewest steps from one of them to the next: batches in a fixed order give an epoch's steps.

    Paper: Choquette-Choo et al. 2023, "(Amplified) banded matrix factorization", arXiv:2306.08153; Kalinin and Lampert 2024,
    arXiv:2405.13763.
    """

    name = "gaussian"

    def __init__(
        self, noise_multiplier: float, strategy: Sequence[float], steps: int, *, participations: int = 1,
        separation: int | None = None,
    ) -> None:
        super().__init__(noise_multiplier)
        self.strategy = [float(one) for one in strategy]
        self.steps, self.participations, self.separation = steps, participations, separation or max(1, steps)
        self.moved = sensitivity(self.strategy, steps, participations, self.separation)

    @property
    def releases(self) -> tuple[Release, ...]:
        """One Gaussian release, however many steps were made."""
        return (Release("gaussian", self.noise_multiplier, count=min(1, self.step)),)

    def _scale(self) -> float:
        return self.noise_multiplier * self.moved

    def _plan(self) -> dict[str, Any]:
        return {
            "kind": "banded", "noise_multiplier": self.noise_multiplier, "strategy": self.strategy, "steps": self.steps,
            "participations": self.participations, "separation": self.separation,
        }

    def _check(self, step: int) -> None:
        if step >= self.steps:
            raise UsageError(f"step {step} was asked for", want=f"fewer than {self.steps} steps",
                             fix="Plan the noise for the whole run before it begins")

    def _draw(self, memory: list[Tensor | None], step: int, like: Tensor, source: Source) -> Tensor:
        made = source.normal(like)
        for c, before in zip(self.strategy[1:], memory, strict=False):  # memory: the last noises, latest first
            assert before is not None
            made.sub_(before, alpha=c)
        made.div_(self.strategy[0])
        memory.insert(0, made)
        del memory[max(0, len(self.strategy) - 1):]
        return made


def square_root(bands: int) -> list[float]:
    """Return the first coefficients of (1 - x)^(-1/2): 1, 1/2, 3/8, ... With all of them, C C is the matrix of running sums.

    Paper: Fichtenberger, Henzinger and Upadhyay 2023, arXiv:2202.11205; banded, Kalinin and Lampert 2024, arXiv:2405.13763.
    """
    found = [1.0]
    for k in range(1, bands):
        found.append(found[-1] * (2 * k - 1) / (2 * k))
    return found


def optimised(steps: int, bands: int) -> list[float]:
    """Return the Toeplitz coefficients with the least mean squared error of running sums, for participations >= `bands` apart.

    Arguments:
        steps: of the run; at most 4096.
        bands: how many; the noise remembers `bands - 1` steps.

    Paper: Choquette-Choo et al. 2023, arXiv:2306.08153.
    """
    if not 1 <= bands <= steps <= 4096:
        raise UsageError(f"{bands} bands for {steps} steps were asked for", want="1 <= bands <= steps <= 4096")
    free = torch.tensor(square_root(bands)[1:], dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([free], max_iter=100, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        search.zero_grad()
        value = _error(torch.cat([torch.ones(1, dtype=torch.float64), free]), steps).log()
        value.backward()
        return value

    if bands > 1:
        search.step(loss)
    return [1.0, *free.tolist()]


def mean_squared_error(strategy: Sequence[float], steps: int, moved: float) -> float:
    """Return the mean variance of the running sums of the noise over all steps, in units of (noise multiplier x clip)²."""
    column = _running(torch.tensor(strategy, dtype=torch.float64), steps)
    return float((column.square() * torch.arange(steps, 0, -1)).sum()) / steps * moved**2


def sensitivity(strategy: Sequence[float], steps: int, participations: int = 1, separation: int | None = None) -> float:
    """Return how far one record, of norm 1 at each of its steps, can move C G in L2.

    Arguments:
        strategy: coefficients of C.
        steps: of the run.
        participations: most steps that one record takes part in.
        separation: fewest steps between two of them; None for a single participation.

    Raises:
        UsageError: for numbers that cannot be, or closer participations than there are bands, unless the coefficients are not
            negative and do not rise (where the worst pattern is known: as early and as close as may be).

    Paper: Choquette-Choo et al. 2023, arXiv:2306.08153, theorem 2; Kalinin and Lampert 2024, arXiv:2405.13763, theorem 2.
    """
    apart = separation or max(1, steps)
    if not strategy or not strategy[0] > 0 or not all(map(math.isfinite, strategy)):
        raise UsageError(f"the strategy is {list(strategy)[:4]}", want="finite coefficients, the first above 0")
    if steps < 1 or participations < 1 or apart < 1:
        raise UsageError(f"steps {steps}, participations {participations}, separation {apart}", want="each at least 1")
    bands = [*strategy[:steps], *[0.0] * (steps - len(strategy))]
    times = min(participations, -(-steps // apart))
    if times > 1 and apart < len(strategy) and not all(a >= b >= 0 for a, b in zip(strategy, [*strategy[1:], 0.0], strict=True)):
        raise UsageError(
            f"participations {apart} steps apart with {len(strategy)} bands", want=f"at least {len(strategy)} steps apart",
            fix="Take fewer bands, or coefficients that are not negative and do not rise, such as square_root(bands)",
        )
    moved = [0.0] * steps
    for first in range(0, times * apart, apart):
        for row in range(first, steps):
            moved[row] += abs(bands[row - first])
    return math.sqrt(math.fsum(one * one for one in moved))


def _running(strategy: Tensor, steps: int) -> Tensor:
    """The first column of A C⁻¹ = C⁻¹ A, where A is the matrix of running sums: C⁻¹ (1, ..., 1)."""
    padded = torch.cat([strategy[:steps], strategy.new_zeros(max(0, steps - len(strategy)))])
    lag = torch.arange(steps)[:, None] - torch.arange(steps)[None]
    table = torch.where(lag >= 0, padded[lag.clamp_min(0)], padded.new_zeros(()))  # (T, T)
    return torch.linalg.solve_triangular(table, table.new_ones(steps, 1), upper=False)[:, 0]


def _error(strategy: Tensor, steps: int) -> Tensor:
    weights = torch.arange(steps, 0, -1, dtype=torch.float64)
    return (_running(strategy, steps).square() * weights).sum() * strategy.square().sum()
