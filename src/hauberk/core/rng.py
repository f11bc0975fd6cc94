"""Seeded randomness: every draw comes from a generator derived from one seed by name; the global state stays as it was."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from hauberk.core.errors import UsageError


def derive_seed(seed: int, *names: object) -> int:
    """Return a 63-bit seed that depends on `seed` and the names alone, the same in every process and version."""
    digest = hashlib.sha256(repr((int(seed), *map(str, names))).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(seed: int, *names: object, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a torch generator on `device`, seeded from `seed` and the names."""
    made = torch.Generator(device=device)
    made.manual_seed(derive_seed(seed, *names))
    return made


def numpy_generator(seed: int, *names: object) -> np.random.Generator:
    """Return a NumPy generator seeded from `seed` and the names."""
    return np.random.default_rng(derive_seed(seed, *names))


def given(found: object, seed: int, *names: object) -> torch.Generator:
    """Return the generator that a caller gave, or for None one that is always seeded alike.

    Raises:
        UsageError: for anything else, such as a seed.
    """
    if found is None:
        return generator(seed, *names)
    if not isinstance(found, torch.Generator):
        number = found if isinstance(found, int) else 0
        raise UsageError(
            f"generator is {found!r}", want="a torch.Generator or None",
            fix=f"Make one: generator=torch.Generator().manual_seed({number})",
        )
    return found


def uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    """Return uniform [0, 1) noise with the shape, dtype and device of `like`, drawn on the generator's device."""
    noise = torch.rand(like.shape, generator=generator, device=generator.device, dtype=_drawable(like.dtype))
    return noise.to(like)


def normal(like: Tensor, generator: torch.Generator) -> Tensor:
    """Return standard normal noise with the shape, dtype and device of `like`, drawn on the generator's device."""
    noise = torch.randn(like.shape, generator=generator, device=generator.device, dtype=_drawable(like.dtype))
    return noise.to(like)


@contextlib.contextmanager
def isolated(seed: int | None = None, device: torch.device | str = "cpu") -> Iterator[None]:
    """Run the block on a copy of the global random state (torch, NumPy, `random`), seeded when `seed` is given.

    A model that draws at random (dropout kept on, randomised smoothing) then draws the same for the same seed, and the
    caller's own streams continue as if the block had never run.
    """
    place = torch.device(device)
    cuda = [place] if place.type == "cuda" else []
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=cuda):
        try:
            if seed is not None:
                seed_global(seed, place)
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)


def seed_global(seed: int, device: torch.device | str = "cpu") -> None:
    """Seed the global streams of torch (CPU and `device`), NumPy and `random`. Only inside `isolated`."""
    # Not torch.manual_seed: that one also reseeds every accelerator.
    torch.default_generator.manual_seed(seed)
    if torch.device(device).type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def _drawable(dtype: torch.dtype) -> torch.dtype:
    # Half-precision draws differ between devices and round to the ends of the range.
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32
