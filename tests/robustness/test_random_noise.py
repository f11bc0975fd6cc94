"""Random noise: the chance that one of k draws breaks a sample is known for a half-space."""

from __future__ import annotations

import torch
from torch import nn

from hauberk import Linf, Target
from hauberk.robustness.attack import random_noise


def threshold() -> nn.Linear:
    """Label 1 where the one feature is above 0.6."""
    model = nn.Linear(1, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0], [1.0]]))
        model.bias.copy_(torch.tensor([0.6, 0.0]))
    return model


def test_success_is_one_minus_the_chance_of_k_failures() -> None:
    # Uniform in [0.25, 0.75]: one draw passes 0.6 with probability 0.3.
    x, y = torch.full((4000, 1), 0.5), torch.zeros(4000, dtype=torch.long)
    for draws in (1, 3):
        target = Target(threshold(), batch_size=4000)
        z = random_noise(target, x, y, Linf(0.25), draws=draws)
        assert abs(float((z > 0.6).double().mean()) - (1 - 0.7**draws)) < 0.03
        expected = sum(0.7**k for k in range(draws))  # a broken sample asks no more
        assert abs(target.ledger.queries / 4000 - expected) < 0.05


def test_another_seed_draws_other_noise() -> None:
    x, y = torch.full((10, 1), 0.5), torch.zeros(10, dtype=torch.long)
    one, same, other = (random_noise(threshold(), x, y, Linf(0.1), seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
