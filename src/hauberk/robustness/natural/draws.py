"""Random numbers of a batch, one stream per sample: an image is corrupted the same alone and in any company."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

FEW = 64  # numbers for each sample up to which they are worked out at once for all samples


class Draws:
    """The streams of n samples, each seeded by one number from a generator.

    A batch takes as many seeds as it has samples, so that one call with n images equals n calls with one image each on the same
    generator.

    Arguments:
        n: number of samples.
        generator: what the n seeds come from; the streams live on its device.
        like: its dtype and device are those of the numbers returned.
    """

    def __init__(self, n: int, generator: torch.Generator, like: Tensor) -> None:
        self.seeds = _seeds(n, generator)
        self.stream = torch.Generator(device=generator.device)
        self.dtype, self.device, self.turns = like.dtype, like.device, [0]

    def __len__(self) -> int:
        return len(self.seeds)

    @classmethod
    def of(cls, source: Draws | torch.Generator, like: Tensor) -> Draws:
        """Return the streams of the images `like`, made from a generator where they are not streams yet."""
        return source if isinstance(source, Draws) else cls(len(like), source, like)

    def exact(self) -> Draws:
        """Return the same streams giving float64, so that parameters do not depend on the dtype of the images."""
        view = copy.copy(self)
        view.dtype = torch.float64
        return view

    def single(self) -> Draws:
        """Return the same streams giving float32, for large fields that need no more digits."""
        view = copy.copy(self)
        view.dtype = torch.float32
        return view

    def full(self, value: float) -> Tensor:
        """Return a parameter that is the same for all samples, shape (n,)."""
        return torch.full((len(self),), value, dtype=self.dtype, device=self.device)

    def uniform(self, *shape: int) -> Tensor:
        """Return numbers spread evenly over [0, 1), shape (n, *shape)."""
        count = math.prod(shape)
        if count <= FEW:
            return self._few(count).view(-1, *shape).to(self.device, self.dtype)
        return self._filled(shape, lambda row, stream: row.uniform_(generator=stream))

    def even(self, *shape: int) -> Tensor:
        """Return numbers spread evenly over [-1, 1), in steps of 2^-15, shape (n, *shape): finer than any sensor, and cheaper."""
        count = math.prod(shape)
        bits = torch.empty(len(self), -(-count // 4), dtype=torch.int64, device=self.stream.device)  # four numbers each
        for row, seed in zip(bits.unbind(0), self._next(), strict=True):
            row.random_(-(2**63), None, generator=self.stream.manual_seed(seed))
        steps = bits.view(torch.int16)[:, :count].to(self.device, self.dtype)
        return steps.mul_(2.0**-15).view(-1, *shape)

    def normal(self, *shape: int) -> Tensor:
        """Return standard normal numbers, shape (n, *shape)."""
        return self._filled(shape, lambda row, stream: row.normal_(generator=stream))

    def poisson(self, rate: Tensor) -> Tensor:
        """Return counts of the given means, shape of `rate`, (n, ...)."""
        there = rate.detach().to(self.stream.device)
        if not len(there):
            return rate.detach().clone()
        pairs = zip(there, self._next(), strict=True)
        rows = [torch.poisson(one, generator=self.stream.manual_seed(seed)) for one, seed in pairs]
        return torch.stack(rows).to(rate)

    def _filled(self, shape: tuple[int, ...], fill: Callable[[Tensor, torch.Generator], Tensor]) -> Tensor:
        out = torch.empty(len(self), *shape, dtype=self.dtype, device=self.stream.device)
        for row, seed in zip(out.unbind(0), self._next(), strict=True):
            fill(row, self.stream.manual_seed(seed))
        return out.to(self.device)

    def _few(self, count: int) -> Tensor:
        """Return numbers over [0, 1), shape (n, count), float64, by SplitMix64: seeding a stream costs more than the draw."""
        self.turns[0] += 1
        place = torch.arange(count, device=self.seeds.device) + FEW * self.turns[0]
        bits = self.seeds[:, None] + place * -7046029254386353131  # whole numbers of 64 bits wrap around
        bits = (bits ^ (bits >> 30 & 2**34 - 1)) * -4658895280553007687
        bits = (bits ^ (bits >> 27 & 2**37 - 1)) * -7723592293110705685
        return (bits >> 11 & 2**53 - 1).double() * 2.0**-53

    def _next(self) -> list[int]:
        """Return one seed for each sample, new at every call."""
        self.turns[0] += 1
        found: list[int] = (self.seeds + self.turns[0] * 2654435769 & 2**62 - 1).tolist()
        return found


def _seeds(n: int, generator: torch.Generator) -> Tensor:
    """Return n seeds, those that n calls for one seed each would give."""
    how: dict[str, Any] = {"generator": generator, "device": generator.device, "dtype": torch.int64}
    if generator.device.type == "cpu":  # one stream of numbers, however many are asked for at once
        return torch.randint(2**62, (n,), **how)
    # What an accelerator draws in one launch depends on how many are asked for.
    ones = [torch.randint(2**62, (1,), **how) for _ in range(n)]
    return torch.cat(ones) if ones else torch.empty(0, dtype=torch.int64, device=generator.device)
