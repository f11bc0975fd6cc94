"""Square: changes at the ends of what is allowed, the paper's schedule, an exact budget, no gradient needed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from hauberk import L2, Data, Linf, Target
from hauberk.core.rng import generator
from hauberk.robustness.attack import pgd, square
from hauberk.robustness.attack.square import _pyramids, _room, _Window, _window


def held(model: nn.Module, z: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model(z).argmax(1) == y).double().mean())


def test_linf_changes_lie_at_the_ends(digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.test.first(60)
    z = square(digits_model, x, y, Linf(0.1), queries=60)
    ball = Linf(0.1, bounds=(0.0, 1.0)).around(x)
    at_end = (z == ball.low) | (z == ball.high)
    moved = (z != x).flatten(1).any(1)
    assert int(moved.sum()) > 40 and bool(at_end[moved].all())


def test_with_queries_enough_it_comes_near_the_gradient(digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.test.first(150)
    white = held(digits_model, pgd(digits_model, x, y, Linf(0.15)), y)
    assert held(digits_model, square(digits_model, x, y, Linf(0.15), queries=800), y) <= white + 0.03
    start = held(digits_model, x, y)
    middle = held(digits_model, square(digits_model, x, y, L2(1.0), queries=100), y)
    late = held(digits_model, square(digits_model, x, y, L2(1.0), queries=800), y)
    assert late < 0.25 < middle < 0.7 < start


def test_the_budget_of_a_sample_that_holds_is_spent_to_the_last_query(digits: Data, digits_model: nn.Module) -> None:
    x, _ = digits.test.first(7)
    y = digits_model(x).argmax(1)
    for threat in (Linf(1e-4), L2(1e-4)):
        target = Target(digits_model)
        square(target, x, y, threat, queries=37)
        assert target.ledger.queries == 7 * 37
    target = Target(digits_model)
    assert torch.equal(square(target, x, (y + 1) % 10, Linf(0.1)), x)  # wrong already
    assert target.ledger.queries == 7


def test_a_twin_without_gradients_gives_the_same_bits(digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.test.first(20)

    def twin(inputs: Tensor) -> np.ndarray:
        with torch.no_grad():
            return digits_model(inputs).numpy()

    for threat in (Linf(0.1), L2(0.5)):
        one = square(digits_model, x, y, threat, queries=80)
        assert torch.equal(one, square(Target(twin, outputs="logits"), x, y, threat, queries=80))


def test_flat_inputs_are_one_row_of_pixels() -> None:
    model, draw = nn.Linear(20, 4).double(), torch.Generator().manual_seed(7)
    with torch.no_grad():
        model.weight.copy_(torch.randn(4, 20, generator=draw, dtype=torch.float64))
        model.bias.copy_(-model.weight @ torch.full((20,), 0.5, dtype=torch.float64))
    x = torch.rand(64, 20, generator=draw, dtype=torch.float64)
    y = model(x).argmax(1)
    for threat in (Linf(0.15), L2(0.5)):
        assert held(model, pgd(model, x, y, threat), y) == 0
        assert held(model, square(model, x, y, threat, queries=500), y) <= 0.1


def test_rectangles_cover_their_share_of_what_may_change() -> None:
    x = torch.full((500, 3, 10, 12), 0.5)
    mask = torch.zeros(3, 10, 12, dtype=torch.bool)
    mask[:, 2:8, 3:9] = True  # 6 x 6 pixels
    ball = Linf(0.1, bounds=(0.0, 1.0), mask=mask).around(x)
    window = _window(ball, _room(ball), 0.25, generator(0))
    inside = window.inside[:, 0]
    assert inside.flatten(1).sum(1).tolist() == [9] * 500  # a quarter of 36
    assert not bool((inside & ~mask[0]).any())
    assert bool((inside.any(0) == mask[0]).all())  # every place is met


def test_pyramids_are_those_of_the_paper() -> None:
    # A window of 6 x 6: two halves of 3 x 6 with opposite signs, and a height of sum_{j=k}^{M} 1/(j+1)^2 at distance k from
    # the peak, M = 3.
    row, column = torch.arange(6)[None, :, None], torch.arange(6)[None, None, :]
    side = torch.full((1, 1, 1), 6)
    for seed in range(6):
        bump = _pyramids(_Window(row, column, side, side), generator(seed), torch.float64)[0, 0]
        bump = bump if bool((bump[:3] > 0).all()) else bump.T
        tail = [sum(1 / (j + 1) ** 2 for j in range(k, 4)) for k in range(4)]
        wanted = torch.tensor([[tail[max(abs(r - 1), abs(c - 3))] for c in range(6)] for r in range(3)], dtype=torch.float64)
        torch.testing.assert_close(bump[:3], wanted)
        torch.testing.assert_close(bump[3:], -wanted)


def test_l2_uses_the_whole_radius(digits: Data, digits_model: nn.Module) -> None:
    x, _ = digits.test.first(30)
    y = digits_model(x).argmax(1)
    z = square(digits_model, x, y, L2(0.05, bounds=(-5.0, 5.0)), queries=40)
    size = (z.double() - x.double()).flatten(1).norm(dim=1)
    assert float(size.min()) > 0.05 * (1 - 1e-5) and float(size.max()) <= 0.05
