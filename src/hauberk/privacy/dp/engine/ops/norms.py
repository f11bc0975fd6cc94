"""Scales and shifts after a normalisation that keeps to one example: layer, group, instance and RMS norm."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from hauberk.core.errors import ModelError
from hauberk.privacy.dp.engine.per_example import Dense
from hauberk.privacy.dp.engine.registry import Gradients, treat


def _last(g: Tensor, shape: tuple[int, ...]) -> Dense:
    """Sum over all but the examples and the last dimensions."""
    values = g.reshape(len(g), g.shape[1 : g.dim() - len(shape)].numel(), *shape)
    return Dense(values.sum(1) if values.shape[1] != 1 else values[:, 0])


def _channels(g: Tensor) -> Dense:
    """Sum over all but the examples and the channels, shape (B, C)."""
    return Dense(g.flatten(2).sum(2) if g.dim() > 2 else g)


@treat(functional.layer_norm, parameters=("weight", "bias"), positions=True)
def layer_norm(
    g: Tensor, input: Tensor, normalized_shape: list[int], weight: Tensor | None = None, bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Gradients:
    """Normalised over the last dimensions."""
    shape = tuple(normalized_shape)
    return {
        "weight": lambda: _last(g * functional.layer_norm(input, shape, eps=eps).to(g.dtype), shape),
        "bias": lambda: _last(g, shape),
    }


@treat(functional.rms_norm, parameters=("weight",), positions=True)
def rms_norm(
    g: Tensor, input: Tensor, normalized_shape: list[int], weight: Tensor | None = None, eps: float | None = None
) -> Gradients:
    """Divided by the root of the mean square over the last dimensions."""
    shape = tuple(normalized_shape)
    return {"weight": lambda: _last(g * functional.rms_norm(input, shape, eps=eps).to(g.dtype), shape)}


@treat(functional.group_norm, parameters=("weight", "bias"))
def group_norm(
    g: Tensor, input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Gradients:
    """Normalised over groups of channels."""
    return {
        "weight": lambda: _channels(g * functional.group_norm(input, num_groups, eps=eps).to(g.dtype)),
        "bias": lambda: _channels(g),
    }


@treat(functional.instance_norm, parameters=("weight", "bias"))
def _instance_norm(
    g: Tensor, input: Tensor, running_mean: Tensor | None = None, running_var: Tensor | None = None,
    weight: Tensor | None = None, bias: Tensor | None = None, use_input_stats: bool = True, momentum: float = 0.1,
    eps: float = 1e-5,
) -> Gradients:
    """Normalised over the positions of each channel."""
    if running_mean is not None:
        raise ModelError(
            "an InstanceNorm keeps running statistics, which carry examples into the model without noise",
            want="track_running_stats=False", fix="Build the layer so, or use GroupNorm (to_group_norm(model)).",
        )
    return {
        "weight": lambda: _channels(g * functional.instance_norm(input, eps=eps).to(g.dtype)),
        "bias": lambda: _channels(g),
    }
