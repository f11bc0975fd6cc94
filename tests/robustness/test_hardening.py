"""Recipes: closed forms on linear models, and what they are for."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hauberk import L2, Data, Linf, Schedule, fit
from hauberk.core.errors import UsageError
from hauberk.robustness.attack import pgd
from hauberk.robustness.defend import adversarial, corrupted, trades
from hauberk.robustness.defend.trades import divergence
from hauberk.robustness.natural import contrast, defocus_blur, rotate


@pytest.fixture
def binary() -> nn.Linear:
    model = nn.Linear(6, 2).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[1.0, -2.0, 0.5, 0.0, 3.0, -1.0], [0.0, 1.0, -0.5, 2.0, 1.0, 1.0]]))
        model.bias.copy_(torch.tensor([0.3, -0.1]))
    return model


def inside(n: int) -> Tensor:
    """Points so far from the bounds that they do not matter."""
    return 0.3 + 0.4 * torch.rand(n, 6, generator=torch.Generator().manual_seed(n), dtype=torch.float64)


def softplus(margin: Tensor) -> Tensor:
    return functional.softplus(-margin)


@pytest.mark.parametrize(("threat", "power"), [(Linf(0.05), 1), (L2(0.05), 2)])
def test_adversarial_loss_of_a_linear_model_is_its_margin_shifted_by_the_dual_norm(
    binary: nn.Linear, threat: object, power: int
) -> None:
    """Two classes, y = 0: the worst margin is w.x + b - eps |w|_dual, whatever the start (Madry et al. 2018)."""
    x = inside(40)
    y = torch.zeros(40, dtype=torch.long)
    row = (binary.weight[0] - binary.weight[1]).detach()
    margin = x @ row + float(binary.bias[0].detach() - binary.bias[1].detach())
    expected = softplus(margin - 0.05 * float(row.norm(p=power))).mean()
    # Steps of a whole radius: in L2 each one halves the angle to the best direction.
    found = adversarial(threat, steps=40, step_size=0.05)(binary, x, y).detach()  # type: ignore[arg-type]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert float(found) > float(softplus(margin).mean())


def test_trades_loss_of_a_linear_model_is_one_of_two_closed_forms(binary: nn.Linear) -> None:
    """Two classes: the divergence is convex in the shift of the margin, so that its maxima are the two ends ± eps |w|_1."""
    row = (binary.weight[0] - binary.weight[1]).detach()
    reach = 0.05 * float(row.abs().sum())
    for x in inside(20).split(1):
        margin = float(x[0] @ row + binary.bias[0].detach() - binary.bias[1].detach())
        p = 1 / (1 + math.exp(-margin))
        ends = []
        for shifted in (margin - reach, margin + reach):
            q = 1 / (1 + math.exp(-shifted))
            ends.append(p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))
        found = float(trades(Linf(0.05), beta=3.0, steps=40)(binary, x, torch.zeros(1, dtype=torch.long)).detach())
        excess = (found - float(softplus(torch.tensor(margin, dtype=torch.float64)))) / 3.0
        assert min(abs(excess - end) for end in ends) < 1e-6


def test_trades_without_weight_is_ordinary_training(binary: nn.Linear) -> None:
    x, y = inside(10), torch.arange(10) % 2
    found = trades(Linf(0.1), beta=0.0)(binary, x, y).detach()
    torch.testing.assert_close(found, functional.cross_entropy(binary(x), y).detach(), rtol=0, atol=1e-12)


def test_a_radius_of_zero_is_ordinary_training(binary: nn.Linear) -> None:
    x, y = inside(10), torch.arange(10) % 2
    expected = functional.cross_entropy(binary(x), y).detach()
    for loss in (adversarial(Linf(0.0)), trades(Linf(0.0))):
        torch.testing.assert_close(loss(binary, x, y).detach(), expected, rtol=0, atol=1e-12)


def test_divergence_is_that_of_the_distributions_library() -> None:
    a, b = (torch.randn(5, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in (0, 1))
    law = torch.distributions.Categorical
    expected = torch.distributions.kl_divergence(law(logits=a), law(logits=b))
    torch.testing.assert_close(divergence(a.log_softmax(1), b), expected)


def test_the_search_costs_what_the_documentation_says(digits: Data, digits_model: nn.Module) -> None:
    """Forward passes: steps + 1 for PGD training, steps + 3 for TRADES, whose clean answer in the search is computed once."""
    x, y = digits.train.first(16)
    calls: list[int] = []
    handle = digits_model.register_forward_hook(lambda *_: calls.append(1))
    try:
        adversarial(Linf(0.1), steps=7)(digits_model, x, y)
        assert len(calls) == 8
        calls.clear()
        trades(Linf(0.1), steps=7)(digits_model, x, y)
        assert len(calls) == 10
    finally:
        handle.remove()


# Of TRADES that training works is tried by default, in the conformance suite.
@pytest.mark.parametrize("recipe", [adversarial, pytest.param(trades, marks=pytest.mark.slow)])
def test_hardening_raises_accuracy_under_attack(
    recipe: object, digits: Data, digits_model: nn.Module, fresh_cnn: Callable[..., nn.Module]
) -> None:
    threat = Linf(0.15)
    model = fresh_cnn()
    fit(model, digits.train, loss=recipe(threat, steps=4), schedule=Schedule(epochs=8, batch_size=64))  # type: ignore[operator]
    x, y = digits.test.first(300)

    def resisting(net: nn.Module) -> float:
        z = pgd(net, x, y, threat, steps=40)
        with torch.no_grad():
            return float((net(z).argmax(1) == y).double().mean())

    assert resisting(model) > resisting(digits_model) + 0.2
    with torch.no_grad():
        assert float((model(x).argmax(1) == y).double().mean()) > 0.85


def test_corrupted_training_helps_on_what_it_saw_and_on_what_was_left_out(
    digits: Data, digits_model: nn.Module, fresh_cnn: Callable[..., nn.Module]
) -> None:
    model = fresh_cnn()
    recipe = corrupted(("gaussian-blur", "contrast", "rotate"))
    fit(model, digits.train, loss=recipe, schedule=Schedule(epochs=12, batch_size=64))
    x, y = digits.test.tensors()
    for corruption, gain in ((contrast, 0.2), (rotate, 0.05), (defocus_blur, 0.03)):
        z = corruption(x, 5)
        with torch.no_grad():
            plain, hardened = (float((net(z).argmax(1) == y).double().mean()) for net in (digits_model, model))
        assert hardened > plain + gain


def test_corrupted_training_draws_what_it_says(digits: Data) -> None:
    """The first half of the batch stays; the rest is one of the corruptions named, at one severity."""
    x, y = digits.train.first(10)
    seen: list[Tensor] = []

    class Spy(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            seen.append(inputs.clone())
            return super().forward(inputs.flatten(1))

    possible = [contrast(x[5:], severity) for severity in (1, 2, 3)]
    for _ in range(12):
        corrupted(("contrast",), severity=3)(Spy(64, 10), x, y)
        assert torch.equal(seen[-1][:5], x[:5])
    drawn = [[torch.equal(one[5:], level) for level in possible].index(True) for one in seen]
    assert set(drawn) == {0, 1, 2}


def test_bad_options_are_refused() -> None:
    with pytest.raises(UsageError, match="targeted"):
        adversarial(Linf(0.1).targeted())
    with pytest.raises(UsageError, match="per sample"):
        trades(Linf(torch.ones(4)))
    with pytest.raises(UsageError, match="steps"):
        adversarial(Linf(0.1), steps=0)
    with pytest.raises(UsageError, match="beta"):
        trades(Linf(0.1), beta=-1.0)
    with pytest.raises(UsageError, match="gaussian-noise"):
        corrupted(("gausian-noise",))
    with pytest.raises(UsageError, match="severity"):
        corrupted(severity=6)
