"""What answers behind a Target: a module, a function, or anything else that takes a batch."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from hauberk.core.access import Access
from hauberk.core.errors import ModelError


@runtime_checkable
class Predictor(Protocol):
    """Anything that answers: raw outputs for a batch, and the most that it can grant."""

    access: Access
    outputs: str

    def __call__(self, x: Tensor) -> Tensor:
        """Return the raw outputs, shape (n, classes), or labels, shape (n,)."""
        ...


@dataclasses.dataclass
class ModulePredictor:
    """A `torch.nn.Module` in evaluation mode, whatever mode its owner left it in."""

    module: nn.Module
    outputs: str = "auto"
    access: Access = Access.GRADIENT

    def __call__(self, x: Tensor) -> Tensor:
        held = itertools.chain(self.module.parameters(), self.module.buffers())
        place = next((one for one in held if one.is_floating_point()), None)
        # A copy: a model may write on its input, and the caller's samples, or a leaf of a graph, are not its to write on.
        moved = x.clone() if place is None else x.to(place.device, place.dtype, copy=True)
        with evaluating(self.module):
            answer = self.module(moved)
        if not isinstance(answer, Tensor):
            raise ModelError(
                f"the model returned {type(answer).__name__}", want="one tensor of shape (n, classes)",
                fix="Wrap the model in a module that returns the class scores alone",
            )
        return answer.to(x.device)


@dataclasses.dataclass
class CallablePredictor:
    """A function of a batch that returns scores or labels, as a tensor or an array."""

    function: Callable[[Tensor], object]
    outputs: str = "auto"
    access: Access = Access.SCORE

    def __call__(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            answer = torch.as_tensor(self.function(x.detach().clone()))
        return answer.to(x.device)


@dataclasses.dataclass
class Through:
    """A predictor that is asked about `change(x)` where x was meant."""

    predictor: Predictor
    change: Callable[[Tensor], Tensor]

    def __post_init__(self) -> None:
        self.access, self.outputs = self.predictor.access, self.predictor.outputs

    def __call__(self, x: Tensor) -> Tensor:
        return self.predictor(self.change(x))


class Before(nn.Module):
    """A module behind a differentiable change of its inputs."""

    def __init__(self, change: Callable[[Tensor], Tensor], module: nn.Module) -> None:
        super().__init__()
        self.change, self.module = change, module
        self.training = module.training

    def forward(self, x: Tensor) -> Tensor:
        """Return the answer to the changed inputs."""
        answer: Tensor = self.module(self.change(x))
        return answer


def through(predictor: Predictor, change: Callable[[Tensor], Tensor]) -> Predictor:
    """Return a predictor of the same kind that is asked about `change(x)`."""
    if isinstance(predictor, ModulePredictor):
        return ModulePredictor(Before(change, predictor.module), predictor.outputs, predictor.access)
    return Through(predictor, change)


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode for the block and give every part back the mode it had.

    Where the module is in evaluation mode but a normalisation inside it is not, that part stays as it is served: it uses the
    statistics of the batch. It does not learn from our questions, though: its running statistics are left alone.
    """
    if module.training:
        # Flags are set one by one: exported programs refuse `.eval()`, and each part must get its own flag back.
        attribute, touched = "training", [part for part in module.modules() if part.training]
    else:
        attribute = "track_running_stats"
        touched = [part for part in module.modules() if part.training and getattr(part, attribute, False)]
    for part in touched:
        setattr(part, attribute, False)
    try:
        yield
    finally:
        for part in touched:
            setattr(part, attribute, True)


class Normalize(nn.Module):
    """(x - mean) / std per channel, so that a model with its own normalisation can be attacked in input space.

    Arguments:
        mean, std: one number, or one per channel (the first axis of a sample).
    """

    def __init__(self, mean: float | Sequence[float], std: float | Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.as_tensor(mean).float(), persistent=False)
        self.register_buffer("std", torch.as_tensor(std).float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return x, shape (n, channels, ...), normalised."""
        shape = (-1,) + (1,) * (x.ndim - 2)
        mean, std = self.get_buffer("mean").to(x), self.get_buffer("std").to(x)
        return (x - mean.reshape(shape if mean.ndim else ())) / std.reshape(shape if std.ndim else ())
