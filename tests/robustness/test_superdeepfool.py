"""SuperDeepFool: the closed form inside the box, the foot of the perpendicular, and L2 ahead of DeepFool."""

from __future__ import annotations

import math

import torch
from closed_form import check_closed_form, median, sizes, won
from torch import Tensor, nn

from hauberk import L2, Data, Target
from hauberk.robustness.attack import ddn, deepfool, superdeepfool


def test_closed_form(linear_model: nn.Linear, linear_samples: tuple[Tensor, Tensor]) -> None:
    check_closed_form(superdeepfool, linear_model, *linear_samples, "l2")


def test_the_nearest_point_of_a_curved_boundary_is_met_at_a_right_angle() -> None:
    """Inside a circle of radius 0.4 about (0.5, 0.5), warped so that gradients do not point straight out of it."""
    class Circle(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            away = (x - 0.5).square().sum(1) - 0.16
            return torch.stack([-away * (1 + 4 * x[:, 0]), torch.zeros_like(away)], 1)

    angle = torch.linspace(0.1, 6.2, 24, dtype=torch.float64)
    x = 0.5 + 0.25 * torch.stack([angle.cos(), angle.sin()], 1)
    y = torch.zeros(24, dtype=torch.long)
    z = superdeepfool(Circle(), x, y, L2(math.inf))
    distance = sizes(z, x, "l2")  # the least is 0.15, straight out
    assert bool(won(Circle(), z, y).all())
    assert float(distance.min()) >= 0.15 - 1e-9 and float(distance.max()) <= 1.01 * 0.15
    first = sizes(deepfool(Circle(), x, y, L2(math.inf)), x, "l2")
    assert float(distance.mean()) - 0.15 <= 0.2 * (float(first.mean()) - 0.15)


def test_as_near_as_ddn_for_a_quarter_of_its_gradients(digits_model: nn.Module, digits: Data) -> None:
    x, y = digits.test.first(200)
    target = Target(digits_model)
    z = superdeepfool(target, x, y, L2(math.inf))
    assert bool(won(digits_model, z, y).all())
    assert median(digits_model, z, x, y, "l2") <= 1.01 * median(digits_model, ddn(digits_model, x, y, L2(math.inf)), x, y, "l2")
    assert target.ledger.gradients <= 26 * len(x)
    first = sizes(deepfool(digits_model, x, y, L2(math.inf)), x, "l2")
    assert float(sizes(z, x, "l2").mean()) < 0.985 * float(first.mean())
