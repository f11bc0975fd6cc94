"""One step from a random point and towards the least likely class, by their formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hauberk import L2, Data, Linf, Target
from hauberk.core.rng import generator, normal, uniform
from hauberk.robustness.attack import fgm, n_fgsm, r_fgm, r_fgsm, r_step_ll, step_ll

Case = tuple[nn.Module, Tensor, Tensor]


@pytest.fixture(scope="module")
def case(digits: Data, digits_model: nn.Module) -> Case:
    """A model, samples it gets right, and their labels."""
    x, y = digits.test.first(120)
    right = digits_model(x).argmax(1) == y
    return digits_model, x[right], y[right]


def slope(model: nn.Module, z: Tensor, y: Tensor) -> Tensor:
    """The gradient of the cross-entropy of y at z."""
    z = z.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(functional.cross_entropy(model(z), y, reduction="sum"), z)
    return gradient


def held(model: nn.Module, z: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return model(z).argmax(1) == y


def unless_broken(model: nn.Module, start: Tensor, end: Tensor, y: Tensor) -> Tensor:
    return torch.where(held(model, start, y)[:, None, None, None], end, start)


def test_r_fgsm_is_the_papers_formula(case: Case) -> None:
    model, x, y = case
    start = (x + 0.05 * normal(x, generator(3, "random move")).sign()).clamp(0, 1)
    end = (start + 0.05 * slope(model, start, y).sign()).clamp(0, 1)
    z = r_fgsm(model, x, y, Linf(0.1), step=0.5, seed=3)
    torch.testing.assert_close(z, unless_broken(model, start, end, y), rtol=0, atol=1e-6)
    assert torch.equal(z, r_fgm(model, x, y, Linf(0.1), step=0.5, seed=3))


def test_r_fgm_in_l2_moves_along_a_random_unit_and_then_the_gradient(case: Case) -> None:
    model, x, y = case
    threat = L2(0.6, bounds=(-9.0, 9.0))
    noise = normal(x, generator(0, "random move"))
    start = x + 0.15 * noise / noise.flatten(1).norm(dim=1)[:, None, None, None]
    gradient = slope(model, start, y)
    end = start + 0.3 * gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None]
    z = r_fgm(model, x, y, threat, start=0.25, step=0.5)
    torch.testing.assert_close(z, unless_broken(model, start, end, y), rtol=0, atol=1e-5)


def test_without_a_random_move_it_is_fgm_and_costs_as_much(case: Case) -> None:
    model, x, y = case
    target = Target(model)
    for threat in (Linf(0.1), L2(0.7)):
        torch.testing.assert_close(r_fgm(target, x, y, threat, start=0.0), fgm(model, x, y, threat), rtol=0, atol=1e-6)
    assert (target.ledger.queries, target.ledger.gradients) == (2 * len(x), 2 * len(x))


def test_n_fgsm_is_the_papers_formula_brought_into_the_ball(case: Case) -> None:
    model, x, y = case
    low, high = (x - 0.2).clamp(min=0), (x + 0.2).clamp(max=1)
    start = low + (high - low) * uniform(x, generator(5, "n-fgsm"))
    end = (start + 0.1 * slope(model, start, y).sign()).clamp(x - 0.1, x + 0.1).clamp(0, 1)
    z = n_fgsm(model, x, y, Linf(0.1), step=1.0, seed=5)
    torch.testing.assert_close(z, end, rtol=0, atol=1e-6)


def test_a_random_start_sees_past_a_flat_spot() -> None:
    class Flat(nn.Module):
        """Its slope is zero at the clean inputs, which lie on a grid, and steep around them."""

        def forward(self, x: Tensor) -> Tensor:
            bend = (x - 0.5).flatten(1).square().sum(1, keepdim=True)
            return torch.cat([torch.full_like(bend, 0.05), bend], 1)

    x, y = torch.full((40, 1, 4, 4), 0.5), torch.zeros(40, dtype=torch.long)
    assert bool(held(Flat(), fgm(Flat(), x, y, Linf(0.1)), y).all())  # the gradient there is zero
    for attack in (r_fgsm, n_fgsm, r_step_ll):
        assert not bool(held(Flat(), attack(Flat(), x, y, Linf(0.1)), y).any())


def test_step_ll_goes_for_the_lowest_clean_logit(case: Case) -> None:
    model, x, y = case
    with torch.no_grad():
        lowest = model(x).argmin(1)
    assert not bool((lowest == y).any()) and len(lowest.unique()) > 3
    end = (x - 0.2 * slope(model, x, lowest).sign()).clamp(0, 1)
    target = Target(model)
    torch.testing.assert_close(step_ll(target, x, y, Linf(0.2)), end, rtol=0, atol=1e-6)
    assert (target.ledger.queries, target.ledger.gradients) == (len(x), len(x))
    with torch.no_grad():
        before, after = (functional.cross_entropy(model(z), lowest) for z in (x, step_ll(model, x, y, Linf(0.2))))
    assert after < before - 2


def test_r_step_ll_keeps_the_class_of_the_clean_logits(case: Case) -> None:
    model, x, y = case
    with torch.no_grad():
        lowest = model(x).argmin(1)
    start = (x + 0.1 * normal(x, generator(2, "random move")).sign()).clamp(0, 1)
    end = (start - 0.1 * slope(model, start, lowest).sign()).clamp(0, 1)
    target = Target(model)
    z = r_step_ll(target, x, y, Linf(0.2), step=0.5, seed=2)
    torch.testing.assert_close(z, unless_broken(model, start, end, y), rtol=0, atol=1e-6)
    assert (target.ledger.queries, target.ledger.gradients) == (2 * len(x), len(x))


def test_the_true_class_is_never_the_one_gone_for(case: Case) -> None:
    model, x, _ = case
    with torch.no_grad():
        ordered = model(x).argsort(1)
    # With the least likely label as the true one every sample is wrong already: none moves, and nothing points at it.
    assert torch.equal(step_ll(model, x, ordered[:, 0], Linf(0.2)), x)
    assert torch.equal(r_step_ll(model, x, ordered[:, 0], Linf(0.2)), x)
