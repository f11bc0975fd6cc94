"""Attacks of minimum norm beside the exact least distance of a small ReLU net, found by going through all its linear regions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from closed_form import sizes, won
from scipy.optimize import linprog, nnls
from torch import Tensor, nn

from hauberk import Threat
from hauberk.robustness import attack as attacks

WIDTH, HIDDEN, CLASSES, SAMPLES = 4, 6, 3, 24
# How far the median may lie above the exact one: those that stop at the first success are near, the others at it.
MEDIANS = {
    "l2": {
        "alma": 1.0001, "brendel_bethge": 1.0001, "carlini_wagner": 1.002, "ddn": 1.0001, "fmn": 1.0001, "lbfgs": 1.0001,
        "pdpgd": 1.0001, "superdeepfool": 1.002, "deepfool": 1.005, "newton_fool": 1.06,
    },
    "linf": {"brendel_bethge": 1.0001, "carlini_wagner": 1.005, "fmn": 1.0001, "pdpgd": 1.0001, "deepfool": 1.005},
}


class Net(nn.Module):
    """One hidden layer of ReLUs: 64 regions at most, in each of which the logits are linear."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(3)
        self.first, self.last = nn.Linear(WIDTH, HIDDEN).double(), nn.Linear(HIDDEN, CLASSES).double()
        with torch.no_grad():
            for part in (self.first, self.last):
                part.weight.copy_(torch.randn(part.weight.shape, generator=draw, dtype=torch.float64))
            self.first.bias.copy_(-self.first.weight @ torch.rand(WIDTH, generator=draw, dtype=torch.float64))
            self.last.bias.zero_()
            inputs = torch.rand(500, WIDTH, generator=draw, dtype=torch.float64)
            self.last.bias.copy_(-self(inputs).mean(0))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu())


def least(net: Net, point: np.ndarray, label: int, norm: str) -> float:
    """Return the least size of a change in [0, 1] that gives another label at least the logit of `label`."""
    first, shift = net.first.weight.detach().numpy(), net.first.bias.detach().numpy()
    last, end = net.last.weight.detach().numpy(), net.last.bias.detach().numpy()
    found = math.inf
    for pattern in itertools.product((0.0, 1.0), repeat=HIDDEN):
        on = np.array(pattern)
        sign = 2 * on - 1
        slope, offset = (last * on) @ first, (last * on) @ shift + end
        for other in set(range(CLASSES)) - {label}:
            # rows @ change >= ends: the region, the other label, the box
            rows = np.vstack([sign[:, None] * first, slope[other] - slope[label], np.eye(WIDTH), -np.eye(WIDTH)])
            gap = (slope[label] - slope[other]) @ point + offset[label] - offset[other]
            ends = np.concatenate([-sign * (first @ point + shift), [gap], -point, point - 1])
            found = min(found, _shortest(rows, ends, norm))
    return found


def _shortest(rows: np.ndarray, ends: np.ndarray, norm: str) -> float:
    """Return the least norm of a change with rows @ change >= ends; infinite where there is none."""
    if norm == "l2":  # least distance programming (Lawson and Hanson 1974, chapter 23) by nonnegative least squares
        target = np.append(np.zeros(WIDTH), 1.0)
        matrix = np.vstack([rows.T, ends])
        rest = matrix @ nnls(matrix, target)[0] - target
        if np.linalg.norm(rest) < 1e-9:
            return math.inf
        change = -rest[:-1] / rest[-1]
        return float(np.linalg.norm(change)) if bool((rows @ change >= ends - 1e-7).all()) else math.inf
    above = np.ones((WIDTH, 1))
    both = np.vstack([
        np.hstack([-rows, np.zeros((len(rows), 1))]), np.hstack([np.eye(WIDTH), -above]), np.hstack([-np.eye(WIDTH), -above]),
    ])
    limits = np.concatenate([-ends, np.zeros(2 * WIDTH)])
    answer = linprog(np.append(np.zeros(WIDTH), 1.0), A_ub=both, b_ub=limits, bounds=[(None, None)] * WIDTH + [(0, None)])
    return float(answer.fun) if answer.status == 0 else math.inf


@pytest.fixture(scope="module")
def case() -> tuple[Net, Tensor, Tensor, dict[str, Tensor]]:
    """The net, samples, their labels, and the exact least distances by norm."""
    net = Net().eval()
    x = torch.rand(SAMPLES, WIDTH, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    y = net(x).argmax(1)
    exact = {
        norm: torch.tensor([least(net, *pair, norm) for pair in zip(x.numpy(), y.tolist(), strict=True)], dtype=torch.float64)
        for norm in MEDIANS
    }
    return net, x, y, exact


@pytest.mark.slow  # tries the oracle itself; what it is asked about is tried by default
def test_the_oracle_agrees_with_a_search_of_random_points(case: tuple[Net, Tensor, Tensor, dict[str, Tensor]]) -> None:
    net, x, y, exact = case
    cloud = torch.rand(200_000, WIDTH, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    with torch.no_grad():
        labels = net(cloud).argmax(1)
    for i in range(4):
        others = cloud[labels != y[i]]
        for norm, distances in exact.items():
            nearest = float(sizes(others, x[i].expand_as(others), norm).min())
            assert 1.0 <= nearest / float(distances[i]) <= 1 + 0.08 / float(distances[i])


@pytest.mark.parametrize(("norm", "name"), [(norm, name) for norm, names in MEDIANS.items() for name in names])
def test_never_below_the_exact_distance_and_close_to_it(
    norm: str, name: str, case: tuple[Net, Tensor, Tensor, dict[str, Tensor]]
) -> None:
    net, x, y, exact = case
    function: Callable[..., Tensor] = getattr(attacks, name)
    z = function(net, x, y, Threat(norm, math.inf, bounds=(0.0, 1.0)))
    reached = won(net, z, y)
    ratio = torch.where(reached, sizes(z, x, norm) / exact[norm], math.inf)
    assert float(ratio.min()) >= 1 - 1e-6  # what the solvers leave open
    assert float(ratio.median()) <= MEDIANS[norm][name], ratio
    # With so few neurons there are places from where every slope leads away from the boundary.
    assert int((~reached).sum()) <= 4
