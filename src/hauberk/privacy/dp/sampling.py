"""How examples come into a batch: Poisson sampling as the account of it assumes, or a fresh draw of fixed size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from hauberk.core.errors import UsageError


class Uniform(Protocol):
    """A source of randomness, as far as sampling needs one."""

    def uniform(self, like: Tensor) -> Tensor:
        """Return uniform [0, 1) draws with the shape and dtype of `like`."""
        ...


def poisson_batch(n: int, rate: float, source: Uniform) -> Tensor:
    """Return the sorted positions of one batch: each of n examples is in it with probability `rate`, on its own.

    The gaps between the members are geometric, so that the work is that of the batch, not of the population.

    Arguments:
        n: population.
        rate: probability of each example, in (0, 1].
        source: gives the draws.

    Returns:
        Positions, int64; there may be none.
    """
    if not 0 < rate <= 1:
        raise UsageError(f"the sampling rate is {rate}", want="a probability in (0, 1]")
    if rate == 1 or n == 0:
        return torch.arange(n)
    expected = n * rate
    ask = torch.empty(int(expected + 6 * math.sqrt(expected) + 16), dtype=torch.float64)
    found: list[Tensor] = []
    at = -1
    while at < n:
        gaps = (torch.log1p(-source.uniform(ask)) / math.log1p(-rate)).clamp(max=n).floor().long()
        found.append(at + (gaps + 1).cumsum(0))
        at = int(found[-1][-1])
    positions = torch.cat(found)
    return positions[positions < n]


def poisson_batches(n: int, rate: float, steps: int, source: Uniform) -> Iterator[Tensor]:
    """Yield `steps` independent Poisson batches of positions; an empty one is yielded too, for its step counts."""
    for _ in range(steps):
        yield poisson_batch(n, rate, source)


def fixed_batch(n: int, size: int, source: Uniform) -> Tensor:
    """Return the sorted positions of `size` of n examples, drawn without replacement afresh for this batch."""
    if not 0 < size <= n:
        raise UsageError(f"a batch of {size} is drawn from {n} examples", want="a size between 1 and the population")
    return source.uniform(torch.empty(n, dtype=torch.float64)).argsort()[:size].sort().values
