"""Inputs solved for layer by layer, from the answer back to the pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from hauberk.core.errors import ModelError, UsageError
from hauberk.core.kinds import Reconstruction, reconstruction
from hauberk.privacy.inversion.first_linear import TAGS, read
from hauberk.privacy.inversion.lean_convolution import convolve, slopes_of

LARGEST = 40_000_000  # entries of one layer's system of equations: what bounds memory
# The slope of an activation and its input, both from its output; None where the output says nothing of the input.
_INVERSE: dict[type[nn.Module], Callable[[Tensor, nn.Module], tuple[Tensor, Tensor]]] = {
    nn.ReLU: lambda out, _: ((out > 0).to(out), torch.where(out > 0, out, math.nan)),
    nn.Sigmoid: lambda out, _: (out * (1 - out), torch.logit(out)),
    nn.Tanh: lambda out, _: (1 - out.square(), torch.atanh(out)),
    nn.Identity: lambda out, _: (torch.ones_like(out), out),
    nn.LeakyReLU: lambda out, part: _leaky(out, float(part.negative_slope)),  # type: ignore[arg-type]
}


def _leaky(out: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    return torch.where(out > 0, 1.0, slope).to(out), torch.where(out > 0, out, out / slope)


@reconstruction(
    question="Does the gradient of one sample fix it, layer by layer?", tags=TAGS, preset="quick",
    paper="Zhu and Blaschko 2021, arXiv:2010.07733",
)
def r_gap(
    module: nn.Module, gradients: Mapping[str, Tensor], *, shape: tuple[int, ...] | None = None
) -> Reconstruction:
    """Solve for the input of each layer from the last to the first, without any search.

    What entered a layer satisfies two systems of linear equations: its weight's gradient is a product of it with the slope k at
    the layer's output, and, where the activation behind it can be turned round, the layer maps it to a known output. Their least
    squares solution is the output of the layer before, from which the next k follows.

    Arguments:
        module: an `nn.Sequential` of linear layers, convolutions, flattening, dropout and activations (ReLU, leaky ReLU, sigmoid,
            tanh), the last layer linear and with a bias; only read.
        gradients: by parameter name, of the cross-entropy of one sample.
        shape: of the input; None reads it off a model that begins with a linear layer.

    Returns:
        `x` of shape (1, *shape), float64, and `loss` of shape (1,): the relative residual of the equations, the largest of all
        layers; far from 0 where they contradict each other, as for several samples or clipped gradients. An input that the
        equations do not fix (fewer independent equations than unknowns) is the one of least norm: convolutions of few channels,
        the more so behind a ReLU, whose units that are off give no equation of the second kind.

    Raises:
        ModelError: for another layout, or a layer whose equations would not fit in memory.
        DataError: when gradients are missing.
        UsageError: for a shape that is not known or does not fit.
    """
    chain = _chain(module)
    shape = _shape(chain, shape)
    shapes = _shapes([part for _, part in chain], shape)
    name, last = next((one for one in reversed(chain) if _layered(one[1])), ("", nn.Identity()))
    if not isinstance(last, nn.Linear) or last.bias is None or chain[-1][1] is not last:
        raise ModelError("the model does not end with a linear layer with a bias", want="one, whose bias gives the slope away")
    k = read(gradients, f"{name}.bias" if name else "bias", last.bias).cpu()
    scale = k.abs().max().clamp_min(torch.finfo(k.dtype).tiny)
    k, out, worst = k / scale, None, 0.0  # out: what the layer put out, where known
    x = torch.empty(0, dtype=torch.float64)
    for place in range(len(chain) - 1, -1, -1):
        name, part = chain[place]
        if _layered(part):
            slope = read(gradients, f"{name}.weight" if name else "weight", _weight(part)).cpu() / scale
            x, residual = _solve(part, slope, k, out, shapes[place])
            worst = max(worst, residual)
            k, out = _back(part, k, x), x
        elif type(part) in _INVERSE and out is not None:
            if isinstance(part, nn.ReLU):
                # A unit that is off comes out of the equations as rounding of either sign, which must not count as on.
                out = torch.where(out > min(max(30 * worst, 1e-12), 1e-3) * out.abs().max(), out, 0)
            rate, out = _INVERSE[type(part)](out, part)
            k = k * rate
        k, out = k.reshape(shapes[place]), None if out is None else out.reshape(shapes[place])
    return Reconstruction(x.reshape(1, *shape), loss=torch.tensor([worst], dtype=torch.float64))


def _chain(module: nn.Module) -> list[tuple[str, nn.Module]]:
    def unfold(part: nn.Module, name: str) -> list[tuple[str, nn.Module]]:
        if isinstance(part, nn.Sequential) and type(part).forward is nn.Sequential.forward:
            return [one for key, child in part.named_children() for one in unfold(child, f"{name}.{key}" if name else key)]
        return [(name, part)]

    found = unfold(module, "")
    for name, part in found:
        plain = isinstance(part, _ConvNd) and not part.transposed and part.padding_mode == "zeros"
        passed = isinstance(part, (nn.Linear, nn.Flatten, nn.Dropout)) or type(part) in _INVERSE
        if not (passed or (plain and not isinstance(part.padding, str))):
            raise ModelError(
                f"layer '{name}' is {type(part).__name__}", want="a Sequential of linear, convolution, flattening and activation",
                fix="Use inverting_gradients, which takes any network",
            )
    return found


def _layered(part: nn.Module) -> bool:
    return isinstance(part, (nn.Linear, _ConvNd))


def _shape(chain: list[tuple[str, nn.Module]], shape: tuple[int, ...] | None) -> tuple[int, ...]:
    if shape is not None:
        return tuple(shape)
    first = next(part for _, part in chain if _layered(part))
    if isinstance(first, nn.Linear):
        return (first.in_features,)
    raise UsageError("the shape of an input is not known", want="shape=(channels, height, width)")


def _shapes(parts: list[nn.Module], shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the shape of what enters each part, without the batch."""
    found, x = [], torch.zeros(1, *shape)
    try:
        for part in parts:
            found.append(tuple(x.shape[1:]))
            if isinstance(part, nn.Linear):
                if x.shape[-1] == part.in_features < x.numel():
                    raise ModelError(
                        f"a linear layer sees {x.numel() // part.in_features} rows of a sample",
                        want="one that sees the whole sample", fix="Use inverting_gradients, which takes any network",
                    )
                x = nn.functional.linear(x, part.weight.detach().float().cpu())
            elif isinstance(part, _ConvNd):
                x = convolve(x, part.weight.detach().float().cpu(), None, _layout(part))
            elif isinstance(part, nn.Flatten):
                x = x.flatten(1)
    except (RuntimeError, IndexError) as error:
        raise UsageError(f"inputs of shape {shape} do not fit the model", want="the shape of one sample") from error
    return found


def _layout(part: nn.Module) -> tuple[object, object, object, int]:
    assert isinstance(part, _ConvNd)
    return part.stride, part.padding, part.dilation, part.groups


def _solve(
    part: nn.Module, slope: Tensor, k: Tensor, out: Tensor | None, shape: tuple[int, ...]
) -> tuple[Tensor, float]:
    """Return what entered a layer, of that shape, and the relative residual of its equations."""
    weight = _weight(part)
    if isinstance(part, nn.Linear):
        size = k.square().sum()
        x = slope.T @ k / size.clamp_min(torch.finfo(k.dtype).tiny)
        residual = (slope - torch.outer(k, x)).norm() / slope.norm().clamp_min(torch.finfo(k.dtype).tiny)
        return x, float(residual)
    count = math.prod(shape)
    rows = slope.numel() + (0 if out is None else out.numel())
    if count * rows > LARGEST:
        raise ModelError(f"a layer has {rows} equations in {count} unknowns", want=f"at most {LARGEST} coefficients")
    layout = _layout(part)
    basis = torch.eye(count, dtype=torch.float64).reshape(count, *shape)
    # One column per unknown: the weight gradient that an input of that unknown alone would have.
    by_weight = torch.stack([
        slopes_of(k[None], one[None], weight, layout, at_input=False).flatten() for one in basis
    ], 1)
    system, wanted = [by_weight], [slope.flatten()]
    if out is not None:
        known = out.flatten().isfinite()
        maps = convolve(basis, weight, None, layout).flatten(1).T
        shift = torch.zeros_like(out) if part.bias is None else (
            _weight(part, "bias").reshape(-1, *(1 for _ in out.shape[1:])).expand(out.shape)
        )
        system.append(maps[known])
        wanted.append((out - shift).flatten()[known])
    # Both kinds count alike, whatever the size of the gradient.
    sizes = [one.norm().clamp_min(torch.finfo(torch.float64).tiny) for one in system]
    a = torch.cat([one / size for one, size in zip(system, sizes, strict=True)])
    b = torch.cat([one / size for one, size in zip(wanted, sizes, strict=True)])
    x = torch.linalg.lstsq(a, b[:, None], driver="gelsd").solution[:, 0]
    return x.reshape(shape), float((a @ x - b).norm() / b.norm().clamp_min(torch.finfo(b.dtype).tiny))


def _back(part: nn.Module, k: Tensor, x: Tensor) -> Tensor:
    """Return the slope at what entered the layer, from that at what left it."""
    weight = _weight(part)
    if isinstance(part, nn.Linear):
        return weight.T @ k
    return slopes_of(k[None], x[None], weight, _layout(part), at_input=True)[0]


def _weight(part: nn.Module, kind: str = "weight") -> Tensor:
    found = getattr(part, kind)
    assert isinstance(found, Tensor)
    return found.detach().double().cpu()  # few and large linear systems, solved in one place
