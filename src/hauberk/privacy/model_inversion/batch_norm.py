"""Inversion by the statistics that batch normalisation keeps of the training data (DeepInversion)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from hauberk.core import rng
from hauberk.core.access import Access
from hauberk.core.errors import ModelError
from hauberk.core.kinds import Reconstruction, reconstruction
from hauberk.core.target import evaluating
from hauberk.core.train import class_logits
from hauberk.privacy.membership.signals import cross_entropy
from hauberk.privacy.model_inversion.descent import TAGS, adam, classes_of, refuse_labels, refuse_steps, variation


@reconstruction(
    question="Do a model's own batch statistics hand over what its training inputs look like?",
    paper="Yin et al. 2020, arXiv:1912.08795 (DeepInversion)", tags=TAGS, preset="thorough", sees="model",
    access=Access.GRADIENT,
)
def deep_inversion(
    module: nn.Module, labels: Tensor, *, shape: tuple[int, ...], steps: int = 400, rate: float = 0.05, statistics: float = 1.0,
    tv: float = 0.1, bounds: tuple[float, float] = (0.0, 1.0),
) -> Reconstruction:
    """Search a batch of inputs that the model assigns to the labels and whose activations have the stored means and variances.

    Arguments:
        module: the model, which returns logits, with batch normalisation; differentiated, never changed.
        labels: the class of each input of the batch, shape (n,); the statistics are those of the whole batch, so give many.
        shape: of one input.
        steps: gradient steps.
        rate: of Adam, as a share of the distance between the bounds.
        statistics: weight of the distance to the stored statistics, summed over the layers.
        tv: weight of the total variation of images, in units of the distance between the bounds.
        bounds: lowest and highest input.

    Returns:
        `x` of shape (n, *shape); `y`, the labels; `loss` of shape (n,), float64: 1 - p_y.

    Raises:
        ModelError: for a model without stored batch statistics.
        DataError: for labels that are no classes of the model, or a shape that it does not take.
        UsageError: for a number of steps below 1, or bounds in the wrong order.
    """
    refuse_steps(steps, bounds)
    layers = [
        part for part in module.modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is not None
    ]
    if not layers:
        raise ModelError(
            "the model keeps no batch statistics", want="batch normalisation with running means",
            fix="Use mi_face, or gmi with a prior",
        )
    place, (low, high) = next(module.parameters()), bounds
    start = torch.randn(len(labels), *shape, generator=rng.generator(0, "deep inversion"))
    start = ((low + high) / 2 + 0.1 * (high - low) * start).to(place)
    y, apart = labels.to(place.device), [torch.zeros(())] * len(layers)

    def watch(index: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(part: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            apart[index] = _distance(part, inputs[0])

        return hook

    def objective(x: Tensor) -> tuple[Tensor, Tensor]:
        loss = cross_entropy(class_logits(module(x)).double(), y) + tv / (high - low) ** 2 * variation(x)
        # What is shared by the batch counts for each of its inputs alike.
        figure = loss + statistics * torch.stack(apart).sum()
        return figure, figure.mean().expand(len(x))

    handles = [part.register_forward_pre_hook(watch(index)) for index, part in enumerate(layers)]
    try:
        with evaluating(module):
            refuse_labels(labels, classes_of(module, start[:2]))
            x, _ = adam(start, objective, steps=steps, rate=rate * (high - low), low=low, high=high)
    finally:
        for handle in handles:
            handle.remove()
    with torch.no_grad(), evaluating(module):
        unsure = -torch.expm1(-cross_entropy(class_logits(module(x)).double(), y))
    return Reconstruction(x, y=labels, loss=unsure)


def statistics_distance(module: nn.Module, x: Tensor) -> float:
    """Return how far the batch statistics of x are from the stored ones, summed over the layers: relative, 0 where equal."""
    found: list[Tensor] = []
    handles = [
        part.register_forward_pre_hook(lambda layer, inputs: found.append(_distance(layer, inputs[0])))
        for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.running_mean is not None
    ]
    try:
        with torch.no_grad(), evaluating(module):
            module(x)
    finally:
        for handle in handles:
            handle.remove()
    return float(sum(found)) if found else math.nan


def _distance(part: nn.Module, given: Tensor) -> Tensor:
    """Return the mean over channels of the squared differences of means and deviations, in units of the stored deviation."""
    axes = [axis for axis in range(given.ndim) if axis != 1]
    mean, deviation = given.mean(axes), (given.var(axes, unbiased=False) + 1e-8).sqrt()
    stored, spread = part.get_buffer("running_mean"), (part.get_buffer("running_var") + 1e-5).sqrt()
    return (((mean - stored) / spread).square() + ((deviation - spread) / spread).square()).mean()
