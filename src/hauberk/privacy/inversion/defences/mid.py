"""A bottleneck that is trained to pass on no more of the input than the label needs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from hauberk.core.errors import ModelError, UsageError
from hauberk.core.train import Loss
from hauberk.privacy.inversion.defences.precode import Bottleneck, precode


def mid(module: nn.Module, *, size: int = 32, seed: int = 0) -> nn.Module:
    """Return a copy of a model with a bottleneck before its last linear layer, to be trained by `information_loss`.

    Mutual information regularisation (Wang et al. 2021, arXiv:2009.05241), in the variational form of Alemi et al. 2017
    (arXiv:1612.00410).

    Arguments:
        module: the model.
        size: of the code.
        seed: of the bottleneck's weights.
    """
    return precode(module, size=size, seed=seed)


def information_loss(strength: float = 1e-3) -> Loss:
    """Return a loss `(model, x, y) -> scalar`: cross-entropy plus `strength` times the nats that pass the bottlenecks.

    Raises:
        UsageError: for a strength below 0. The loss raises ModelError for a model without a bottleneck.
    """
    if not strength >= 0:
        raise UsageError(f"strength is {strength}", want="0 or more")

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        found = [part for part in model.modules() if isinstance(part, Bottleneck)]
        if not found:
            raise ModelError("the model holds no bottleneck", want="a model made by precode or mid")
        value = functional.cross_entropy(model(x), y)
        return value + strength * torch.stack([part.divergence for part in found]).sum()

    return loss
