"""Convolutions in one, two and three dimensions.

The gradient of example i is, for each tap (kh, kw) of the kernel, the product of its output gradient with its input shifted by
that tap. Copies are made of the shifts along the width alone: the shifts along the height are then slices of the same
copies, so that no input is unfolded whole.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from hauberk.privacy.dp.engine.ops.taps import Taps
from hauberk.privacy.dp.engine.per_example import Dense
from hauberk.privacy.dp.engine.registry import Gradients, treat

Sizes = int | tuple[int, ...]


def _all(value: Sizes, dims: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * dims if len(values) == 1 else values


def _pads(padding: Sizes | str, kernel: torch.Size, dilation: tuple[int, ...]) -> tuple[list[tuple[int, int]], bool]:
    """Return what is added before and after each dimension."""
    if padding == "valid":
        return [(0, 0)] * len(kernel), False
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return [(t // 2, t - t // 2) for t in total], True
    assert not isinstance(padding, str)
    return [(p, p) for p in _all(padding, len(kernel))], True


@treat(functional.conv1d, functional.conv2d, functional.conv3d, parameters=("weight", "bias"))
def convolution(
    g: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Sizes = 1, padding: Sizes | str = 0,
    dilation: Sizes = 1, groups: int = 1,
) -> Gradients:
    """Convolution of any stride, padding, dilation and number of groups."""
    kernel = weight.shape[2:]
    strides, dilations = _all(stride, len(kernel)), _all(dilation, len(kernel))
    pads, padded = _pads(padding, kernel, dilations)

    def weight_gradient() -> Taps:
        x = input.to(g.dtype)
        if padded and any(before or after for before, after in pads):
            x = functional.pad(x, [side for pair in reversed(pads) for side in pair])
        return Taps(x, g, weight.shape, strides, dilations, groups)

    return {"weight": weight_gradient, "bias": lambda: Dense(g.flatten(2).sum(2))}
