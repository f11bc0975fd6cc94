"""The update of differentially private training: clipped per sample, averaged, with noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hauberk.core.errors import UsageError
from hauberk.core.rng import given, normal
from hauberk.privacy.inversion.defences.clip import clip


def private(
    gradients: Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]], strength: float = 1.0, *, norm: float = 1.0,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Return the noisy mean of gradients clipped one by one (Abadi et al. 2016, arXiv:1607.00133).

    Arguments:
        gradients: by parameter name: those of one sample, or of each sample of a batch. The mean of a batch clipped as one is not
            private in the sense of its samples.
        strength: noise multiplier: the noise of the sum has this times `norm` as standard deviation.
        norm: largest L2 norm of a sample's gradient.
        generator: of the noise; None is seeded alike at every call, which is for measurement alone.

    Raises:
        UsageError: for a strength below 0, a norm not above 0, or no gradients.
    """
    rows = [gradients] if isinstance(gradients, Mapping) else list(gradients)
    if not strength >= 0 or not norm > 0 or not rows:
        raise UsageError(f"strength is {strength}, norm {norm}, for {len(rows)} samples", want="0 or more, above 0, at least one")
    drawn = given(generator, 0, "private gradient")
    clipped = [clip(one, 1 / norm) for one in rows]
    return {
        name: (torch.stack([one[name] for one in clipped]).sum(0) + strength * norm * normal(like, drawn)) / len(rows)
        for name, like in rows[0].items()
    }
