"""A private trainer written out by hand, honest or broken on purpose, for audits to tell apart."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from hauberk.core.data import Split
from hauberk.core.rng import generator
from hauberk.privacy.dp.accounting import Release, epsilon


@dataclasses.dataclass(frozen=True)
class HandWritten:
    """DP-SGD over per-example gradients; `flaw` names what is wrong with it.

    Flaws: `no noise`, `groups of 8` (clipped together), `wrong clip` (noise for C / 10), `quantile` (an adaptive clip whose
    release is not accounted), `fixed batches` (accounted as Poisson), `divided by what came` (the size of the batch is let out).
    """

    flaw: str = ""
    noise: float = 2.0
    steps: int = 4
    rate: float = 1.0
    clip: float = 1.0
    lr: float = 0.1

    def claim(self, delta: float) -> float:
        """Return the ε that the noise would give if everything else were right."""
        release = Release("gaussian", self.noise, "poisson" if self.rate < 1 else "full", self.rate, self.steps)
        return epsilon([release], delta).epsilon

    def __call__(self, model: nn.Module, data: Split, seed: int) -> float:
        x, y = data.tensors()
        draw = generator(seed, "noise")
        optimizer = torch.optim.SGD(model.parameters(), lr=self.lr)
        named = dict(model.named_parameters())
        expected, clip = self.rate * len(x), self.clip
        for step in range(self.steps):
            chosen = self._batch(len(x), step, draw)
            with torch.no_grad():
                model(x[chosen])  # the loss would be logged here
            made = self._gradients(model, named, x[chosen], y[chosen])
            flat = torch.cat([one.flatten(1) for one in made.values()], 1)  # (n, parameters)
            if self.flaw == "groups of 8":
                flat = torch.stack([part.sum(0) for part in flat.split(8)])
            norms = flat.norm(dim=1)
            total = (flat * (clip / norms.clamp_min(clip))[:, None]).sum(0)
            spread = {"no noise": 0.0, "wrong clip": self.noise * clip / 10}.get(self.flaw, self.noise * clip)
            total += spread * torch.randn(total.shape, generator=draw)
            divisor = len(chosen) if self.flaw == "divided by what came" else expected
            at = 0
            for one in named.values():
                one.grad = (total[at : at + one.numel()] / max(divisor, 1)).view_as(one)
                at += one.numel()
            optimizer.step()
            if self.flaw == "quantile":
                below = float((norms <= clip).double().mean())
                clip *= math.exp(-0.5 * (below - 0.5))
        return self.claim(1e-5)

    def _batch(self, n: int, step: int, draw: torch.Generator) -> Tensor:
        if self.flaw == "fixed batches":
            return torch.arange(n).chunk(round(1 / self.rate))[step % round(1 / self.rate)]
        return (torch.rand(n, generator=draw) < self.rate).nonzero()[:, 0]

    @staticmethod
    def _gradients(model: nn.Module, named: dict[str, nn.Parameter], x: Tensor, y: Tensor) -> dict[str, Tensor]:
        plain = {name: one.detach() for name, one in named.items()}
        if not len(x):
            return {name: one.new_zeros(0, *one.shape) for name, one in plain.items()}

        def loss(weights: dict[str, Tensor], row: Tensor, label: Tensor) -> Tensor:
            return functional.cross_entropy(functional_call(model, weights, (row[None],)), label[None])

        return vmap(grad(loss), (None, 0, 0))(plain, x, y)
