"""A small network that counts what it is asked, for the suites of universal and semantic attacks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hauberk.core.rng import generator


class Net(nn.Module):
    """A small network on (n, 1, 6, 6) that keeps count of what it is asked."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(36, 24), nn.BatchNorm1d(24), nn.Dropout(0.5)
        self.last = nn.Linear(24, classes)
        draw = generator(5, "net", classes)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * (1.0 if parameter.ndim == 1 else 0.4))
            self.norm.bias.zero_()
            self.eval()
            self.rows, self.differentiated = 0, 0
            self.last.bias -= self(inputs(200)).mean(0)

    def forward(self, x: Tensor) -> Tensor:
        out = self.last(self.drop(torch.tanh(self.norm(self.first(x.flatten(1))))))
        self.rows += len(x)
        if out.requires_grad and x.requires_grad:
            out.register_hook(self._count)
        return out

    def _count(self, gradient: Tensor) -> None:
        self.differentiated += len(gradient)


def inputs(n: int, seed: int = 0) -> Tensor:
    return (torch.rand(n, 1, 6, 6, generator=generator(seed, "inputs")) * 1.2 - 0.1).clamp(0, 1)


def labels(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return net(x).argmax(1)
