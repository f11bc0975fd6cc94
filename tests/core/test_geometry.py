"""Projections against a general solver, linear maximisation against linear and exhaustive search; float64, with a box."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, minimize
from torch import Tensor

from hauberk.core.geometry import MAXIMISE, PROJECT, norms

NORMS = ("linf", "l2", "l1", "l0")


def rooms(n: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Points to project and the room around each sample; a few features are free to one side alone, or frozen."""
    draw = torch.Generator().manual_seed(seed)
    delta = torch.randn(n, d, generator=draw, dtype=torch.float64)
    low = -torch.rand(n, d, generator=draw, dtype=torch.float64)
    high = torch.rand(n, d, generator=draw, dtype=torch.float64)
    low[:, 0], high[:, 1] = 0, 0
    low[:, 2] = high[:, 2] = 0
    return delta, low, high


def nearest(point: np.ndarray, eps: float, low: np.ndarray, high: np.ndarray, norm: str) -> np.ndarray:
    """The nearest point by a general solver; signs are known, so that L1 is linear."""
    sign = np.where(point >= 0, 1.0, -1.0)
    size, room = np.abs(point), np.where(point >= 0, high, -low)
    limit = {
        "l1": {"type": "ineq", "fun": lambda v: eps - v.sum(), "jac": lambda v: -np.ones_like(v)},
        "l2": {"type": "ineq", "fun": lambda v: eps**2 - (v**2).sum(), "jac": lambda v: -2 * v},
    }[norm]
    answer = minimize(
        lambda v: ((v - size) ** 2).sum(), np.minimum(room, eps / len(point)), jac=lambda v: 2 * (v - size), method="SLSQP",
        bounds=[(0, one) for one in room], constraints=[limit], options={"ftol": 1e-13, "maxiter": 500},
    )
    # Status 8: no descent left at this precision, which is the minimum as well.
    assert answer.status in (0, 8)
    return np.asarray(sign * answer.x)


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("eps", [0.05, 0.4, 1.5, 50.0])
def test_projection_is_what_a_solver_finds(norm: str, eps: float) -> None:
    delta, low, high = rooms(12, 7, seed=int(eps * 100))
    ours = PROJECT[norm](delta, torch.full((12,), eps, dtype=torch.float64), low, high)
    for row in range(12):
        wanted = nearest(delta[row].numpy(), eps, low[row].numpy(), high[row].numpy(), norm)
        np.testing.assert_allclose(ours[row].numpy(), wanted, atol=2e-6)
        assert float(norms(ours[row : row + 1], norm)) <= eps + 1e-12


def test_linf_projection_is_the_clamp_to_both() -> None:
    delta, low, high = rooms(5, 9)
    ours = PROJECT["linf"](delta, torch.full((5,), 0.3, dtype=torch.float64), low, high)
    assert torch.equal(ours, delta.clamp(-0.3, 0.3).maximum(low).minimum(high))


@pytest.mark.parametrize("count", [0, 1, 3, 6])
def test_l0_projection_is_the_best_of_all_subsets(count: int) -> None:
    delta, low, high = rooms(8, 6, seed=count)
    ours = PROJECT["l0"](delta, torch.full((8,), float(count), dtype=torch.float64), low, high)
    for row in range(8):
        distances = []
        for subset in itertools.combinations(range(6), count):
            point = torch.zeros(6, dtype=torch.float64)
            point[list(subset)] = delta[row].clamp(low[row], high[row])[list(subset)]
            distances.append(float((point - delta[row]).norm()))
        assert float((ours[row] - delta[row]).norm()) == pytest.approx(min(distances), abs=1e-12)
        assert int((ours[row] != 0).sum()) <= count


@pytest.mark.parametrize("norm", ["linf", "l1"])
@pytest.mark.parametrize("eps", [0.0, 0.2, 1.1, 30.0])
def test_maximum_is_that_of_linear_programming(norm: str, eps: float) -> None:
    slope, low, high = rooms(10, 6, seed=3)
    ours = MAXIMISE[norm](slope, torch.full((10,), eps, dtype=torch.float64), low, high)
    for row in range(10):
        g, lo, hi = slope[row].numpy(), low[row].numpy(), high[row].numpy()
        if norm == "linf":
            best = linprog(-g, bounds=list(zip(np.maximum(lo, -eps), np.minimum(hi, eps), strict=True)))
        else:  # delta = up - down
            ends = [(0, h) for h in hi] + [(0, -low_end) for low_end in lo]
            best = linprog(np.concatenate([-g, g]), A_ub=np.ones((1, 12)), b_ub=[eps], bounds=ends)
        assert float(slope[row] @ ours[row]) == pytest.approx(-best.fun, abs=1e-9)
        assert float(norms(ours[row : row + 1], norm)) <= eps + 1e-12
        assert bool(((ours[row] >= low[row]) & (ours[row] <= high[row])).all())


@pytest.mark.parametrize("eps", [0.0, 0.3, 0.9, 30.0])
def test_l2_maximum_is_what_a_solver_finds(eps: float) -> None:
    slope, low, high = rooms(10, 6, seed=4)
    ours = MAXIMISE["l2"](slope, torch.full((10,), eps, dtype=torch.float64), low, high)
    assert float(norms(ours, "l2").max()) <= eps + 1e-12
    for row in range(10):
        g = slope[row].numpy()
        best = minimize(
            lambda v, g=g: -g @ v, np.zeros(6), jac=lambda v, g=g: -g, method="SLSQP", options={"ftol": 1e-14, "maxiter": 300},
            bounds=list(zip(low[row].numpy(), high[row].numpy(), strict=True)),
            constraints=[{"type": "ineq", "fun": lambda v: eps**2 - v @ v, "jac": lambda v: -2 * v}],
        )
        assert float(slope[row] @ ours[row]) == pytest.approx(-best.fun, abs=1e-6)


@pytest.mark.parametrize("count", [0, 1, 2, 6])
def test_l0_maximum_is_the_best_of_all_subsets(count: int) -> None:
    slope, low, high = rooms(8, 6, seed=5)
    ours = MAXIMISE["l0"](slope, torch.full((8,), float(count), dtype=torch.float64), low, high)
    gain = torch.maximum(slope * low, slope * high)
    for row in range(8):
        best = max(float(gain[row][list(subset)].sum()) for subset in itertools.combinations(range(6), count))
        assert float(slope[row] @ ours[row]) == pytest.approx(best, abs=1e-12)
        assert int((ours[row] != 0).sum()) <= count


def test_without_a_box_the_maximum_is_the_dual_norm() -> None:
    slope, _, _ = rooms(6, 5)
    low, high = torch.full_like(slope, -torch.inf), torch.full_like(slope, torch.inf)
    eps = torch.tensor([0.0, 0.5, 1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    dual = {"linf": slope.abs().sum(1), "l2": slope.norm(dim=1), "l1": slope.abs().amax(1)}
    for norm, size in dual.items():
        reached = (slope * MAXIMISE[norm](slope, eps, low, high)).sum(1)
        torch.testing.assert_close(reached, eps * size, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_an_infinite_radius_leaves_the_box_alone(norm: str) -> None:
    slope, low, high = rooms(6, 5)
    eps = torch.full((6,), torch.inf, dtype=torch.float64)
    corner = torch.where(slope > 0, high, low)
    assert torch.equal(MAXIMISE[norm](slope, eps, low, high), corner)
    assert torch.equal(PROJECT[norm](slope, eps, low, high), slope.clamp(low, high))


@pytest.mark.parametrize("norm", NORMS)
def test_rows_do_not_disturb_each_other(norm: str) -> None:
    delta, low, high = rooms(40, 30, seed=9)
    eps = torch.linspace(0, 3, 40, dtype=torch.float64)
    for table in (PROJECT, MAXIMISE):
        whole = table[norm](delta, eps, low, high)
        alone = torch.cat([table[norm](*(part[i : i + 1] for part in (delta, eps, low, high))) for i in range(40)])
        torch.testing.assert_close(whole, alone, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
def test_the_scale_of_a_gradient_does_not_matter(scale: float) -> None:
    slope, low, high = (part.float() for part in rooms(6, 5))
    eps = torch.full((6,), 0.5)
    for norm in NORMS:
        torch.testing.assert_close(
            MAXIMISE[norm](slope * scale, eps, low, high), MAXIMISE[norm](slope, eps, low, high), rtol=1e-5, atol=1e-6
        )


def test_projecting_twice_changes_nothing_and_points_inside_stay() -> None:
    delta, low, high = rooms(20, 12, seed=2)
    eps = torch.full((20,), 0.7, dtype=torch.float64)
    for norm in NORMS:
        once = PROJECT[norm](delta, eps if norm != "l0" else eps * 6, low, high)
        twice = PROJECT[norm](once, eps if norm != "l0" else eps * 6, low, high)
        torch.testing.assert_close(once, twice, rtol=1e-12, atol=1e-14)


def test_norms_are_the_textbook_ones_and_empty_rows_are_zero() -> None:
    delta = torch.tensor([[3.0, -4.0, 0.0]])
    assert [float(norms(delta, norm)) for norm in ("linf", "l2", "l1", "l0")] == [4, 5, 7, 2]
    assert [float(norms(delta[:, :0], norm)) for norm in NORMS] == [0, 0, 0, 0]
