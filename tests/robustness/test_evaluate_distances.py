from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import weibull_max
from torch import Tensor, nn
from torch.nn import functional

from hauberk import L2, Access, Data, Linf, Target, Threat
from hauberk.core.access import Budget
from hauberk.core.errors import AccessDenied, BudgetExceeded, ModelError, UsageError
from hauberk.core.predictors import Normalize
from hauberk.core.stats import wilson
from hauberk.core.structure import Structure
from hauberk.robustness.attack import fgm, pgd
from hauberk.robustness.evaluate import (
    clever,
    curve_of,
    empirical_robustness,
    least_distances,
    loss_sensitivity,
    one_by_one,
    robust_curve,
    sandwich,
    worst_case,
)
from hauberk.robustness.evaluate.clever import fit_largest
from hauberk.robustness.evaluate.sandwich import between
from hauberk.robustness.evaluate.worst_case import _key, price

WIDE = (-1e3, 1e3)
DUAL = {"l1": math.inf, "l2": 2.0, "linf": 1.0}


def planes(model: nn.Linear, x: Tensor, y: Tensor, norm: str) -> Tensor:
    """The distance of each sample to the plane between its class and each other one, shape (n, classes)."""
    logits, weight = model(x).detach(), model.weight.detach()
    gap = logits.gather(1, y[:, None]) - logits
    size = torch.linalg.vector_norm(weight[y][:, None] - weight[None], DUAL[norm], dim=2)
    return torch.where(size > 0, gap / size.clamp(min=1e-30), math.inf)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_clever_is_exact_where_the_margin_is_linear(
    norm: str, linear_model: nn.Linear, linear_samples: tuple[Tensor, Tensor]
) -> None:
    x, y = linear_samples
    target = Target(linear_model, bounds=WIDE)
    wanted = planes(linear_model, x, y, norm)
    found = clever(target, x, y, norm=norm, radius=100.0, batches=4, points=3)
    assert torch.allclose(found.scores, wanted, rtol=1e-9)
    assert torch.allclose(found.untargeted, wanted.amin(1), rtol=1e-9)
    aim = (y + 1) % 4
    assert torch.allclose(found.targeted(aim), wanted.gather(1, aim[:, None])[:, 0], rtol=1e-9)
    near = clever(target, x, y, norm=norm, radius=0.01, batches=4, points=3)
    assert torch.allclose(near.untargeted, wanted.amin(1).clamp(max=0.01), rtol=1e-9)  # never beyond what was looked at


def test_clever_of_a_wrong_answer_is_zero(linear_model: nn.Linear, linear_samples: tuple[Tensor, Tensor]) -> None:
    x, y = linear_samples
    found = clever(Target(linear_model, bounds=WIDE), x[:4], (y[:4] + 1) % 4, radius=1.0, batches=3, points=2)
    assert torch.equal(found.untargeted, torch.zeros(4, dtype=torch.float64))


class Bowl(nn.Module):
    """The margin 9 - |x|^2, whose slope is 2 |x|."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([9 - x.flatten(1).square().sum(1), torch.zeros(len(x), dtype=x.dtype)], 1)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_clever_reaches_beyond_the_slopes_it_saw(seed: int) -> None:
    x = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    found = clever(Target(Bowl(), bounds=WIDE), x, torch.tensor([0]), radius=1.0, batches=60, points=40, seed=seed)
    steepest = float(found.lipschitz[0, 1])
    # In the ball of radius 1 around (1, 0, 0) the slope ends at 4; the largest of 2,400 draws stays below.
    assert 3.9 <= steepest <= 4.25
    assert float(found.untargeted[0]) == pytest.approx(min(8 / steepest, 1.0))
    again = clever(Target(Bowl(), bounds=WIDE), x, torch.tensor([0]), radius=1.0, batches=60, points=40, seed=seed)
    assert torch.equal(found.scores, again.scores)


def test_clever_of_a_sample_does_not_depend_on_its_batch(linear_samples: tuple[Tensor, Tensor]) -> None:
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y, target = torch.zeros(3, dtype=torch.long), Target(Bowl(), bounds=WIDE, batch_size=7)
    together = clever(target, x, y, batches=5, points=6).scores
    alone = torch.cat([clever(target, x[at : at + 1], y[at : at + 1], batches=5, points=6).scores for at in range(3)])
    assert torch.allclose(together, alone, rtol=1e-12)


@pytest.mark.parametrize("shape", [1.5, 3.0, 6.0])
def test_the_fit_is_at_least_as_likely_as_scipys(shape: float) -> None:
    values = weibull_max.rvs(shape, loc=5.0, scale=1.0, size=400, random_state=np.random.default_rng(4))
    end = fit_largest(values)
    assert values.max() < end and abs(end - 5.0) < 0.35

    def likelihood(loc: float) -> float:
        """The best over shape and scale at this end point."""
        c, _, s = weibull_max.fit(values, floc=loc)
        return float(weibull_max.logpdf(values, c, loc, s).sum())

    start = weibull_max.fit(values, shape, loc=values.max() + 0.1, scale=1.0)
    theirs = float(weibull_max.logpdf(values, *start).sum())
    assert likelihood(end) >= theirs - 0.05


def test_values_without_a_spread_are_their_own_end() -> None:
    assert fit_largest(np.full(20, 3.0)) == 3.0
    assert fit_largest(np.array([3.0, 3.0 + 1e-9])) == pytest.approx(3.0)
    assert fit_largest(np.zeros(5)) == 0.0


def test_clever_refuses_what_it_cannot_do(linear_model: nn.Linear, linear_samples: tuple[Tensor, Tensor]) -> None:
    x, y = linear_samples
    with pytest.raises(UsageError, match="l0"):
        clever(linear_model, x, y, norm="l0")
    with pytest.raises(AccessDenied):
        clever(Target(linear_model, access=Access.SCORE), x, y)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_empirical_robustness_of_planes(norm: str, linear_model: nn.Linear, linear_samples: tuple[Tensor, Tensor]) -> None:
    x, y = linear_samples
    found = empirical_robustness(Target(linear_model, bounds=WIDE), x, y, norm=norm)
    wanted = planes(linear_model, x, y, norm).amin(1)
    size = torch.linalg.vector_norm(x, 2.0 if norm == "l2" else math.inf, dim=1)
    assert found.broken == found.right == 32
    # DeepFool stops a little behind the nearest plane, and is drawn back to it.
    assert found.relative.value == pytest.approx(float((wanted / size).mean()), rel=0.01)
    assert found.absolute.value == pytest.approx(float(torch.quantile(wanted, 0.5)), rel=0.01)


def test_empirical_robustness_leaves_out_what_was_wrong(linear_model: nn.Linear, linear_samples: tuple[Tensor, Tensor]) -> None:
    x, y = linear_samples
    wrong = y.clone()
    wrong[:8] = (y[:8] + 1) % 4
    target = Target(linear_model, bounds=WIDE)
    part, whole = empirical_robustness(target, x, wrong), empirical_robustness(target, x[8:], y[8:])
    assert part.right == 24 and part.relative == whole.relative and torch.equal(part.distance[:8], torch.zeros(8).double())
    none = empirical_robustness(target, x[:8], wrong[:8])
    assert not none.relative.measured and not none.absolute.measured
    with pytest.raises(UsageError, match="does not seek the nearest"):
        empirical_robustness(target, x, y, attack="pgd")


@pytest.mark.parametrize(("norm", "order"), [("l1", 1), ("l2", 2), ("linf", math.inf)])
def test_loss_sensitivity_has_the_closed_form_of_a_softmax(
    norm: str, order: float, linear_model: nn.Linear, linear_samples: tuple[Tensor, Tensor]
) -> None:
    x, _ = linear_samples
    y = torch.arange(32) % 4
    p = linear_model(x).softmax(1).detach()
    slope = (p - functional.one_hot(y, 4)) @ linear_model.weight.detach()
    found = loss_sensitivity(Target(linear_model, batch_size=5), x, y, norm=norm)
    assert torch.allclose(found, torch.linalg.vector_norm(slope, order, dim=1), rtol=1e-10)
    assert all(one.grad is None for one in linear_model.parameters()) and not x.requires_grad


@pytest.mark.parametrize("attack", ["fmn", "pgd"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_distances_are_those_of_the_nearest_plane(
    norm: str, attack: str, linear_model: nn.Linear, linear_samples: tuple[Tensor, Tensor]
) -> None:
    x, y = linear_samples
    wanted = planes(linear_model, x, y, norm).amin(1)
    found = least_distances(
        Target(linear_model), x, y, Threat(norm, math.inf, bounds=(-20.0, 20.0)), attack=attack, rounds=24
    )
    assert bool((found >= wanted * (1 - 1e-6)).all()), "nearer than the nearest there is"
    assert float((found / wanted).median()) < 1.02


def test_bisection_counts_changed_features_in_whole_numbers() -> None:
    model = nn.Linear(6, 2).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0] * 6, [3.0, 2.0, 1.0, 0.5, 0.25, 0.1]]))
        model.bias.copy_(torch.tensor([0.0, -4.5]))
    x = torch.zeros(2, 6, dtype=torch.float64)
    # Features at their ends: 3 + 2 > 4.5, and no one alone.
    found = least_distances(Target(model), x, torch.tensor([0, 0]), Threat("l0", 6.0), attack="pgd", rounds=8)
    assert found.tolist() == [2.0, 2.0]


def test_each_sample_has_a_radius_of_its_own(linear_model: nn.Linear, linear_samples: tuple[Tensor, Tensor]) -> None:
    """All radii in one batch a round: rounds times the attack's cost, however many samples there are."""
    x, y = linear_samples
    target = Target(linear_model)
    least_distances(target, x, y, L2(math.inf, bounds=(-20.0, 20.0)), attack="pgd", rounds=10, steps=5)
    assert target.ledger.calls <= 10 * (5 + 2) + 1
    assert target.ledger.queries <= 32 * (10 * (5 + 2) + 1)


def test_beyond_the_farthest_radius_nothing_counts(linear_model: nn.Linear, linear_samples: tuple[Tensor, Tensor]) -> None:
    x, y = linear_samples
    wanted = planes(linear_model, x, y, "l2").amin(1)
    limit = float(wanted.median())
    for attack in ("ddn", "pgd"):
        found = least_distances(linear_model, x, y, L2(limit, bounds=WIDE), attack=attack, rounds=20)
        assert bool((found[found.isfinite()] <= limit).all())
        clear = (wanted - limit).abs() > 0.02 * limit
        assert torch.equal(found.isinf()[clear], (wanted > limit)[clear])


def test_the_curve_never_rises_and_has_wilsons_band() -> None:
    distance = torch.tensor([0.0, 0.1, 0.2, 0.2, math.inf])
    found = curve_of(distance, radii=[0.3, 0.0, 0.1, 0.2])
    assert found.radii == (0.0, 0.1, 0.2, 0.3) and found.accuracy == (0.8, 0.6, 0.2, 0.2)
    assert found.bands == tuple(wilson(count, 5) for count in (4, 3, 1, 1))
    assert found.at(0.15).value == 0.6 and found.at(0.05).value == 0.8
    assert found.median.value == pytest.approx(0.2) and found.median.n == 4
    assert curve_of(torch.zeros(0)).at(1.0).value is None
    series = found.series("one")
    assert list(series.y) == [0.8, 0.6, 0.2, 0.2] and len(series.low) == 4


def test_the_curve_of_a_net_lies_below_what_pgd_leaves(digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.test.first(40)
    radii = [0.0, 0.05, 0.1, 0.15, 0.2]
    curve = robust_curve(digits_model, x, y, Linf(math.inf), attack="fmn", radii=radii)
    assert list(curve.accuracy) == sorted(curve.accuracy, reverse=True) and "fmn" in curve.how
    assert curve.accuracy[0] == pytest.approx(float((digits_model(x).argmax(1) == y).double().mean()))
    stepped = robust_curve(digits_model, x, y, Linf(math.inf), attack="pgd", radii=radii, rounds=10)
    assert "bisection" in stepped.how
    for at, radius in enumerate(radii[1:], 1):
        left = float((digits_model(pgd(digits_model, x, y, Linf(radius))).argmax(1) == y).double().mean())
        assert curve.accuracy[at] <= left + 1 / 40 and stepped.accuracy[at] <= left + 1 / 40
    with pytest.raises(UsageError, match="untargeted"):
        robust_curve(digits_model, x, y, Linf(0.1).targeted())


def union(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *attacks: object) -> Tensor:
    held = model(x).argmax(1) == y
    for attack in attacks:
        held &= model(attack(model, x, y, threat)).argmax(1) == y  # type: ignore[operator]
    return held


def test_the_worst_case_is_that_of_each_sample(digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.test.first(80)
    target, threat = Target(digits_model), Linf(0.09)
    found = worst_case(target, x, y, threat, [("square", {"queries": 200}), "pgd", "fgm"])
    assert [one.name for one in found.turns] == ["fgm", "pgd", "square (queries=200)"]  # the cheapest first
    wanted = union(digits_model, x, y, threat, fgm, pgd)
    assert bool((~found.held | wanted).all()) and int((wanted & ~found.held).sum()) <= 3  # square may break a few more
    clean = digits_model(x).argmax(1) == y
    assert torch.equal(found.clean, clean) and torch.equal(found.held, clean & (found.by < 0))
    broken = found.by >= 0
    assert bool((digits_model(found.x_adv[broken]).argmax(1) != y[broken]).all())
    assert torch.equal(found.x_adv[~broken], x[~broken]) and bool(threat.contains(found.x_adv, x).all())
    # Each meets those that are left, and the price of all is what the target counted, beside the questions that judge.
    met = int(clean.sum())
    for at, turn in enumerate(found.turns):
        assert turn.met == met and turn.broke == int((found.by == at).sum())
        met -= turn.broke
    judged = 80 + sum(turn.met for turn in found.turns)
    assert sum(turn.queries for turn in found.turns) + judged == target.ledger.queries
    assert sum(turn.gradients for turn in found.turns) == target.ledger.gradients
    assert found.accuracy.value == pytest.approx(float(found.held.double().mean()))


def test_prices_follow_the_options() -> None:
    assert price("fgm", {}) < price("pgd", {}) < price("square", {})
    assert price("pgd", {"steps": 400}) == pytest.approx(10 * price("pgd", {"steps": 40}))
    assert price("apgd", {"restarts": 5}) == pytest.approx(5 * price("apgd", {}))


def test_the_worst_case_goes_on_from_its_file(digits: Data, digits_model: nn.Module, tmp_path: Path) -> None:
    x, y = digits.test.first(40)
    file, plan = tmp_path / "run.npz", ["fgm", "pgd", ("square", {"queries": 120})]
    whole = worst_case(digits_model, x, y, Linf(0.1), plan, seed=3)

    # The third attack is one query too dear: what the first two found is kept.
    before = Target(digits_model)
    worst_case(before, x, y, Linf(0.1), plan[:2], seed=3)
    poor = Target(digits_model, budget=Budget(queries=before.ledger.queries + 10))
    with pytest.raises(BudgetExceeded):
        worst_case(poor, x, y, Linf(0.1), plan, seed=3, file=file)
    target = Target(digits_model)
    first = worst_case(target, x, y, Linf(0.1), plan, seed=3, file=file)
    last = whole.turns[2]
    assert target.ledger.queries == last.queries + last.met, "only the third turn was left to do"
    target = Target(digits_model)
    again = worst_case(target, x, y, Linf(0.1), plan, seed=3, file=file)
    assert target.ledger.queries == 0, "a finished run is read, not repeated"
    for one in (first, again):
        assert torch.equal(one.held, whole.held) and torch.equal(one.by, whole.by) and torch.equal(one.x_adv, whole.x_adv)
        assert [dataclasses.replace(turn, seconds=0) for turn in one.turns] == [
            dataclasses.replace(turn, seconds=0) for turn in whole.turns
        ]
    for other in ({"seed": 4}, {"x": x.flip(0)}, {"threat": Linf(0.2)}, {"plan": plan[:2]}):
        given = {"x": x, "threat": Linf(0.1), "plan": plan, "seed": 3} | other
        with pytest.raises(UsageError, match="another run"):
            worst_case(digits_model, given["x"], y, given["threat"], given["plan"], seed=given["seed"], file=file)  # type: ignore[arg-type]
    file.write_bytes(b"PK nonsense")
    with pytest.raises(UsageError, match="cannot be read"):
        worst_case(digits_model, x, y, Linf(0.1), plan, seed=3, file=file)


def runs(linear_model: nn.Linear, other: str) -> tuple[Target, Threat, list[tuple[str, dict[str, object]]]]:
    """What a run is made of, with one part of it changed."""
    mean = torch.tensor([0.25, 0.5]) if other == "constants" else 0.25
    net = nn.Sequential(Normalize(mean, 0.5), linear_model).eval()
    grid = torch.full((linear_model.in_features,), 0.125)
    if other == "structure":
        grid[-1] = 0.25
    begin = torch.zeros(3000)
    if other == "options":
        begin[1500] = 1.0  # where a print of the tensor leaves it out
    bounds = {"bounds": (-9.0, 9.0), "high bound": (-8.0, torch.full((linear_model.in_features,), 8.0))}.get(other, (-8.0, 8.0))
    kind = "probabilities" if other == "outputs" else "logits"
    return Target(net, bounds=bounds, outputs=kind), Linf(0.1).structured(Structure(step=grid)), [("pgd", {"like": begin})]


@pytest.mark.parametrize("other", ["bounds", "high bound", "structure", "options", "outputs"])
def test_a_run_is_known_by_all_that_it_rests_on(other: str, linear_model: nn.Linear) -> None:
    x, y = torch.zeros(2, linear_model.in_features), torch.zeros(2, dtype=torch.long)

    def known(change: str) -> tuple[str, str]:
        target, threat, plans = runs(linear_model, change)
        return _key(target, x, y, threat.within(target.bounds or (0.0, 1.0)), plans, 0), target.outputs

    assert known("") == known("") != known(other)


def test_constants_that_are_in_no_state_dict_tell_runs_apart(tmp_path: Path) -> None:
    inner, x = nn.Linear(6, 3), torch.rand(12, 6, generator=torch.Generator().manual_seed(1))
    assert not Normalize(0.0, 1.0).state_dict(), "else this test shows nothing"

    def go(mean: float, outputs: str = "auto") -> None:
        net = nn.Sequential(Normalize(mean, 1.0), inner).eval()
        y = torch.zeros(12, dtype=torch.long)
        worst_case(Target(net, outputs=outputs), x, y, Linf(0.1), ["fgm"], file=tmp_path / "run.npz")

    go(0.0)
    go(0.0)
    with pytest.raises(UsageError, match="another run"):
        go(0.5)
    with pytest.raises(UsageError, match="another run"):
        go(0.0, "probabilities")


def test_a_run_keeps_to_the_bounds_of_its_target(tmp_path: Path) -> None:
    net, x = nn.Linear(6, 3), torch.rand(12, 6, generator=torch.Generator().manual_seed(1))
    y = net(x).argmax(1)
    worst_case(Target(net, bounds=(0.0, 1.0)), x, y, Linf(0.1), ["fgm"], file=tmp_path / "run.npz")
    with pytest.raises(UsageError, match="another run"):
        worst_case(Target(net, bounds=(-1.0, 1.0)), x, y, Linf(0.1), ["fgm"], file=tmp_path / "run.npz")
    # The same target again, which has learnt meanwhile how its outputs read.
    target, file = Target(net), tmp_path / "other.npz"
    first = worst_case(target, x, y, Linf(0.1), ["fgm"], file=file)
    assert torch.equal(worst_case(target, x, y, Linf(0.1), ["fgm"], file=file).held, first.held)


def test_the_worst_case_of_several_labels(tmp_path: Path) -> None:
    torch.manual_seed(4)
    net, x = nn.Linear(6, 3), torch.rand(30, 6)
    y, target = (net(x) > 0).long(), Target(net, outputs="multilabel")
    y[0, 0] = 1 - y[0, 0]  # wrong undisturbed
    y[1, 0] = -1  # nobody's concern
    found = worst_case(target, x, y, Linf(0.1), ["fgm", ("pgd", {"loss": "margin"}), "deepfool"], file=tmp_path / "run.npz")
    # Of a linear model the least change that turns a label is known.
    least = (net(x).abs() / net.weight.abs().sum(1)).detach().masked_fill(y < 0, math.inf).amin(1)
    clear = (least - 0.1).abs() > 1e-3
    assert not found.clean[0] and bool(found.clean[1:].all()) and found.by.shape == (30,)
    inside = ((x > 0.1) & (x < 0.9)).all(1)  # where the bounds do not shorten the change
    asked = clear & found.clean
    assert bool((found.held | (least < 0.101))[asked].all())
    assert bool((~found.held)[asked & inside & (least < 0.1)].all()) and 0 < int(found.held.sum()) < 29
    for bad, model in ((y[:, 0].clamp(min=0), target), (y, Target(net))):
        with pytest.raises(UsageError, match="labels of the same kind"):
            worst_case(model, x, bad, Linf(0.1), ["fgm"])


def test_seconds_are_those_of_the_clock_on_the_wall() -> None:
    class Slow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            time.sleep(0.05)
            return torch.stack([x.sum(1), 1 - x.sum(1)], 1)

    x = torch.full((2, 3), 0.1)
    turn = worst_case(Slow(), x, torch.ones(2, dtype=torch.long), Linf(0.01), ["fgm"]).turns[0]
    assert turn.seconds >= 0.05
    assert one_by_one(fgm, Slow(), x, torch.ones(2, dtype=torch.long), Linf(0.01)).seconds.min() >= 0.05


def test_a_slope_that_is_not_finite_is_no_good_score() -> None:
    class Half(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, grad: Tensor) -> Tensor:  # type: ignore[override]
            return grad * math.nan

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            answer: Tensor = self.inner(Half.apply(x))  # type: ignore[no-untyped-call]
            return answer

    torch.manual_seed(0)
    net, x = Net(), torch.rand(3, 4)
    y = net(x).argmax(1)
    found = clever(net, x, y, batches=3, points=4)
    assert bool(found.untargeted.isnan().all()) and bool((found.lipschitz.isnan().sum(1) == 2).all())
    good = clever(net.inner, x, y, batches=3, points=4)
    assert bool(good.untargeted.isfinite().all()) and bool(good.lipschitz.isfinite().all())
    assert math.isnan(fit_largest(np.array([1.0, math.inf, 2.0])))


def test_a_curve_of_no_samples_is_not_measured() -> None:
    found = curve_of(torch.zeros(0), radii=[0.0, 1.0])
    assert all(math.isnan(one) for one in found.accuracy) and found.n == 0


@pytest.mark.parametrize("call", [clever, loss_sensitivity])
def test_figures_about_one_class_refuse_several_labels(call: Callable[..., object]) -> None:
    with pytest.raises(UsageError, match="several labels per sample"):
        call(Target(nn.Linear(3, 2), outputs="multilabel"), torch.rand(4, 3), torch.zeros(4, dtype=torch.long))


def test_the_worst_case_refuses_what_makes_no_sense(digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.test.first(4)
    for plan, told in (([], "no attacks"), (["pgd", "pgd"], "once"), (["pgdd"], "there is no attack")):
        with pytest.raises(UsageError, match=told):
            worst_case(digits_model, x, y, Linf(0.1), plan)
    with pytest.raises(UsageError, match="untargeted"):
        worst_case(digits_model, x, y, Linf(0.1).targeted(), ["pgd"])


def test_the_sandwich_holds_and_closes_on_a_linear_model(
    linear_model: nn.Linear, linear_samples: tuple[Tensor, Tensor]
) -> None:
    x, y = linear_samples
    # In Linf interval bounds and one exact step are both exact for one linear layer: nothing stays open.
    threat = Linf(0.05, bounds=WIDE)
    found = sandwich(linear_model, x, y, threat, worst_case(linear_model, x, y, threat, ["fgm", "pgd"]).held)
    wanted = planes(linear_model, x, y, "linf").amin(1) > 0.05
    assert torch.equal(found.proven, wanted) and torch.equal(found.held, wanted) and found.open == 0
    assert 0 < found.lower.value == found.upper.value < 1  # type: ignore[operator]


@pytest.mark.parametrize("eps", [0.002, 0.01, 0.05])
def test_proof_lies_below_attack_on_a_net(eps: float, digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.test.first(100)
    found = sandwich(digits_model, x, y, Linf(eps), worst_case(digits_model, x, y, Linf(eps), ["fgm", "pgd"]).held)
    assert found.lower.value <= found.upper.value  # type: ignore[operator]
    assert found.open == int(found.held.sum()) - int(found.proven.sum())


def test_a_sample_both_proven_and_broken_is_an_error() -> None:
    proven, held = torch.tensor([True, True, False]), torch.tensor([True, False, True])
    with pytest.raises(ModelError, match=r"1 samples are proven robust and were broken all the same \(places 1\)"):
        between(proven, held)
    # Equal shares hide it: 2 of 3 each. It is the samples that tell.
    assert between(torch.tensor([True, False]), torch.tensor([True, True])).open == 1


def test_evidence_of_a_curve_is_json(fresh_cnn: Callable[..., nn.Module], digits: Data) -> None:
    x, y = digits.test.first(16)
    series = robust_curve(fresh_cnn().eval(), x, y, Linf(0.1), attack="pgd", rounds=4).series("pgd")
    plain = dataclasses.asdict(series)
    assert tuples(json.loads(json.dumps(plain, allow_nan=False))) == tuples(plain)


def tuples(value: Any) -> Any:
    """Return the value with a tuple for each list, at every depth: JSON knows lists alone."""
    if isinstance(value, dict):
        return {name: tuples(one) for name, one in value.items()}
    return tuple(tuples(one) for one in value) if isinstance(value, list | tuple) else value
