"""Linear layers: outer products of output gradient and input."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from hauberk.privacy.dp.engine.outer import Outer
from hauberk.privacy.dp.engine.per_example import Dense, PerExample
from hauberk.privacy.dp.engine.registry import Gradients, treat


@treat(functional.linear, parameters=("weight", "bias"), positions=True, backwards=lambda g, weight, **_: g @ weight)
def linear(g: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Gradients:
    """y = x Wᵀ + b, with any number of positions between examples and features."""
    positions = g.reshape(len(g), g.shape[1:-1].numel(), g.shape[-1])  # (B, T, p)

    def weight_gradient() -> PerExample:
        x = input.to(g.dtype).reshape(len(g), positions.shape[1], input.shape[-1])  # (B, T, d)
        product = Outer([(positions, x)], weight.shape)
        smaller = positions.shape[1] > 1 and not product.gram(positions.shape[1])
        return Dense(product.dense()) if smaller else product

    return {"weight": weight_gradient, "bias": lambda: Dense(positions.sum(1) if positions.shape[1] != 1 else positions[:, 0])}


@treat(torch.matmul, Tensor.matmul, Tensor.__matmul__, parameters=("other",), positions=True)
def matmul(g: Tensor, input: Tensor, other: Tensor) -> Gradients:
    """y = x W with W of shape (d, p)."""
    x = input.to(g.dtype).reshape(len(g), g.shape[1:-1].numel(), input.shape[-1])
    return {"other": lambda: Outer([(x, g.reshape(len(g), -1, g.shape[-1]) if len(g) else g)], other.shape)}
