"""The features that give most of the input away, cut out of one layer's gradient."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hauberk.core.errors import ModelError, UsageError, nearest
from hauberk.privacy.inversion.client import serving
from hauberk.privacy.inversion.first_linear import first_linear, linear_layers


def soteria(
    gradients: Mapping[str, Tensor], strength: float = 0.5, *, module: nn.Module, x: Tensor, layer: str | None = None
) -> dict[str, Tensor]:
    """Return the gradients with columns of one linear layer's weight set to zero (Sun et al. 2021, arXiv:2012.06043).

    Those of the features r for which |r| / ||dr/dx|| is largest: without them a search for inputs of the same features ends
    farthest from x.

    Arguments:
        gradients: by parameter name.
        strength: share of the layer's features, rounded down.
        module: the model, in evaluation mode; never changed.
        x: the client's samples, shape (n, ...); scores are averaged over them.
        layer: name of the linear layer; None takes the first one registered.

    Raises:
        UsageError: for a share outside [0, 1].
        ModelError: when there is no such layer.
    """
    if not 0 <= strength <= 1:
        raise UsageError(f"strength is {strength}", want="a share from 0 to 1")
    known = linear_layers(module)
    name = first_linear(module) if layer is None else layer
    if name not in known:
        raise ModelError(f"there is no linear layer '{name}'", want="an nn.Linear", fix=nearest(name, list(known)))
    key = f"{name}.weight" if name else "weight"
    scores = torch.stack([_scores(module, known[name], one[None]) for one in x]).mean(0)
    cut = scores.argsort(descending=True, stable=True)[: int(strength * len(scores))]
    found = {other: one.detach().clone() for other, one in gradients.items()}
    found[key][:, cut] = 0
    return found


def _scores(module: nn.Module, part: nn.Module, x: Tensor) -> Tensor:
    kept: list[Tensor] = []
    handle = part.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    with serving(module, training=False), torch.enable_grad():
        z = x.detach().clone().requires_grad_()
        try:
            module(z)
        finally:
            handle.remove()
        features = kept[0].reshape(-1)
        rates = [torch.autograd.grad(one, z, retain_graph=True)[0].norm() for one in features]
    # A feature that is out (a ReLU at 0) says nothing: its score is 0.
    rate = torch.stack(rates)
    return torch.where(rate > 0, features.detach().abs() / rate.clamp_min(1e-30), torch.zeros_like(rate))
