"""Convolutions whose second derivative costs what it must: one more convolution, where autograd also makes a weight slope."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_FORWARD: tuple[Callable[..., Tensor], ...] = (torch.conv1d, torch.conv2d, torch.conv3d)
Layout = tuple[Any, Any, Any, int]  # stride, padding, dilation, groups


class LeanConvolutions(TorchFunctionMode):
    """Inside the block, convolutions whose weights are constants let gradients through to their inputs alone."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Replace `conv(x, weight, bias, stride, padding, dilation, groups)`; run all else as it is."""
        if func in _FORWARD and len(args) == 7 and not kwargs and not isinstance(args[4], str):
            x, weight, bias, *layout = args
            made = weight.requires_grad or (bias is not None and bias.requires_grad)  # of the inputs: no constants
            if x.ndim == weight.ndim and not made:
                parts = (x, weight.detach(), None if bias is None else bias.detach(), tuple(layout))
                return _Convolve.apply(*parts)  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, layout: Layout) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.layout = layout
        return convolve(x, weight, bias, layout)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None, None]:
        x, weight = ctx.saved_tensors
        made: Tensor = _Back.apply(slopes[0], x.detach(), weight, ctx.layout)  # type: ignore[no-untyped-call]
        return made, None, None, None


class _Back(torch.autograd.Function):
    """The slope at the input, which depends on the slope at the output and the weight, and not on the input."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor, weight: Tensor, layout: Layout) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.layout = layout
        made = slopes_of(g, x, weight, layout, at_input=True)
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *slopes: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors  # type: ignore[attr-defined]
        return convolve(slopes[0], weight, None, ctx.layout), None, None, None  # type: ignore[attr-defined]


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, layout: Layout) -> Tensor:
    """Return the convolution of x, (n, channels, ...)."""
    forward = (functional.conv1d, functional.conv2d, functional.conv3d)[weight.ndim - 3]
    made: Tensor = forward(x, weight, bias, *layout)
    return made


def slopes_of(g: Tensor, x: Tensor, weight: Tensor, layout: Layout, *, at_input: bool) -> Tensor:
    """Return the slope at the input, or at the weight, from that at the output, g."""
    stride, padding, dilation, groups = layout
    axes = weight.ndim - 2
    wide = [[one] * axes if isinstance(one, int) else list(one) for one in (stride, padding, dilation)]
    found = torch.ops.aten.convolution_backward(
        g, x, weight, None, *wide, False, [0] * axes, groups, [at_input, not at_input, False]
    )
    made: Tensor = found[0 if at_input else 1]
    return made
