"""What inputs can be at all: the grid, the groups, the one way; and what a point is moved to."""

from __future__ import annotations

import pytest
import torch

from hauberk import Linf, Structure, Threat
from hauberk.core.errors import UsageError
from hauberk.core.rng import generator

GRID = Structure(step=torch.tensor([1.0, 0.5, 0.0]), offset=torch.tensor([0.0, 0.25, 0.0]))


def test_a_point_is_moved_to_the_nearest_possible_one() -> None:
    draw = 4 * torch.rand(200, 3, generator=generator(0, "grid"), dtype=torch.float64)
    values = [torch.arange(-1, 6).double(), torch.arange(-2, 12).double() * 0.5 + 0.25]
    found = GRID.snap(draw)
    for feature, possible in enumerate(values):
        nearest = possible[(draw[:, feature, None] - possible).abs().argmin(1)]
        torch.testing.assert_close(found[:, feature], nearest, rtol=0, atol=1e-12)
    assert torch.equal(found[:, 2], draw[:, 2])


def test_the_gradient_passes_as_if_nothing_had_moved() -> None:
    z = torch.rand(4, 3, generator=generator(1, "z")).requires_grad_()
    weight = torch.tensor([2.0, -3.0, 5.0])
    (GRID.snap(z) @ weight).sum().backward()
    assert torch.equal(z.grad, weight.expand(4, 3))


def test_a_group_has_one_winner() -> None:
    z = torch.tensor([[0.2, 0.7, 0.1, 9.0], [0.5, 0.5, 0.5, 9.0]])
    assert Structure(one_hot=[(0, 1, 2)]).snap(z).tolist() == [[0, 1, 0, 9], [1, 0, 0, 9]]


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "l0"])
def test_what_is_beyond_the_radius_keeps_its_largest_changes(norm: str) -> None:
    table = Structure(step=torch.tensor([1.0, 1, 1, 0, 0, 0]), one_hot=[(3, 4, 5)])
    draw = generator(2, "settle")
    x = torch.cat([torch.randint(0, 5, (300, 3), generator=draw).float(), torch.eye(3).repeat(100, 1)], 1)
    high = torch.tensor([4.0, 4, 4, 1, 1, 1])
    z = (x + 2 * torch.randn(300, 6, generator=draw)).clamp(torch.zeros(6), high)
    radius = {"linf": 1.0, "l2": 2.0, "l1": 3.0, "l0": 2.0}[norm]
    settled = table.settle(z, Threat(norm, radius, bounds=(torch.zeros(6), high), structure=table).around(x))
    change = (settled - x).abs().double()
    size = {"linf": change.amax(1), "l2": change.norm(dim=1), "l1": change.sum(1), "l0": (change > 0).sum(1).double()}[norm]
    assert bool((size <= radius).all()) and torch.equal(settled, settled.round())
    assert torch.equal(settled[:, 3:].sum(1), torch.ones(300)) and float(settled.min()) == 0
    if norm == "linf":
        return
    # Nothing that was dropped would still fit: the brute force over single units.
    full, cost = table.snap(z), {"l2": 2, "l1": 1, "l0": 0}[norm]
    for row in range(300):
        for unit in ((0,), (1,), (2,), (3, 4, 5)):
            places = list(unit)
            if bool((settled[row, places] == full[row, places]).all()):
                continue
            more = sum(float(abs(full[row, i] - x[row, i])) ** cost if full[row, i] != x[row, i] else 0.0 for i in places)
            spent = sum(float(one) ** cost if one > 0 else 0.0 for one in change[row])
            assert spent + more > radius ** (2 if norm == "l2" else 1)


def test_the_box_reaches_the_last_possible_value_and_no_further() -> None:
    x = torch.tensor([[0.30, 0.75]])
    ball = Linf(0.25).structured(Structure(step=torch.tensor([0.1, 0.0]))).around(x)
    assert ball.low[0].tolist() == pytest.approx([0.1, 0.5], abs=1e-6)
    assert ball.high[0].tolist() == pytest.approx([0.5, 1.0], abs=1e-6)
    one_way = Linf(0.25).structured(Structure(direction=torch.tensor([1, -1]))).around(x)
    assert one_way.low[0].tolist() == pytest.approx([0.30, 0.5]) and one_way.high[0].tolist() == pytest.approx([0.55, 0.75])


def test_a_group_moves_only_where_the_radius_pays_for_it() -> None:
    x = torch.eye(3)
    table = Structure(one_hot=[(0, 1, 2)])
    for norm, price in (("linf", 1.0), ("l2", 2**0.5), ("l1", 2.0), ("l0", 2.0)):
        for radius in (0.99 * price, 1.001 * price):
            ball = Threat(norm, radius, structure=table).around(x)
            assert bool((ball.low < ball.high).all()) == (radius > price)


def test_what_cannot_be_meant_is_refused() -> None:
    for wrong in ({"step": -1.0}, {"one_hot": [(1,)]}, {"one_hot": [(0, 1), (1, 2)]}, {"direction": torch.tensor([2])}):
        with pytest.raises(UsageError):
            Structure(**wrong)  # type: ignore[arg-type]
