"""FAB: closed forms in the box, strength beside DeepFool and FMN, few classes, restarts, and points within a radius."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from closed_form import check_closed_form, sizes, won
from torch import Tensor, nn

from hauberk import Data, Goal, Target, Threat
from hauberk.core.errors import UsageError
from hauberk.robustness.attack import deepfool, fab, fab_t
from hauberk.robustness.attack.linear import crossing, nearest_plane

NORMS = ("linf", "l2", "l1")
by_norm = pytest.mark.parametrize("norm", NORMS)


@pytest.fixture(scope="module")
def sample(digits: Data, digits_model: nn.Module) -> tuple[Tensor, Tensor]:
    x, _ = digits.test.first(60)
    return x, digits_model(x).argmax(1)


@by_norm
@pytest.mark.parametrize("attack", [partial(fab, steps=25), partial(fab_t, steps=25)], ids=["fab", "fab-t"])
def test_distances_are_those_of_the_closed_form(
    attack: Callable[..., Tensor], norm: str, linear_model: nn.Linear, linear_samples: tuple[Tensor, Tensor]
) -> None:
    check_closed_form(attack, linear_model, *linear_samples, norm, worst=1.01)


@by_norm
def test_a_targeted_goal_ends_at_the_wanted_label(
    norm: str, linear_model: nn.Linear, linear_samples: tuple[Tensor, Tensor]
) -> None:
    x, y = linear_samples
    wanted = (y + 1) % 4
    z = fab(linear_model, x, wanted, Threat(norm, math.inf).targeted())
    assert float((linear_model(z).argmax(1) == wanted).double().mean()) >= 0.9
    with pytest.raises(UsageError, match="goal 'targeted'"):
        fab_t(linear_model, x, wanted, Threat(norm, 1.0, goal=Goal.TARGETED))


@by_norm
def test_on_a_network_it_is_nearer_than_deepfool(norm: str, digits_model: nn.Module, sample: tuple[Tensor, Tensor]) -> None:
    x, y = sample
    free = Threat(norm, math.inf)
    one, each = (attack(digits_model, x, y, free, steps=25) for attack in (fab, fab_t))
    assert bool(won(digits_model, one, y).all()) and bool(won(digits_model, each, y).all())
    # The targeted form looks past the plane that is nearest at x.
    assert float(sizes(each, x, norm).mean()) <= 1.001 * float(sizes(one, x, norm).mean())
    if norm != "l1":
        first = sizes(deepfool(digits_model, x, y, free), x, norm)
        assert float(sizes(one, x, norm).mean()) <= 0.99 * float(first.mean())
        assert float((sizes(each, x, norm) / first).max()) <= 1.02


def test_the_plane_chosen_is_the_one_that_is_least_to_cross_inside_the_box() -> None:
    # The first plane is nearer, but the box leaves no room towards it.
    slope = torch.tensor([[[1.0, 0.0], [0.0, 0.5]]], dtype=torch.float64)
    need = torch.tensor([[0.2, 0.2]], dtype=torch.float64)
    low, high = torch.tensor([[-1.0, -1.0]]).double(), torch.tensor([[0.1, 1.0]]).double()
    change, plane = nearest_plane("l2", slope, need, low, high)
    assert plane.tolist() == [1]
    torch.testing.assert_close(change, torch.tensor([[0.0, 0.4]], dtype=torch.float64))
    change, plane = nearest_plane("l2", slope, need, low, high * 10)
    assert plane.tolist() == [0]
    torch.testing.assert_close(change, crossing("l2", slope[:, 0], need[:, 0], low, high * 10))


@by_norm
@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes(norm: str, classes: int) -> None:
    draw = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, classes)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    x = torch.rand(40, 12, generator=draw, dtype=torch.float64)
    y = model(x).argmax(1)
    for one in (fab, fab_t):
        z = one(model, x, y, Threat(norm, math.inf))
        assert float(won(model, z, y).double().mean()) >= 0.9


def test_restarts_only_help(digits_model: nn.Module, sample: tuple[Tensor, Tensor]) -> None:
    x, y = sample
    free = Threat("l1", math.inf)
    once, more = (sizes(fab(digits_model, x, y, free, steps=10, restarts=n), x, "l1") for n in (1, 5))
    assert bool((more <= once + 1e-9).all()) and float((more < once * 0.99).double().mean()) >= 0.05


def test_with_an_early_stop_samples_leave_at_the_first_point_inside(
    digits_model: nn.Module, sample: tuple[Tensor, Tensor]
) -> None:
    x, y = sample
    whole = fab_t(digits_model, x, y, Threat("linf", math.inf), steps=20)
    eps = float(sizes(whole, x, "linf").median())
    for attack in (partial(fab, steps=20), partial(fab_t, steps=20)):
        long, short = Target(digits_model), Target(digits_model)
        patient = attack(long, x, y, Threat("linf", eps))
        hasty = attack(short, x, y, Threat("linf", eps), early_stop=True)
        assert float((won(digits_model, hasty, y) == won(digits_model, patient, y)).double().mean()) >= 0.975
        assert float(won(digits_model, hasty, y).double().mean()) >= 0.45
        assert short.ledger.gradients < 0.75 * long.ledger.gradients


def test_a_step_costs_one_gradient_per_plane(digits_model: nn.Module, sample: tuple[Tensor, Tensor]) -> None:
    # A curved surface in float64, and room on all sides: no sample comes to stand still before its steps are spent.
    draw = torch.Generator().manual_seed(5)
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 5)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    x = torch.rand(40, 12, generator=draw, dtype=torch.float64)
    y, wide = model(x).argmax(1), Threat("l2", 1e-7, bounds=(-100.0, 100.0))
    runs = [(fab_t, {"classes": 2}, 2), (fab, {"rivals": 3}, 3)]
    for attack, options, planes in runs:
        target = Target(model)
        attack(target, x, y, wide, steps=7, early_stop=True, **options)
        assert target.ledger.gradients == planes * 7 * len(x)
    # On a net of flat pieces a sample that stands still leaves: it costs less, never more.
    x, y = sample
    for attack, options, planes in runs:
        target = Target(digits_model)
        attack(target, x, y, Threat("l2", 1e-4), steps=7, early_stop=True, **options)
        assert 0.9 * planes * 7 * len(x) <= target.ledger.gradients <= planes * 7 * len(x)
