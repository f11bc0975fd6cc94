"""DDN: the closed form inside the box, and fewer gradients than Carlini and Wagner for a shorter distance."""

from __future__ import annotations

import math

import pytest
import torch
from closed_form import check_closed_form, median, sizes
from torch import Tensor, nn

from hauberk import L2, Data, Target
from hauberk.robustness.attack import carlini_wagner, ddn, deepfool


@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_closed_form(loss: str, linear_model: nn.Linear, linear_samples: tuple[Tensor, Tensor]) -> None:
    def attack(*arguments: object) -> Tensor:
        return ddn(*arguments, loss=loss)  # type: ignore[arg-type]

    check_closed_form(attack, linear_model, *linear_samples, "l2")


def test_without_the_opening_a_halfspace_is_still_solved_to_a_hundredth() -> None:
    model = nn.Linear(12, 2).double()
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        model.weight.copy_(torch.randn(2, 12, generator=draw, dtype=torch.float64))
        model.bias.zero_()
    x = 0.3 + 0.4 * torch.rand(32, 12, generator=draw, dtype=torch.float64)
    y = model(x).argmax(1)
    slope = model.weight.detach()[0] - model.weight.detach()[1]
    least = (x @ slope).abs() / slope.norm()
    free = L2(math.inf, bounds=(-9.0, 9.0))  # far from any wall, so that the plane's distance is the answer
    ratio = sizes(ddn(model, x, y, free, rivals=0, steps=200), x, "l2") / least
    assert float(ratio.min()) >= 1 - 1e-9 and float(ratio.max()) <= 1.01


def test_shorter_than_carlini_and_wagner_at_a_fraction_of_the_gradients(digits_model: nn.Module, digits: Data) -> None:
    x, y = digits.test.first(100)
    one, other = Target(digits_model), Target(digits_model)
    z = ddn(one, x, y, L2(math.inf))
    rival = carlini_wagner(other, x, y, L2(math.inf), rounds=4)
    assert median(digits_model, z, x, y, "l2") <= 1.02 * median(digits_model, rival, x, y, "l2")
    assert one.ledger.gradients < 0.35 * other.ledger.gradients
    assert median(digits_model, z, x, y, "l2") <= median(digits_model, deepfool(digits_model, x, y, L2(math.inf)), x, y, "l2")


def test_as_near_as_the_best_peer(digits_model: nn.Module, digits: Data) -> None:
    x, y = digits.test.first(200)
    # Foolbox 3.3.4, DDN with 100 steps, on this model and these images: 0.5428.
    assert median(digits_model, ddn(digits_model, x, y, L2(math.inf)), x, y, "l2") <= 1.01 * 0.5428
    assert median(digits_model, ddn(digits_model, x, y, L2(math.inf), steps=20, rivals=0), x, y, "l2") <= 1.03 * 0.5428


def test_bounds_of_another_scale_change_nothing(digits_model: nn.Module, digits: Data) -> None:
    class Bytes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return digits_model(x / 256)

    x, y = digits.test.first(60)
    small = sizes(ddn(digits_model, x, y, L2(math.inf)), x, "l2")
    large = sizes(ddn(Bytes(), x * 256, y, L2(math.inf, bounds=(0.0, 256.0))), x * 256, "l2")
    assert float((large / 256 / small).nan_to_num(1.0).sub(1).abs().median()) <= 1e-3
