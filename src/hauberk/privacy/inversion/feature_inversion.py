"""Inputs won back from what an inner layer says of them: the threat of split computing and of shared embeddings."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hauberk.core.errors import DataError, ModelError, UsageError, nearest
from hauberk.core.kinds import Reconstruction, reconstruction
from hauberk.core.rng import generator
from hauberk.core.taps import tap
from hauberk.core.target import evaluating
from hauberk.privacy.inversion.first_linear import first_linear, linear_layers
from hauberk.privacy.inversion.search import box

SEEN_TAGS = ("aisec:data-recovery-in-the-model", "atlas:AML.T0024.001", "owasp:ML03", "nist:NISTAML.032")


@reconstruction(
    question="Do the features of an inner layer hand over the input?", tags=SEEN_TAGS,
    paper="Mahendran and Vedaldi 2015, arXiv:1412.0035", sees="features",
)
def feature_inversion(
    module: nn.Module, features: Tensor, *, layer: str | None = None, shape: tuple[int, ...] | None = None, steps: int = 400,
    tv: float = 1e-3, bounds: tuple[float, float] | None = None, seed: int = 0,
) -> Reconstruction:
    """Search inputs whose features are the given ones: the squared distance relative to their size, plus the total variation.

    Every sample is searched for by itself, by Adam from a small random start with a step that falls to zero; the best iterate
    is returned.

    Arguments:
        module: the model; differentiated, never changed.
        features: what the layer put out, shape (n, ...).
        layer: the layer's name; None takes the first `nn.Linear`.
        shape: of one input; None reads it off the model when it begins with that linear layer.
        steps: gradient steps.
        tv: weight of the total variation over the last two axes of inputs of three axes (channels, height, width); others
            have none. In units of the distance between the bounds.
        bounds: lowest and highest input; None sets none.
        seed: of the start.

    Returns:
        `x` of shape (n, *shape), and `loss` of shape (n,): the relative squared distance of its features.

    Raises:
        ModelError: for a layer that is not there.
        DataError: for features that are missing, not finite, or not of that layer.
        UsageError: for a number of steps below 1, bounds that enclose nothing, or a shape that is not known or does not fit.
    """
    if not isinstance(features, Tensor) or features.ndim < 2 or not features.is_floating_point():
        raise DataError("the features are missing", want="a floating point tensor (n, ...), what the layer put out")
    if not bool(features.isfinite().all()):
        raise DataError("the features are not finite", want="finite features")
    if steps < 1:
        raise UsageError(f"steps is {steps}", want="at least 1")
    name = first_linear(module) if layer is None else layer
    known = [one for one, _ in module.named_modules() if one]
    if name and name not in known:
        raise ModelError(f"there is no layer '{name}'", want="a name of model.named_modules()", fix=nearest(name, known))
    shape = _first_shape(module, name) if shape is None else tuple(shape)
    low, high, spread = box(bounds)
    wanted = features.detach()
    start = torch.randn(len(wanted), *shape, generator=generator(seed, "feature inversion"), dtype=torch.float64)
    middle = (low + high) / 2 if bounds is not None else 0.0
    x = (middle + 0.01 * spread * start).to(wanted).clamp(low, high)
    best, least = x.clone(), torch.full((len(x),), math.inf, dtype=wanted.dtype, device=wanted.device)
    distance = least.clone()
    size = wanted.flatten(1).square().sum(1).clamp_min(torch.finfo(wanted.dtype).tiny)
    mean, power = torch.zeros_like(x), torch.zeros_like(x)
    with evaluating(module), tap(module, [name]) as seen, torch.enable_grad():
        for step in range(steps + 1):
            x.requires_grad_(True)
            try:
                module(x)
            except (RuntimeError, ValueError) as error:
                raise UsageError(f"inputs of shape {shape} do not fit the model", want="the shape of one sample") from error
            given = seen.activations[name]
            if given.shape != wanted.shape:
                raise DataError(
                    f"the features have shape {tuple(wanted.shape)}, layer '{name}' gives {tuple(given.shape)}",
                    want="the output of that layer", fix="Name the layer that the features come from, and the input's shape",
                )
            apart = (given - wanted).flatten(1).square().sum(1) / size  # (n,)
            loss = apart + tv * _variation(x) / spread**2
            (slope,) = torch.autograd.grad(loss.sum(), x)
            x = x.detach()
            better = loss.detach() < least
            best[better], least[better], distance[better] = x[better], loss.detach()[better], apart.detach()[better]
            # Adam, whose step is the same however small the features of a sample are.
            mean, power = 0.9 * mean + 0.1 * slope, 0.99 * power + 0.01 * slope.square()
            rate = 0.1 * spread * (1 + math.cos(math.pi * step / steps)) / 2
            ahead = (mean / (1 - 0.9 ** (step + 1))) / (power / (1 - 0.99 ** (step + 1))).sqrt().clamp_min(1e-30)
            x = (x - rate * ahead).clamp(low, high)
    return Reconstruction(best, loss=distance)


def _variation(x: Tensor) -> Tensor:
    """Return the mean squared difference of neighbours on the last two axes, shape (n,); zero for inputs that are no images."""
    if x.ndim < 4:
        return x.new_zeros(len(x))
    down, right = x.diff(dim=-2).square(), x.diff(dim=-1).square()
    return down.flatten(1).mean(1) + right.flatten(1).mean(1) if min(x.shape[-2:]) > 1 else x.new_zeros(len(x))


def _first_shape(module: nn.Module, layer: str) -> tuple[int, ...]:
    linear = linear_layers(module)
    if layer in linear and layer == first_linear(module):
        return (linear[layer].in_features,)
    raise UsageError("the shape of an input is not known", want="shape=(channels, height, width) or (features,)")
