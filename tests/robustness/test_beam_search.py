"""Beam search: the greedy optimum of a linear model, the full search over all corners, and what the beam is good for."""

from __future__ import annotations

import itertools
import math

import torch
from closed_form import check_closed_form, sizes, won
from torch import Tensor, nn

from hauberk import L0, Data, Target, Threat
from hauberk.robustness.attack import beam_search, sigma_zero


def test_closed_form(linear_model: nn.Linear, linear_samples: tuple[Tensor, Tensor]) -> None:
    check_closed_form(beam_search, linear_model, *linear_samples, "l0")


def curved(seed: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A network of 6 features and 3 classes with samples that it answers as labelled."""
    draw = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw, dtype=torch.float64) * 0.6)
    x = torch.rand(60, 6, generator=draw, dtype=torch.float64)
    return model, x, model(x).argmax(1)


def fewest(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the fewest features whose move to some of their ends changes the answer: all 3^6 ways are tried."""
    ways = torch.tensor(list(itertools.product((-1, 0, 1), repeat=6)))  # (729, 6)
    ends = torch.where(ways < 0, 0.0, 1.0).double()
    z = torch.where(ways == 0, x[:, None], ends)  # (n, 729, 6)
    hit = model(z.reshape(-1, 6)).argmax(1).view(len(x), -1) != y[:, None]
    return torch.where(hit, (ways != 0).sum(1).double(), torch.inf).amin(1)


def test_a_wide_beam_finds_what_a_full_search_over_the_corners_finds() -> None:
    greedy = full = 0.0
    for seed in range(4):
        model, x, y = curved(seed)
        least = fewest(model, x, y)
        there = least.isfinite()
        assert int(there.sum()) >= 20
        found = {}
        for width in (1, 15):
            z = beam_search(model, x, y, L0(math.inf), width=width, tries=6)
            found[width] = torch.where(won(model, z, y), sizes(z, x, "l0"), torch.inf)[there]
            assert bool((found[width] >= least[there]).all())  # nothing but corners is looked at
        assert float((found[15] == least[there]).double().mean()) >= 0.95
        greedy, full = greedy + float(found[1].clamp(max=7).sum()), full + float(found[15].clamp(max=7).sum())
    assert full <= greedy


def test_it_costs_what_it_says_and_stops_at_the_first_success(digits_model: nn.Module, digits: Data) -> None:
    x, y = digits.test.first(1)
    target = Target(digits_model)
    z = beam_search(target, x, y, L0(math.inf), width=3, tries=7, rivals=0)
    count = int(sizes(z, x, "l0"))
    assert count >= 1 and bool(won(digits_model, z, y))
    # The clean look; a gradient and 7 tries of the sample itself; then of each of the three sets, a step for each feature more.
    assert target.ledger.gradients == 1 + 3 * (count - 1)
    assert target.ledger.queries == 1 + 8 * (1 + 3 * (count - 1))


def test_fewer_features_than_the_descent_alone(digits_model: nn.Module, digits: Data) -> None:
    x, y = digits.test.first(50)
    few = sizes(beam_search(digits_model, x, y, L0(math.inf)), x, "l0")
    alone = sizes(sigma_zero(digits_model, x, y, L0(math.inf), steps=100, width=0), x, "l0")
    both = sizes(sigma_zero(digits_model, x, y, L0(math.inf), steps=100), x, "l0")
    assert bool((both <= few).all())
    assert float(few.mean()) <= float(alone.mean())


def test_features_without_room_are_left_alone(linear_model: nn.Linear, linear_samples: tuple[Tensor, Tensor]) -> None:
    x, y = linear_samples
    mask = torch.arange(x.shape[1]) < 3
    z = beam_search(linear_model, x, y, Threat("l0", math.inf, bounds=(0, 1), mask=mask), steps=10)
    assert bool((z[:, 3:] == x[:, 3:]).all())
