"""A layer that samples what it passes on, so that the gradient behind it is of something random."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hauberk.core.errors import ModelError, UsageError
from hauberk.core.rng import generator as seeded
from hauberk.privacy.inversion.first_linear import linear_layers


class Bottleneck(nn.Module):
    """A variational bottleneck: features to the mean and spread of a code, a draw of it, and back to features.

    It draws in evaluation mode too, from torch's global generator (`hauberk.core.rng.isolated` sets and restores that), but for
    inputs of as many rows as `draw` holds, where that is set: those get it.

    Arguments:
        features: of what enters and leaves.
        size: of the code.
        strength: factor of the spread; 0 passes the mean on.
        seed: of the weights.
    """

    def __init__(self, features: int, size: int, *, strength: float = 1.0, seed: int = 0) -> None:
        super().__init__()
        if size < 1 or strength < 0:
            raise UsageError(f"size is {size} and strength {strength}", want="a size of at least 1, a strength of 0 or more")
        self.encode, self.decode = nn.Linear(features, 2 * size), nn.Linear(size, features)
        self.strength = strength
        self.divergence = torch.zeros(())
        self.draw: Tensor | None = None  # (n, size)
        draw = seeded(seed, "bottleneck")
        with torch.no_grad():
            for part in (self.encode, self.decode):
                part.weight.copy_(torch.randn(part.weight.shape, generator=draw) / part.in_features**0.5)
                part.bias.zero_()

    def __getstate__(self) -> dict[str, Any]:
        """Leave the graph behind the divergence out of copies and files."""
        return {**self.__dict__, "divergence": self.divergence.detach()}

    def forward(self, x: Tensor) -> Tensor:
        """Return features of shape (n, features) from those of that shape; `divergence` keeps the batch's mean KL in nats."""
        mean, spread = self.encode(x).chunk(2, 1)
        deviation = (spread / 2).exp()
        given = self.draw is not None and len(self.draw) == len(mean)
        code = mean + self.strength * deviation * (self.draw if given and self.draw is not None else torch.randn_like(mean))
        self.divergence = 0.5 * (mean.square() + deviation.square() - 2 * deviation.log() - 1).sum(1).mean()
        decoded: Tensor = self.decode(code)
        return decoded


@contextlib.contextmanager
def drawing(module: nn.Module, draws: Mapping[str, Tensor]) -> Iterator[None]:
    """Have the bottlenecks of these names use these draws, (n, size), within the block."""
    parts = {name: part for name, part in module.named_modules() if isinstance(part, Bottleneck) and name in draws}
    before = {name: part.draw for name, part in parts.items()}
    try:
        for name, part in parts.items():
            part.draw = draws[name]
        yield
    finally:
        for name, part in parts.items():
            part.draw = before[name]


def precode(module: nn.Module, *, size: int = 32, strength: float = 1.0, seed: int = 0) -> nn.Module:
    """Return a copy of a model with a bottleneck before its last linear layer (Scheliga et al. 2022, arXiv:2108.04725).

    The copy has to be trained on, with the divergence of the bottleneck as a part of the loss (`information_loss`).

    Arguments:
        module: the model.
        size: of the code.
        strength: factor of the spread of what is drawn; 0 draws nothing.
        seed: of the bottleneck's weights.

    Raises:
        ModelError: for a model without a linear layer, or that is one.
    """
    made = copy.deepcopy(module)
    known = linear_layers(made)
    name = list(known)[-1] if known else ""
    if not name:
        raise ModelError("the model has no linear layer inside it", want="a linear output layer")
    owner, _, key = name.rpartition(".")
    last, like = known[name], next(module.parameters())
    bottleneck = Bottleneck(last.in_features, size, strength=strength, seed=seed).to(like)
    setattr(made.get_submodule(owner), key, nn.Sequential(bottleneck, last))
    return made
