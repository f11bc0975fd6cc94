"""Least distances of a linear model inside the box, by solvers that share nothing with the attacks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.optimize import brentq, linprog
from torch import Tensor, nn

from hauberk import Threat


def least_distance(model: nn.Linear, x: Tensor, y: Tensor, norm: str, targeted: bool = False) -> Tensor:
    """Return the distance from each x, shape (n, d), in [0, 1] to the nearest allowed point of another label (or of label y)."""
    weight, bias = model.weight.detach().numpy(), model.bias.detach().numpy()
    found = []
    for point, label in zip(x.numpy(), y.tolist(), strict=True):
        gap = point @ weight.T + bias
        others = [k for k in range(len(bias)) if k != label]
        if targeted:
            found.append(_least(norm, point, weight[label] - weight[others], gap[others] - gap[label]))
        else:
            found.append(min(_least(norm, point, (weight[k] - weight[label])[None], gap[label, None] - gap[k]) for k in others))
    return torch.tensor(found, dtype=torch.float64)


def _least(norm: str, point: np.ndarray, slopes: np.ndarray, needs: np.ndarray) -> float:
    """Return the least size of a change with slopes @ change >= needs that stays in [0, 1]."""
    width = len(point)
    if norm in ("l1", "linf"):  # change = up - down, with one more variable above all of them for Linf
        both = np.hstack([-slopes, slopes])
        room = [(0, 1 - one) for one in point] + [(0, one) for one in point]
        if norm == "l1":
            return float(_solved(np.ones(2 * width), both, -needs, room))
        above = np.hstack([np.eye(width), np.eye(width), -np.ones((width, 1))])
        rows = np.vstack([np.hstack([both, np.zeros((len(needs), 1))]), above])
        cost = np.append(np.zeros(2 * width), 1)
        return float(_solved(cost, rows, np.append(-needs, np.zeros(width)), [*room, (0, None)]))
    assert len(slopes) == 1, "one plane alone for L2 and L0"
    slope, need = slopes[0], float(needs[0])
    gains = np.where(slope > 0, slope * (1 - point), -slope * point)
    if gains.sum() < need:
        return np.inf
    if norm == "l0":  # greedy: the features that gain most
        return float(np.searchsorted(np.sort(gains)[::-1].cumsum(), need) + 1)

    def change(scale: float) -> np.ndarray:
        return np.clip(scale * slope, -point, 1 - point)

    if need <= 0:
        return 0.0
    far = 1.0
    while change(far) @ slope < need and far < 1e9:
        far *= 2
    return float(np.linalg.norm(change(brentq(lambda scale: change(scale) @ slope - need, 0, far, xtol=1e-13))))


def _solved(cost: np.ndarray, rows: np.ndarray, ends: np.ndarray, room: list) -> float:
    answer = linprog(cost, A_ub=rows, b_ub=ends, bounds=room, method="highs")
    return answer.fun if answer.status == 0 else np.inf


def sizes(z: Tensor, x: Tensor, norm: str) -> Tensor:
    """Return the distances of z from x, shape (n,)."""
    delta = (z.double() - x.double()).flatten(1).abs()
    if norm == "l0":
        return (delta > 0).sum(1).double()
    return {"linf": delta.amax(1), "l2": delta.square().sum(1).sqrt(), "l1": delta.sum(1)}[norm]


def won(model: nn.Module, z: Tensor, y: Tensor) -> Tensor:
    """Return which z are not labelled y, shape (n,)."""
    with torch.no_grad():
        return model(z).argmax(1) != y


def median(model: nn.Module, z: Tensor, x: Tensor, y: Tensor, norm: str) -> float:
    """Return the median distance, where points that do not change the answer lie infinitely far."""
    return float(torch.where(won(model, z, y), sizes(z, x, norm), torch.inf).median())


def check_closed_form(
    attack: Callable[..., Tensor], model: nn.Linear, x: Tensor, y: Tensor, norm: str, worst: float = 1.05
) -> None:
    """Assert that all distances lie within a factor `worst` of the least, and that one sample alone fares as in the batch.

    Samples of a wrong label have to come back as they are.
    """
    least, free = least_distance(model, x, y, norm), Threat(norm, np.inf)
    z = attack(model, x, y, free)
    assert bool(won(model, z, y).all())
    ratio = sizes(z, x, norm) / least
    assert float(ratio.min()) >= 1 - 1e-6 and float(ratio.max()) <= worst, ratio
    alone = torch.cat([attack(model, x[i : i + 1], y[i : i + 1], free) for i in range(6)])
    torch.testing.assert_close(alone, z[:6], rtol=0, atol=1e-9)
    assert torch.equal(attack(model, x, (y + 1) % 4, free), x)
