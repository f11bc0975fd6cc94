"""Only the largest entries of the whole gradient are sent."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hauberk.privacy.inversion.defences.prune import zero_smallest


def top_k(
    gradients: Mapping[str, Tensor], strength: float = 0.99, *, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """Return the gradients with all but the largest entries of all parameters together set to zero (Lin et al. 2018,
    arXiv:1712.01887).

    Arguments:
        gradients: by parameter name.
        strength: share dropped, rounded down.
        generator: unused: nothing is drawn.

    Raises:
        UsageError: for a share outside [0, 1].
    """
    whole = zero_smallest(torch.cat([one.detach().flatten() for one in gradients.values()]), strength)
    parts = whole.split([one.numel() for one in gradients.values()])
    return {name: part.reshape(one.shape).clone() for (name, one), part in zip(gradients.items(), parts, strict=True)}
