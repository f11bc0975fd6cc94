"""What who receives gradients knows of the defence that they went through, in the terms of a match."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch import Tensor

from hauberk.core.errors import DataError


@dataclasses.dataclass(frozen=True, eq=False)
class Known:
    """What was done to gradients before they were sent.

    Arguments:
        kept: by parameter name: which entries still say something, as booleans of the parameter's shape; the others are left out
            of the match. Parameters that are not named are whole.
        noise: by parameter name: standard deviation of the noise on every entry. Parameters that are not named have none.
        scaled: whether all entries were multiplied by one unknown factor.
        draws: by name of a `Bottleneck`: what it drew for the client's samples, shape (n, size).
    """

    kept: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    noise: Mapping[str, float] = dataclasses.field(default_factory=dict)
    scaled: bool = False
    draws: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)

    def check(self, gradients: Mapping[str, Tensor]) -> None:
        """Raise DataError when it is not of these gradients."""
        for name in (*self.kept, *self.noise):
            if name not in gradients:
                raise DataError(f"'{name}' is known of, and has no gradient", want=f"names among {', '.join(gradients)}")
        for name, one in self.kept.items():
            if one.shape != gradients[name].shape:
                told = f"the kept entries of '{name}' have shape {tuple(one.shape)}"
                raise DataError(told, want=f"{tuple(gradients[name].shape)}, as its gradient")

    def loudness(self, gradients: Mapping[str, Tensor]) -> float:
        """Return noise over signal, from the mean over parameters of the share that is noise; at most 33."""
        shares = []
        for name, one in gradients.items():
            energy, sigma = float(one.double().square().sum()), self.noise.get(name, 0.0)
            shares.append(min(1.0, sigma * sigma * one.numel() / energy) if energy > 0 else 0.0)
        share = sum(shares) / max(len(shares), 1)
        return share / max(1 - share, 0.03)
