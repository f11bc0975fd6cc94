"""HopSkipJump: each sample for itself, a budget per sample, no start, no endless loop, and the closed form in the limit."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hauberk import L2, Data, Linf, Target, Threat
from hauberk.robustness.attack import hop_skip_jump

FAR = L2(math.inf)


def distance(z: Tensor, x: Tensor) -> Tensor:
    return (z.double() - x.double()).flatten(1).norm(dim=1)


def test_a_sample_comes_as_near_alone_as_in_a_batch(digits: Data, digits_model: nn.Module) -> None:
    x, _ = digits.test.first(24)
    y = digits_model(x).argmax(1)
    together = [distance(hop_skip_jump(digits_model, x, y, FAR, queries=600, seed=seed), x) for seed in range(3)]
    single = [hop_skip_jump(digits_model, x[i : i + 1], y[i : i + 1], FAR, queries=600, seed=i) for i in range(24)]
    alone = distance(torch.cat(single), x)
    # The defect this guards against, a direction scaled by the whole batch, moves the median by a factor of 1.6.
    ratio = torch.stack(together).mean(0) / alone
    assert 0.9 < float(ratio.log().mean().exp()) < 1.1


def test_more_queries_come_nearer(digits: Data, digits_model: nn.Module) -> None:
    x, _ = digits.test.first(24)
    y = digits_model(x).argmax(1)
    for norm in ("l2", "linf"):
        threat = Threat(norm, math.inf)
        found = [threat.distance(hop_skip_jump(digits_model, x, y, threat, queries=q), x) for q in (100, 400, 1600)]
        medians = [float(one.median()) for one in found]
        assert medians[0] > 1.15 * medians[1] > 1.15 * medians[2]


def test_the_distance_to_a_half_space_is_found() -> None:
    # |w x + b| / |w| is the distance of x; far from the box, so that it is exact.
    w = torch.randn(30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = nn.Linear(30, 2).double()
    with torch.no_grad():
        model.weight.copy_(torch.stack([-w / 2, w / 2]))
        model.bias.zero_()
    x = torch.randn(20, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = model(x).argmax(1)
    exact = (x @ w).abs() / w.norm()
    z = hop_skip_jump(model, x, y, L2(math.inf, bounds=(-50.0, 50.0)), queries=4000)
    ratio = distance(z, x) / exact
    assert float(ratio.min()) >= 1 and float(ratio.median()) < 1.05


def test_no_sample_passes_its_budget(digits: Data, digits_model: nn.Module) -> None:
    x, _ = digits.test.first(4)
    y = digits_model(x).argmax(1)
    for queries in (1, 2, 13, 60, 333):
        for i in range(4):
            target = Target(digits_model)
            hop_skip_jump(target, x[i : i + 1], y[i : i + 1], FAR, queries=queries)
            assert target.ledger.queries <= queries
    target = Target(digits_model)
    hop_skip_jump(target, x, y, FAR, queries=333)
    assert 4 * 300 < target.ledger.queries <= 4 * 333


def test_what_is_wrong_already_costs_one_query_and_comes_back(digits: Data, digits_model: nn.Module) -> None:
    x, _ = digits.test.first(6)
    y = digits_model(x).argmax(1)
    y[2:] = (y[2:] + 1) % 10
    target = Target(digits_model)
    z = hop_skip_jump(target, x, y, FAR, queries=100)
    assert torch.equal(z[2:], x[2:]) and bool((distance(z, x)[:2] > 0).all())
    assert target.ledger.queries <= 2 * 100 + 4


def test_without_a_start_the_clean_input_comes_back() -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([[1.0, 0.0]]).expand(len(x), 2)

    x, y = torch.rand(5, 8), torch.zeros(5, dtype=torch.long)
    target = Target(Constant())
    assert torch.equal(hop_skip_jump(target, x, y, FAR, draws=20), x)
    assert target.ledger.queries == 5 * 21


def test_starts_of_ones_own_reach_a_chosen_label(digits: Data, digits_model: nn.Module) -> None:
    x, _ = digits.test.first(12)
    wanted = (digits_model(x).argmax(1) + 1) % 10
    pool = digits.train.first(60)[0]
    target = Target(digits_model)
    z = hop_skip_jump(target, x, wanted, FAR.targeted(), queries=500, start=pool)
    assert bool((digits_model(z).argmax(1) == wanted).all())
    nearest = torch.cdist(x.flatten(1), pool[digits_model(pool).argmax(1) != -1].flatten(1)).amin(1)
    assert float(distance(z, x).median()) < float(nearest.median())
    assert target.ledger.queries <= 12 * 500


def test_points_beyond_the_radius_do_not_count(digits: Data, digits_model: nn.Module) -> None:
    x, _ = digits.test.first(24)
    y = digits_model(x).argmax(1)
    free = distance(hop_skip_jump(digits_model, x, y, FAR, queries=400), x)
    radius = float(free.median())
    z = hop_skip_jump(digits_model, x, y, L2(radius), queries=400)
    assert float(distance(z, x).max()) <= radius
    assert torch.equal(digits_model(z).argmax(1) != y, free <= radius)
    near = hop_skip_jump(digits_model, x, y, Linf(0.1), queries=400)
    assert float((near.double() - x.double()).abs().max()) <= 0.1
