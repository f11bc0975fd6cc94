"""The contract of corruptions: what every corruption promises is enforced here once, so that a corruption is only its idea."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from hauberk.core import rng
from hauberk.core.card import Card, registry
from hauberk.core.errors import DataError, UsageError
from hauberk.core.threat import Bounds

Level = TypeVar("Level")
HENDRYCKS = "Hendrycks and Dietterich 2019, arXiv:1903.12261"
SMALL_SIDE = 64
SHARED = """

    Arguments:
        x: images, shape (n, channels, height, width), inside `bounds`.
        severity: 0 (the images as they are) to 5. The strength is read from the card: one table for images whose shorter side
            is at most 64 pixels, one for larger ones.
        generator: of all random draws; None takes one that is always seeded alike.
        bounds: lowest and highest input; numbers, or one per feature.

    Returns:
        The corrupted images: shape, dtype and device of x, inside `bounds`.

    Raises:
        DataError: for anything but finite images inside the bounds.
        UsageError: for a severity that is not 0 to 5, or bounds that are not finite.
"""


class Corruption(Protocol):
    """What `@natural` returns."""

    __name__: str

    def __call__(
        self, x: Tensor, severity: int, *, generator: torch.Generator | None = None, bounds: Bounds = (0.0, 1.0)
    ) -> Tensor:
        """Return corrupted images, shape (n, channels, height, width)."""
        ...


def natural(
    *, question: str, family: str, small: Sequence[Level], large: Sequence[Level] | None = None, paper: str = HENDRYCKS,
    preset: str = "standard",
) -> Callable[[Callable[[Tensor, Level, torch.Generator], Tensor]], Corruption]:
    """Return a decorator that records a corruption and keeps its contract.

    The function written is `(x, level, generator) -> x` on images in [0, 1], in float32 or float64. What it becomes takes a
    severity in place of a level, any bounds and dtype, refuses bad input at the door, and returns images inside the bounds.

    Arguments:
        question: what running it answers.
        family: noise, blur, light, geometry or storage.
        small, large: the five levels for small images and for large ones; None takes the same for both.
        paper: the source of the idea and, where it has any, of the levels.
        preset: the smallest preset whose checks use it.
    """
    tables = {"small": tuple(small), "large": tuple(small if large is None else large)}

    def record(function: Callable[[Tensor, Level, torch.Generator], Tensor]) -> Corruption:
        called = function.__name__.replace("_", "-")

        @functools.wraps(function)
        def run(
            x: Tensor, severity: int, *, generator: torch.Generator | None = None, bounds: Bounds = (0.0, 1.0)
        ) -> Tensor:
            low, high = _ends(called, x, severity, bounds)
            if severity == 0 or not len(x):
                return x.clone()
            level = tables["small" if min(x.shape[2:]) <= SMALL_SIDE else "large"][severity - 1]
            draws = generator if generator is not None else rng.generator(0, "corruption", called)
            exact = x if x.dtype in (torch.float32, torch.float64) else x.float()
            low, high = low.to(exact), high.to(exact)
            span = torch.where(high > low, high - low, torch.ones_like(high))
            unit = ((exact - low) / span).clamp(0, 1)
            done = function(unit, level, draws).clamp(0, 1)
            return torch.minimum(torch.maximum(low + done * (high - low), low), high).to(x.dtype)

        run.__doc__ = (inspect.getdoc(function) or "") + SHARED
        run.__signature__ = inspect.signature(Corruption.__call__).replace(  # type: ignore[attr-defined]
            parameters=list(inspect.signature(Corruption.__call__).parameters.values())[1:]
        )
        facts = {"family": family, **tables}
        registry.add(Card(called, "corruption", run, question, None, paper, ("aisec:model-misjudgment",), preset, facts))
        return run

    return record


def _ends(name: str, x: Tensor, severity: int, bounds: Bounds) -> tuple[Tensor, Tensor]:
    """Return the bounds as tensors on x's device after refusing input that cannot be corrupted."""
    if isinstance(severity, bool) or not isinstance(severity, int) or not 0 <= severity <= 5:
        raise UsageError(f"severity is {severity!r}", want="a whole number from 0 to 5")
    if x.ndim != 4 or not x.is_floating_point():
        raise DataError(
            f"{name} was given shape {tuple(x.shape)} of {x.dtype}", want="floating images (n, channels, height, width)",
            fix="Scale bytes first: x.float() / 255",
        )
    low, high = (torch.as_tensor(end, device=x.device, dtype=torch.float64) for end in bounds)
    if not bool((low.isfinite() & high.isfinite() & (low <= high)).all()):
        raise UsageError(f"bounds are {bounds}", want="two finite ends, the lower first")
    slack = 1e-5 * float((high - low).max())
    if len(x) and not bool(((x >= low - slack) & (x <= high + slack)).all()):
        raise DataError(
            f"x spans [{float(x.min()):.4g}, {float(x.max()):.4g}]",
            want=f"finite images in [{float(low.min()):.4g}, {float(high.max()):.4g}]",
            fix="Give unnormalised images, or state their bounds: bounds=(low, high)",
        )
    return low, high
