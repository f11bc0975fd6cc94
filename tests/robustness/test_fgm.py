"""FGM: one step, by its formula."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from hauberk import L1, L2, Data, Linf, Target
from hauberk.core.errors import UsageError
from hauberk.robustness.attack import fgm, fgsm, pgd


@pytest.fixture(scope="module")
def case(digits: Data, digits_model: nn.Module) -> tuple[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A model, samples it gets right, their labels, and the gradient of the cross-entropy."""
    x, y = digits.test.first(80)
    right = digits_model(x).argmax(1) == y
    x, y = x[right], y[right]
    start = x.clone().requires_grad_()
    functional.cross_entropy(digits_model(start), y, reduction="sum").backward()
    digits_model.zero_grad(set_to_none=True)
    assert start.grad is not None
    return digits_model, x, y, start.grad


def test_in_linf_it_is_the_sign_of_the_gradient(case: tuple[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    model, x, y, gradient = case
    z = fgm(model, x, y, Linf(0.1))
    torch.testing.assert_close(z, (x + 0.1 * gradient.sign()).clamp(0, 1), rtol=0, atol=1e-7)
    assert torch.equal(z, fgsm(model, x, y, Linf(0.1)))


def test_one_step_of_pgd_is_the_same(case: tuple[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    model, x, y, _ = case
    one = pgd(model, x, y, Linf(0.1), steps=1, random_start=False)
    stepped = fgm(model, x, y, Linf(0.1))
    after, before = (functional.cross_entropy(model(at), y, reduction="none") for at in (stepped, x))
    higher = after > before
    assert torch.equal(one[higher], stepped[higher]) and int(higher.sum()) > 60


def test_without_a_box_it_is_the_dual_direction(case: tuple[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    model, x, y, gradient = case
    free = {"bounds": (-9.0, 9.0)}
    flat = gradient.flatten(1)
    unit = (flat / flat.norm(dim=1, keepdim=True)).view_as(x)
    torch.testing.assert_close(fgm(model, x, y, L2(0.5, **free)), x + 0.5 * unit, rtol=0, atol=2e-6)
    steepest = functional.one_hot(flat.abs().argmax(1), flat.shape[1]) * flat.sign()
    torch.testing.assert_close(fgm(model, x, y, L1(0.5, **free)), x + 0.5 * steepest.view_as(x), rtol=0, atol=2e-6)


def test_it_costs_one_query_and_one_gradient(case: tuple[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
    model, x, y, _ = case
    target = Target(model)
    fgm(target, x, y, Linf(0.1))
    assert (target.ledger.queries, target.ledger.gradients) == (len(x), len(x))


def test_what_is_wrong_already_is_left_alone_and_losses_are_known_by_name(digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.test.first(30)
    wrong = (digits_model(x).argmax(1) + 1) % 10
    assert torch.equal(fgm(digits_model, x, wrong, Linf(0.1)), x)
    with pytest.raises(UsageError, match="Did you mean 'margin'"):
        fgm(digits_model, x, y, Linf(0.1), loss="margins")
