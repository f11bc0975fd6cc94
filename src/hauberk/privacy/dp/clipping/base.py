"""What every clipping strategy shares: the norm of an example's whole gradient, and no weight for one that is not finite."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Parameter

from hauberk.core.errors import UsageError

LEAST = 1e-9  # of a clip: far smaller gradients have squares that are zero in float32, and nothing would clip them
Norms = Mapping[Parameter, Tensor]
Weights = Tensor | dict[Parameter, Tensor]
Noised = Callable[[Tensor, float], Tensor]


class Clipping:
    """How the gradient of each example is bounded. A strategy derives, gives `weights`, and what else it needs."""

    norm: Literal["l1", "l2"] = "l2"

    def __init__(self, clip: float) -> None:
        if isinstance(clip, bool) or not isinstance(clip, (int, float)):
            raise UsageError(f"the clip is {clip!r}, {type(clip).__name__}", want="a number above 0, or a clipping strategy",
                             fix="Pass clip=1.0, or one of hauberk.privacy.dp.clipping")
        if not LEAST <= clip < float("inf"):
            raise UsageError(f"the clip is {clip}", want=f"a finite norm above 0, at least {LEAST:g}", fix="Scale the loss up")
        self.clip = float(clip)

    @property
    def bound(self) -> float:
        """The greatest norm of what one example adds to the sum, now."""
        return self.clip

    def bind(self, parameters: Mapping[str, Parameter], batch_size: float) -> None:
        """Learn the names of the parameters and the expected batch, once, before training."""

    def weights(self, norms: Norms) -> Weights:
        """Return the factor of each example's gradient, shape (batch,), or one per parameter; every strategy defines it.

        Arguments:
            norms: by parameter, the norm of each example's gradient, shape (batch,).
        """
        raise NotImplementedError

    def gradient_multiplier(self, noise_multiplier: float) -> float:
        """Return the noise multiplier of the gradient, so that with what the strategy itself releases it costs the given one."""
        return noise_multiplier

    def finish(self, noised: Noised) -> None:
        """Adapt after a batch.

        Arguments:
            noised: of a tensor and a deviation, the sum of the tensor over all processes with normal noise of that deviation.
        """

    def forget(self) -> None:
        """Drop what was gathered from a batch whose step failed: `finish` was not reached."""

    def describe(self) -> str:
        """Return the strategy in words for a privacy statement."""
        return f"{type(self).__name__.lower()} clipping at {self.norm.upper()} norm {self.bound:.6g}"

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"clip": self.clip}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` returned."""
        self.clip = float(state["clip"])


def whole(norms: Norms, kind: str) -> Tensor:
    """Return the norm of each example's whole gradient, shape (batch,), at least float32."""
    parts = torch.stack(list(norms.values()))  # (parameters, batch)
    parts = parts if parts.dtype == torch.float64 else parts.float()
    return torch.linalg.vector_norm(parts, ord=1 if kind == "l1" else 2, dim=0)


def shrunk(norm: Tensor, clip: float) -> Tensor:
    """Return min(1, clip / norm), and 0 where the norm is not finite: such an example adds nothing."""
    return torch.where(norm.isfinite(), (clip / norm).clamp(max=1.0), 0.0)
