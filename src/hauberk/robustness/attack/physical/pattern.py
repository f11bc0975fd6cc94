"""What the searches for one change share: the best one seen, batches in random order, and the changes a threat allows at all."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from hauberk.core.errors import UsageError
from hauberk.core.rng import uniform
from hauberk.core.target import Target
from hauberk.core.threat import Ball, Threat
from hauberk.robustness.attack.losses import climbed

_HIGHEST = 9.0  # of an untargeted cross-entropy: one input must not outweigh the others (section 3 of arXiv:1811.11304)
LOOKS = 10  # times the whole of the inputs is asked about on the way


class Best:
    """The best pattern seen: the most inputs that reach the goal, and among equals the highest mean loss.

    Arguments:
        target, y, threat: as the attack got them.
        see: what the model is shown of a pattern: `pattern -> inputs`, (n, ...), in the order of x.
        loss: `ce` or `margin`.
    """

    def __init__(
        self, target: Target, y: Tensor, threat: Threat, see: Callable[[Tensor], Tensor], loss: str = "ce"
    ) -> None:
        self.target, self.y, self.threat, self.see, self.loss = target, y, threat, see, loss
        self.pattern: Tensor | None = None
        self.fooled = torch.zeros(len(y), dtype=torch.bool, device=y.device)
        self._rank = (-1, -torch.inf)

    def look(self, pattern: Tensor, price: float | None = None) -> None:
        """Ask about all inputs with the pattern on them; where patterns have a price, the mean loss less the price decides."""
        pattern = pattern.detach().clone()
        if not len(self.y):
            self.pattern = pattern
            return
        with torch.no_grad():
            logits = self.target.logits(self.see(pattern))
            fooled = self.threat.success(logits, self.y)
            height = float(height_of(logits, self.y, self.threat, self.loss).double().mean())
        rank = (int(fooled.sum()), height) if price is None else (0, height - price)
        if self.pattern is None or rank > self._rank:
            self.pattern, self.fooled, self._rank = pattern, fooled, rank

    @property
    def found(self) -> Tensor:
        """The best pattern."""
        assert self.pattern is not None
        return self.pattern


def height_of(logits: Tensor, y: Tensor, threat: Threat, loss: str) -> Tensor:
    """Return what is climbed, shape (n,): the loss, cut off where an input has long reached the goal."""
    value = climbed(logits, y, threat, loss)
    return value.clamp(max=_HIGHEST) if loss == "ce" else value


def batches(n: int, size: int, steps: int, noise: torch.Generator) -> Iterator[Tensor]:
    """Yield `steps` batches of positions; every pass over the n inputs is in an order of its own."""
    left = torch.arange(0)
    for _ in range(steps if n else 0):
        if not len(left):
            left = torch.randperm(n, generator=noise, device=noise.device)
        yield left[:size]
        left = left[size:]


def limits(x: Tensor, threat: Threat) -> tuple[Tensor, Tensor]:
    """Return the lowest and highest value of each feature, in the shape of one sample with an axis before it, (1, ...)."""
    assert threat.bounds is not None
    low, high = (torch.as_tensor(end, device=x.device, dtype=x.dtype).expand(x.shape[1:])[None] for end in threat.bounds)
    return low, high


def allowed(x: Tensor, threat: Threat) -> Ball:
    """Return the ball of the changes that make sense for any input: around no change, (1, ...), no wider than the bounds are."""
    low, high = limits(x, threat)
    return dataclasses.replace(threat, bounds=((low - high)[0], (high - low)[0])).around(torch.zeros_like(low))


def changeable(x: Tensor, threat: Threat) -> Tensor:
    """Return where inputs may change, bool, in the shape of a sample."""
    if threat.mask is None:
        return torch.ones(x.shape[1:], dtype=torch.bool, device=x.device)
    return threat.mask.to(x.device).bool()


def random_colours(low: Tensor, high: Tensor, noise: torch.Generator) -> Tensor:
    """Return a start for a patch: values drawn evenly between the two ends, which must be finite."""
    return low + (high - low) * uniform(low, noise)


def at_least_one(**counts: float) -> None:
    """Raise UsageError for an option that must be 1 or more and is not."""
    for name, value in counts.items():
        if value < 1:
            raise UsageError(f"{name} is {value}", want="1 or more")


def within(low: float, high: float, **values: float) -> None:
    """Raise UsageError for an option outside [low, high]."""
    for name, value in values.items():
        if not low <= value <= high:
            raise UsageError(f"{name} is {value}", want=f"a number from {low:g} to {high:g}")
