"""MID: mutual information between input and answer, limited by a noisy bottleneck (variational information bottleneck)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from hauberk.core import rng
from hauberk.core.errors import ModelError, UsageError, nearest
from hauberk.core.kinds import recipe
from hauberk.core.taps import penultimate
from hauberk.core.train import Loss, class_logits
from hauberk.privacy.defence.smoothing import TAGS


class Bottleneck(nn.Module):
    """A vector replaced by a draw from a normal law that depends on it; in evaluation mode by the law's mean.

    Arguments:
        inputs: width of the vector.
        width: of the draw.
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.mean, self.spread = nn.Linear(inputs, width), nn.Linear(inputs, width)
        self.divergence: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return the draw, shape (n, width); `divergence` then holds the mean KL of the law from the standard normal, in nats."""
        mean, log_variance = self.mean(x), self.spread(x).clamp(-20, 10)
        self.divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
        if not self.training:
            return mean
        drawn: Tensor = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        return drawn


def with_bottleneck(model: nn.Module, *, width: int = 32, layer: str | None = None, seed: int = 0) -> nn.Module:
    """Return a copy of a model with a bottleneck before a linear layer; that layer and the bottleneck are drawn anew.

    Arguments:
        model: to be trained with `mid`.
        width: of the bottleneck.
        layer: an `nn.Linear` by name; None takes the last.
        seed: of the new weights.

    Raises:
        ModelError: for a layer that is not there or not linear.
    """
    made = copy.deepcopy(model)
    name = penultimate(made) if layer is None else layer
    parts = dict(made.named_modules())
    if not isinstance(parts.get(name), nn.Linear) or not name:
        linear = [one for one, part in parts.items() if isinstance(part, nn.Linear) and one]
        raise ModelError(f"there is no linear layer '{name}' inside the model", want="an nn.Linear", fix=nearest(name, linear))
    old = parts[name]
    assert isinstance(old, nn.Linear)
    with rng.isolated(rng.derive_seed(seed, "bottleneck")):
        new = nn.Sequential(
            Bottleneck(old.in_features, width), nn.Linear(width, old.out_features, bias=old.bias is not None)
        ).to(old.weight)
    parent, _, last = name.rpartition(".")
    setattr(parts[parent], last, new)
    return made.train(model.training)


@recipe(
    question="How does a model learn to let little of an input through to its answer?", tags=TAGS, needs="bottleneck",
    paper="Wang et al. 2021, arXiv:2009.05241",
)
def mid(*, beta: float = 1e-3) -> Loss:
    """Return the cross-entropy plus beta times the divergence of the bottlenecks that `with_bottleneck(model)` put in.

    Arguments:
        beta: weight: more lets less through, and costs accuracy.

    Returns:
        `(model, x, y) -> loss`; it raises ModelError for a model without a `Bottleneck`.

    Raises:
        UsageError: for a negative beta.
    """
    if not beta >= 0:
        raise UsageError(f"beta is {beta}", want="a weight of 0 or more")

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        inside = [part for part in model.modules() if isinstance(part, Bottleneck)]
        if not inside:
            raise ModelError("the model has no bottleneck", want="one", fix="Train with_bottleneck(model)")
        value = functional.cross_entropy(class_logits(model(x)), y)
        for part in inside:
            if part.divergence is not None:
                value = value + beta * part.divergence
                part.divergence = None  # holds a graph: the next batch makes its own
        return value

    return loss
