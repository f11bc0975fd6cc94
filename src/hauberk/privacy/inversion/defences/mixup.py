"""Batches of blended samples."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from hauberk.core.errors import DataError, UsageError
from hauberk.core.rng import given


def mixup(
    x: Tensor, y: Tensor, classes: int, *, strength: float = 1.0, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Return samples blended in pairs and their blended labels, from which a client then makes its gradient.

    Zhang et al. 2018, arXiv:1710.09412; as a defence Huang et al. 2020, arXiv:2010.02772. Whoever inverts the gradient gets the
    blend.

    Arguments:
        x: samples, shape (n, ...), n at least 2.
        y: labels, shape (n,).
        classes: of the labels.
        strength: of the blend: the weight of the other sample is drawn from Beta(strength, strength), folded to at most one half;
            0 blends nothing.
        generator: of the pairs and weights; None is seeded alike at every call.

    Returns:
        Blends, shape (n, ...), and label probabilities, shape (n, classes).

    Raises:
        DataError: for fewer than two samples, or labels that are not classes.
        UsageError: for a strength below 0.
    """
    if len(x) < 2:
        raise DataError(f"there are {len(x)} samples", want="at least 2 to blend")
    if y.is_floating_point() or not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise DataError(f"labels span {float(y.min()):g} to {float(y.max()):g}", want=f"classes 0 to {classes - 1}")
    if not strength >= 0:
        raise UsageError(f"strength is {strength}", want="0 or more")
    drawn = given(generator, 0, "mixup")
    hot = functional.one_hot(y.long(), classes).to(x)
    if strength == 0:
        return x.clone(), hot
    seed = int(torch.randint(2**62, (), generator=drawn, device=drawn.device))
    weight = np.random.default_rng(seed).beta(strength, strength, len(x))
    share = torch.as_tensor(np.minimum(weight, 1 - weight)).to(x)
    # A cycle through all: nobody is blended with itself.
    order = torch.randperm(len(x), generator=drawn, device=drawn.device).to(x.device)
    other = torch.empty_like(order)
    other[order] = order.roll(1)
    wide = share.reshape(-1, *(1 for _ in x.shape[1:]))
    return (1 - wide) * x + wide * x[other], (1 - share)[:, None] * hot + share[:, None] * hot[other]
