"""Adam by torch's fused kernel alone: `torch.optim` loads the compiler first, seconds that a short training is not worth."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BETAS, EPS = (0.9, 0.999), 1e-8  # the usual ones


class FusedAdam:
    """Adam (Kingma and Ba 2015) with the usual constants: to the bit the steps of `torch.optim.Adam(..., fused=True)`.

    A parameter without a gradient is left as it is. Devices without the kernel are served by `torch.optim.Adam` itself.

    Arguments:
        parameters: leaves, trained in place.
        lr: the rate, above 0.
        weight_decay: times the parameter is added to its gradient.
    """

    def __init__(self, parameters: Sequence[Tensor], *, lr: float, weight_decay: float = 0.0) -> None:
        self.parameters, self.lr, self.weight_decay = list(parameters), lr, weight_decay
        self._moments: list[tuple[Tensor, Tensor, Tensor]] = []
        self._usual: torch.optim.Optimizer | None = None
        if any(one.device.type not in ("cpu", "cuda") for one in self.parameters):
            self._usual = torch.optim.Adam(self.parameters, lr=lr, weight_decay=weight_decay)
            return
        for one in self.parameters:
            first, second = (torch.zeros_like(one, memory_format=torch.preserve_format) for _ in range(2))
            self._moments.append((first, second, torch.zeros((), dtype=torch.float32, device=one.device)))

    @torch.no_grad()
    def step(self) -> None:
        """Move the parameters along their gradients."""
        if self._usual is not None:
            self._usual.step()
            return
        kinds: dict[tuple[torch.device, torch.dtype], list[tuple[Tensor, ...]]] = {}
        for one, moments in zip(self.parameters, self._moments, strict=True):
            if one.grad is not None:
                kinds.setdefault((one.device, one.dtype), []).append((one, one.grad, *moments))
        for held in kinds.values():  # the kernel takes one device and type at a time
            values, gradients, first, second, steps = (list(part) for part in zip(*held, strict=True))
            torch._foreach_add_(steps, 1)
            torch._fused_adam_(
                values, gradients, first, second, [], steps, amsgrad=False, lr=self.lr, beta1=BETAS[0], beta2=BETAS[1],
                weight_decay=self.weight_decay, eps=EPS, maximize=False, grad_scale=None, found_inf=None,
            )

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for one in self.parameters:
            one.grad = None
