"""Whether a mutant still shows what its seed showed: DeepHunter's rule, against a reference image that moves with the seed."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from hauberk.core.threat import Bounds


@dataclasses.dataclass(frozen=True)
class Rule:
    """Where fewer than `alpha` of the pixels changed, they may take any value; else none may change by `beta` of the range.

    Xie et al. 2019 (DeepHunter), arXiv:1809.01266, equation 1. Both compare with the reference image, not with the last
    mutant: small changes cannot add up. An affine mutation moves the reference as it moves the image, and may come once in a
    lineage.

    Arguments:
        alpha: share of the pixels (all channels of one count once).
        beta: share of the input range.
    """

    alpha: float = 0.02
    beta: float = 0.2

    def holds(self, x: Tensor, reference: Tensor, bounds: Bounds) -> Tensor:
        """Return for each sample whether it is valid, shape (n,), bool.

        Arguments:
            x: mutants, shape (n, ...).
            reference: their reference images, same shape.
            bounds: lowest and highest input.
        """
        low, high = (torch.as_tensor(end).to(x) for end in bounds)
        span = torch.where(high > low, high - low, torch.ones_like(high))
        moved = (x - reference).abs_().div_(span)
        # A hair of slack: a change that rounds away on a screen is none.
        pixels = moved.amax(1) if x.ndim == 4 else moved
        changed = (pixels.flatten(1) > 1e-6).sum(1)
        few = changed < self.alpha * pixels[0].numel()
        return few | (pixels.flatten(1).amax(1) < self.beta)
