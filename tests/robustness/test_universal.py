"""Universal perturbations: closed forms on linear models, and unseen digits against noise of the same size."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from hauberk import L2, Data, Linf, Target
from hauberk.core.rng import generator
from hauberk.core.threat import Bounds, Threat
from hauberk.robustness.attack.physical import universal_deepfool, universal_pgd

WIDE: Bounds = (-50.0, 50.0)


def plane(seed: int = 0) -> tuple[nn.Linear, Tensor, Tensor]:
    """A linear model of two classes in float64, 60 inputs it gives the label 0, and the slope towards the label 1."""
    net = nn.Linear(20, 2).double()
    draw = generator(seed, "plane")
    with torch.no_grad():
        net.weight.copy_(torch.randn(2, 20, generator=draw, dtype=torch.float64))
        net.bias.zero_()
    x = torch.rand(400, 20, generator=draw, dtype=torch.float64)
    return net, x[net(x).argmax(1) == 0][:60], (net.weight[1] - net.weight[0]).detach()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("targeted", [False, True])
def test_linf_is_the_sign_of_the_difference_of_the_weights(seed: int, targeted: bool) -> None:
    net, x, slope = plane(seed)
    threat = Linf(0.3, bounds=WIDE)
    y = torch.ones(len(x), dtype=torch.long) if targeted else torch.zeros(len(x), dtype=torch.long)
    made = universal_pgd(net, x, y, threat.targeted() if targeted else threat, seed=seed)
    assert torch.equal(made.pattern, 0.3 * slope.sign())
    assert torch.equal(made.fooled, (x @ slope) + 0.3 * slope.abs().sum() > 0)


@pytest.mark.parametrize("seed", range(3))
def test_l2_is_the_unit_of_the_difference_of_the_weights(seed: int) -> None:
    net, x, slope = plane(seed)
    made = universal_pgd(net, x, torch.zeros(len(x), dtype=torch.long), L2(0.8, bounds=WIDE), seed=seed)
    torch.testing.assert_close(made.pattern, 0.8 * slope / slope.norm(), rtol=1e-3, atol=1e-3)


def test_features_at_the_border_for_every_input_do_not_hold_the_others_back() -> None:
    net, x, slope = plane()
    x[:, :5] = torch.where(slope[:5] > 0, 1.0, 0.0)  # nothing to be won there
    made = universal_pgd(net, x, torch.zeros(len(x), dtype=torch.long), Linf(0.3, bounds=(0.0, 1.0)))
    assert torch.equal(made.pattern[5:], 0.3 * slope[5:].sign())
    assert torch.equal(made.apply(x)[:, :5], x[:, :5])


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("seed", range(3))
def test_deepfool_adds_up_to_the_farthest_input(norm: str, seed: int) -> None:
    net, x, slope = plane(seed)
    y = torch.zeros(len(x), dtype=torch.long)
    dual = 2 if norm == "l2" else 1
    far = float((-(x @ slope)).max() / slope.norm(p=dual))
    made = universal_deepfool(net, x, y, Threat(norm, math.inf, bounds=WIDE), wanted=1.0, seed=seed)
    assert made.rate == 1.0
    length = float(made.pattern.norm(p=2 if norm == "l2" else math.inf))
    assert far <= length <= 1.02 * far * (1 + 1e-6)  # each step is 2 % longer than what is still missing
    direction = slope / slope.norm() if norm == "l2" else slope.sign()
    torch.testing.assert_close(made.pattern / length, direction, rtol=0, atol=1e-6)


def test_deepfool_stops_at_the_share_wanted() -> None:
    net, x, _ = plane()
    y = torch.zeros(len(x), dtype=torch.long)
    eager, content = Target(net), Target(net)
    universal_deepfool(eager, x, y, L2(0.05, bounds=WIDE), wanted=1.0, rounds=4)
    assert universal_deepfool(content, x, y, L2(0.05, bounds=WIDE), wanted=0.0).rate >= 0
    assert content.ledger.queries == len(x) < eager.ledger.queries


@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_digits_never_seen_before_give_way(loss: str, digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.train.first(300)
    unseen, truth = digits.test.first(500)
    threat = Linf(0.3)

    def wrong(z: Tensor) -> float:
        with torch.no_grad():
            return float((digits_model(z).argmax(1) != truth).double().mean())

    made = universal_pgd(digits_model, x, y, threat, loss=loss)
    noise = 0.3 * (torch.rand(1, 1, 8, 8, generator=generator(1, "noise")) - 0.5).sign()
    assert wrong(made.apply(unseen)) >= 0.8
    assert wrong((unseen + noise).clamp(0, 1)) <= 0.25


def test_scaled_logits_do_not_blind_the_margin(digits: Data, digits_model: nn.Module) -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 1000 * digits_model(x)

    x, y = digits.train.first(300)
    assert universal_pgd(Scaled(), x, y, Linf(0.3), loss="margin").rate >= 0.8


def test_the_rate_holds_for_the_labels_given(digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.train.first(50)
    made = universal_pgd(digits_model, x, (y + 1) % 10, Linf(0.0))
    with torch.no_grad():
        assert made.rate == float((digits_model(x).argmax(1) != (y + 1) % 10).double().mean())
