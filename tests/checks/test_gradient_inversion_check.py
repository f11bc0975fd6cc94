"""The check of gradient inversion: what counts as won back, and what a guess without the gradient would do as well."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hauberk import Data, Split, Target
from hauberk.checks.context import Settings
from hauberk.checks.engine import run_check
from hauberk.core.finding import Finding, Status
from hauberk.core.rng import isolated
from hauberk.methods import load_methods


def _run(model: nn.Module, x: Tensor) -> Finding:
    y = torch.arange(len(x)) % 3
    data = Data(Split(x, y), train=Split(x.flip(3), y), bounds=(0.0, 1.0), classes=3, modality="image")
    return run_check(load_methods().get("privacy/gradient-inversion", "check"), Target(model), data, Settings(preset="quick"))


def _images(spread: float) -> Tensor:
    return 0.5 + spread * (torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.5)


def _linear(scale: float) -> nn.Module:
    with isolated(0):
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3, bias=False))
    with torch.no_grad():
        model[1].weight.mul_(scale)
    return model


def test_a_linear_model_gives_its_samples_back() -> None:
    found = _run(_linear(1.0), _images(1.0))
    assert found.status is Status.WARN and found.value == 1.0 and found.n == 2


def test_dull_images_are_no_leak_where_a_guess_comes_as_near() -> None:
    class Silent(nn.Module):
        """Sure of every sample, and right or wrong by as much: no gradient says anything of the input."""

        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.bias.expand(len(x), 3) + 0 * x.flatten(1).sum(1, keepdim=True)

    found = _run(Silent(), _images(0.02))  # plain gray is 45 dB from each
    assert found.status is Status.PASS and found.value == 0.0
    assert any("need no gradient, reach 4" in note for note in found.notes)
