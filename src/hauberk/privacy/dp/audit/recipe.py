"""DP-SGD of this library as a trainer that an audit can run."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from hauberk.core.data import Split
from hauberk.core.errors import UsageError
from hauberk.core.train import cross_entropy
from hauberk.privacy.dp import Private, PrivateOptions, make_private


def dp_sgd(
    *, noise: float = 1.0, clip: float = 1.0, rate: float = 0.1, steps: int = 20, lr: float = 0.1
) -> Callable[[nn.Module, Split, int], Private]:
    """Return a trainer `(model, data, seed)` by `make_private` and SGD, which returns what it spent.

    Arguments:
        noise: multiplier.
        clip: largest norm of a gradient.
        rate: share of the records in a batch, drawn by Poisson sampling.
        steps: steps of training.
        lr: learning rate.

    Raises:
        UsageError: for a rate outside (0, 1], or a learning rate that is not finite or not above 0.
    """
    if not 0 < rate <= 1:
        raise UsageError(f"the sampling rate is {rate}", want="a share above 0, at most 1")
    if not 0 < lr < math.inf:
        raise UsageError(f"the learning rate is {lr}", want="a finite number above 0, such as 0.1")

    def train(model: nn.Module, data: Split, seed: int) -> Private:
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        private = make_private(
            model, optimizer, data, batch_size=max(1, round(rate * len(data))), noise_multiplier=noise, clip=clip,
            options=PrivateOptions(seed=seed),
        )
        for x, y in private.batches(steps=steps):
            private.step(cross_entropy, x, y)
        return private

    return train
