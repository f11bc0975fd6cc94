"""Interval arithmetic through layers, rounded outwards: one function per kind of layer."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hauberk.core.errors import ModelError
from hauberk.core.target import Normalize

Step = Callable[[Any, "Box"], "Box"]
_STEPS: dict[type[nn.Module], Step] = {}


@dataclasses.dataclass(frozen=True)
class Box:
    """All tensors between `low` and `high`, shape (n, ...) in float64.

    `unit` is the rounding unit of the network's own arithmetic: bounds are widened by what its sums may lose, in whatever order
    they are taken, so that they hold for the network as it runs and not only for the one on paper.
    """

    low: Tensor
    high: Tensor
    unit: float

    @property
    def centre(self) -> Tensor:
        """The middle."""
        return (self.low + self.high) / 2

    @property
    def radius(self) -> Tensor:
        """Half the width."""
        return (self.high - self.low) / 2

    @property
    def size(self) -> Tensor:
        """The largest absolute value inside."""
        return torch.maximum(self.low.abs(), self.high.abs())

    def to(self, low: Tensor, high: Tensor) -> Box:
        """Return the box between two new ends."""
        return Box(low, high, self.unit)

    def around(self, centre: Tensor, radius: Tensor, size: Tensor, terms: int) -> Box:
        """Return centre ± radius, widened by the error of sums of that many terms whose absolute values add up to `size`."""
        slack = radius + error_share(terms, self.unit) * size
        return Box(centre - slack, centre + slack, self.unit)


def error_share(terms: int, unit: float) -> float:
    """Return the share of the absolute sum by which a sum of products may be wrong (Higham 2002, section 3.1).

    The bound counts once for the network, in its own rounding unit, and twice for the float64 arithmetic here.
    """
    counts = ((terms + 4) * unit, (terms + 4) * 2.0**-53)
    own, here = (count / (1 - count) if count < 0.5 else float("inf") for count in counts)
    return own + 2 * here


def step(*kinds: type[nn.Module]) -> Callable[[Step], Step]:
    """Record how a box passes through layers of those kinds. A new kind of layer is one such function."""

    def record(function: Step) -> Step:
        _STEPS.update(dict.fromkeys(kinds, function))
        return function

    return record


def push(layer: nn.Module, box: Box, name: str) -> Box:
    """Return the box after a layer. Raises ModelError for a kind of layer without a rule; `name` is how the model calls it."""
    rule = _STEPS.get(type(layer))
    if rule is None:
        raise unsupported(layer, name)
    return rule(layer, box)


def unsupported(layer: nn.Module, name: str) -> ModelError:
    """Return the error for a layer without a rule."""
    known = ", ".join(sorted(kind.__name__ for kind in _STEPS))
    return ModelError(
        f"interval bounds do not know the layer '{name}' of type {type(layer).__name__}",
        want=f"nn.Sequential of {known}", fix="Rewrite the layer with those, or verify the part of the model without it",
    )


@step(nn.Linear)
def _linear(layer: nn.Linear, box: Box) -> Box:
    weight, bias = double(layer.weight), double(layer.bias)
    size = weight.abs()
    return box.around(
        functional.linear(box.centre, weight, bias), functional.linear(box.radius, size),
        functional.linear(box.size, size, None if bias is None else bias.abs()), layer.in_features,
    )


@step(nn.Conv2d)
def _conv2d(layer: nn.Conv2d, box: Box) -> Box:
    if layer.padding_mode != "zeros":
        raise ModelError(
            f"a Conv2d pads by '{layer.padding_mode}'", want="padding_mode='zeros'", fix="Pad in a layer of its own"
        )
    weight, bias = double(layer.weight), double(layer.bias)
    assert weight is not None
    size = weight.abs()
    convolve: Any = functools.partial(
        functional.conv2d, stride=layer.stride, padding=layer.padding, dilation=layer.dilation, groups=layer.groups
    )
    return box.around(
        convolve(box.centre, weight, bias), convolve(box.radius, size),
        convolve(box.size, size, None if bias is None else bias.abs()), weight[0].numel(),
    )


@step(nn.BatchNorm1d, nn.BatchNorm2d)
def _batch_norm(layer: nn.BatchNorm1d | nn.BatchNorm2d, box: Box) -> Box:
    if layer.running_mean is None or layer.running_var is None:
        raise ModelError(
            "a BatchNorm keeps no running statistics", want="track_running_stats=True",
            fix="Without them the answer to one sample depends on the others",
        )
    shape = (-1,) + (1,) * (box.low.ndim - 2)
    mean, variance = layer.running_mean.double().reshape(shape), layer.running_var.double().reshape(shape)
    scale, shift = (variance + layer.eps).rsqrt(), torch.zeros_like(mean)
    if layer.weight is not None:
        scale = scale * layer.weight.detach().double().reshape(shape)
    if layer.bias is not None:
        shift = layer.bias.detach().double().reshape(shape)
    size = (box.size + mean.abs()) * scale.abs() + shift.abs()
    return box.around((box.centre - mean) * scale + shift, box.radius * scale.abs(), size, 8)


@step(Normalize)
def _normalize(layer: Normalize, box: Box) -> Box:
    shape = (-1,) + (1,) * (box.low.ndim - 2)
    mean, std = (layer.get_buffer(name).double() for name in ("mean", "std"))
    mean, std = (value.reshape(shape if value.ndim else ()) for value in (mean, std))
    size = (box.size + mean.abs()) / std.abs()
    return box.around((box.centre - mean) / std, box.radius / std.abs(), size, 4)


@step(nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.MaxPool2d, nn.Flatten, nn.Identity, nn.Dropout, nn.Dropout2d, nn.Unflatten)
def _monotone(layer: nn.Module, box: Box) -> Box:
    # Monotone and exact in floating point: the ends go through as they are. Dropout is off, as in evaluation.
    if isinstance(layer, (nn.Dropout, nn.Dropout2d)):
        return box
    if isinstance(layer, nn.ReLU):
        return box.to(box.low.relu(), box.high.relu())
    if isinstance(layer, nn.Hardtanh):  # ReLU6 is one; not in place
        return box.to(*(functional.hardtanh(end, layer.min_val, layer.max_val) for end in (box.low, box.high)))
    if isinstance(layer, nn.MaxPool2d) and layer.return_indices:
        raise ModelError("a MaxPool2d returns indices", want="return_indices=False")
    return box.to(layer(box.low), layer(box.high))


@step(nn.LeakyReLU)
def _leaky(layer: nn.LeakyReLU, box: Box) -> Box:
    if layer.negative_slope < 0:
        raise ModelError(f"a LeakyReLU has the slope {layer.negative_slope}", want="a slope of 0 or more")
    leaky = functools.partial(functional.leaky_relu, negative_slope=layer.negative_slope)
    return _rounded(leaky(box.low), leaky(box.high), box, 1)


@step(nn.AvgPool2d, nn.AdaptiveAvgPool2d)
def _average(layer: nn.AvgPool2d | nn.AdaptiveAvgPool2d, box: Box) -> Box:
    lost = error_share(box.low[0, 0].numel(), box.unit) * layer(box.size)
    return box.to(layer(box.low) - lost, layer(box.high) + lost)


@step(nn.Sigmoid, nn.Tanh)
def _squash(layer: nn.Module, box: Box) -> Box:
    # Libraries promise these within a few units in the last place.
    return _rounded(layer(box.low), layer(box.high), box, 4)


def _rounded(low: Tensor, high: Tensor, box: Box, terms: int) -> Box:
    share = error_share(terms, box.unit)
    return box.to(low - share * low.abs(), high + share * high.abs())


def double(weight: Tensor | None) -> Any:
    """Return a weight in float64, detached; None for None."""
    return None if weight is None else weight.detach().double()
