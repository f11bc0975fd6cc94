"""Each parameter's smallest gradient entries set to zero."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hauberk.core.errors import UsageError


def prune(
    gradients: Mapping[str, Tensor], strength: float = 0.9, *, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """Return the gradients with the smallest entries of each parameter set to zero (Zhu et al. 2019, arXiv:1906.08935).

    Arguments:
        gradients: by parameter name.
        strength: share of the entries, rounded down.
        generator: unused: nothing is drawn.

    Raises:
        UsageError: for a share outside [0, 1].
    """
    return {name: zero_smallest(one, strength) for name, one in gradients.items()}


def zero_smallest(values: Tensor, share: float) -> Tensor:
    """Return a copy with that share of the entries, the smallest in size, set to zero."""
    if not 0 <= share <= 1:
        raise UsageError(f"strength is {share}", want="a share from 0 to 1")
    made = values.detach().clone(memory_format=torch.contiguous_format)
    made.view(-1)[values.detach().abs().flatten().argsort(stable=True)[: int(share * values.numel())]] = 0
    return made
