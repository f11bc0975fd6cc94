"""EAD: the L1 distance of a linear model inside the box, few changed features, and a weight for them."""

from __future__ import annotations

import math

import pytest
import torch
from closed_form import check_closed_form, median, sizes, won
from torch import Tensor, nn

from hauberk import L1, Data, Target
from hauberk.core.threat import L2
from hauberk.robustness.attack import carlini_wagner, ead


def test_closed_form(linear_model: nn.Linear, linear_samples: tuple[Tensor, Tensor]) -> None:
    check_closed_form(ead, linear_model, *linear_samples, "l1")


def test_one_steep_feature_alone_is_moved() -> None:
    """The margin 3 a + b + c + d - 2.4 at (0.9, 0.1, 0.1, 0.1) is 0.6: the least change is 0.2 of the first feature."""
    model = nn.Linear(4, 2).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 1, 1, 1], [0, 0, 0, 0]]))
        model.bias.copy_(torch.tensor([-2.4, 0.0]))
    x, y = torch.tensor([[0.9, 0.1, 0.1, 0.1]], dtype=torch.float64), torch.tensor([0])
    z = ead(model, x, y, L1(math.inf), rivals=0)
    assert torch.equal(z[:, 1:], x[:, 1:])
    assert bool(won(model, z, y)) and 0.199999 <= float(sizes(z, x, "l1")) <= 0.202


@pytest.mark.slow  # the closed form is tried by default
def test_nearer_than_peers(digits_model: nn.Module, digits: Data) -> None:
    x, y = digits.test.first(200)
    target = Target(digits_model)
    z = ead(target, x, y, L1(math.inf))
    assert bool(won(digits_model, z, y).all())
    # On this model and these images: Foolbox 3.3.4, 9 x 100 steps, 1.653; torchattacks 3.5.1, 2.413.
    assert median(digits_model, z, x, y, "l1") <= 0.97 * 1.653
    assert target.ledger.gradients <= (5 * 100 + 10) * len(x)


def test_it_changes_fewer_features_than_an_attack_in_l2(digits_model: nn.Module, digits: Data) -> None:
    x, y = digits.test.first(50)
    plain = ead(digits_model, x, y, L1(math.inf), rounds=3, rivals=0)
    rival = carlini_wagner(digits_model, x, y, L2(math.inf), rounds=2, rivals=0)
    assert float(sizes(plain, x, "l0").median()) <= 0.4 * float(sizes(rival, x, "l0").median())
    assert median(digits_model, plain, x, y, "l1") < median(digits_model, rival, x, y, "l1")
