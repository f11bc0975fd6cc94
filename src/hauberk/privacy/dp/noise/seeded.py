"""A seeded source: the same draws for the same seed, for tests and repeatable experiments; it protects nobody."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hauberk.core import rng
from hauberk.core.errors import DataError


class SeededSource:
    """Randomness that depends on a seed and names alone: whoever knows them can take the noise off again.

    Arguments:
        seed: any integer.
        names: what the draws are for; other names, other draws.
    """

    secure = False

    def __init__(self, seed: int, *names: object) -> None:
        self._seed, self._names = int(seed), names
        self._generators: dict[str, torch.Generator] = {}

    def bits(self, n: int) -> Tensor:
        """Return n uniform integers over all of int64, shape (n,), on the CPU."""
        return torch.empty(n, dtype=torch.int64).random_(-(1 << 63), None, generator=self._at("cpu"))

    def normal(self, like: Tensor, out: Tensor | None = None) -> Tensor:
        """Return standard normal values with the shape, dtype and device of `like`, in `out` where that is given."""
        draw = self._at(like.device)
        return rng.normal(like, draw) if out is None else out.normal_(generator=draw)

    def uniform(self, like: Tensor) -> Tensor:
        """Return values uniform over [0, 1) with the shape, dtype and device of `like`."""
        return rng.uniform(like, self._at(like.device))

    def laplace(self, like: Tensor) -> Tensor:
        """Return Laplace values of scale 1 (variance 2) with the shape, dtype and device of `like`."""
        draw = self._at(like.device)
        two = torch.empty((2, *like.shape), dtype=torch.float64, device=draw.device).exponential_(generator=draw)
        return (two[0] - two[1]).to(like)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of each device's generator."""
        return {device: one.get_state() for device, one in self._generators.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            DataError: when an entry is not the state of a generator.
        """
        for device, saved in state.items():
            try:
                self._at(device).set_state(torch.as_tensor(saved, dtype=torch.uint8, device="cpu"))
            except (RuntimeError, TypeError, ValueError) as error:
                problem = f"the saved state of the noise on '{device}' cannot be used ({error})"
                raise DataError(problem, want="what state_dict gave") from error

    def _at(self, device: torch.device | str) -> torch.Generator:
        name = str(device)
        if name not in self._generators:
            self._generators[name] = rng.generator(self._seed, *self._names, device=device)
        return self._generators[name]
