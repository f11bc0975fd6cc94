"""Spatial attacks: the warp against SciPy, the grid against a plain loop over all of it, the draws against what was asked."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from hauberk import Data, Target
from hauberk.core.errors import UsageError
from hauberk.core.rng import generator
from hauberk.robustness.attack.physical import spatial_grid, spatial_random
from hauberk.robustness.attack.physical.spatial import poses
from hauberk.robustness.attack.physical.transformations import Pose, view


def warped(image: np.ndarray, degrees: float, down: float, right: float, mode: str = "grid-constant") -> np.ndarray:
    """One channel turned counter-clockwise about its centre and moved, by SciPy."""
    angle = math.radians(degrees)
    back = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])  # of (row, column), rows downwards
    centre = (np.array(image.shape) - 1) / 2
    offset = centre - back @ (centre + np.array([down, right]))
    return ndimage.affine_transform(image, back, offset, order=1, mode=mode, cval=0.0)


@pytest.mark.parametrize(("degrees", "down", "right"), [(0, 0, 0), (20, 0, 0), (-33, 1.5, -0.7), (90, 2, 1), (171, -3.2, 0.4)])
@pytest.mark.parametrize(("edge", "mode"), [(False, "grid-constant"), (True, "nearest")])
def test_the_view_is_that_of_scipy(degrees: float, down: float, right: float, edge: bool, mode: str) -> None:
    x = torch.rand(2, 3, 9, 12, generator=generator(0, "view"), dtype=torch.float64)
    seen = view(x, Pose.of(x, degrees=degrees, down=down, right=right), torch.zeros(1), edge=edge)
    expected = np.array([[warped(channel, degrees, down, right, mode) for channel in image] for image in x.numpy()])
    np.testing.assert_allclose(seen.numpy(), expected, rtol=0, atol=1e-9)


def test_black_is_the_lowest_value_and_not_zero() -> None:
    x = torch.rand(1, 1, 6, 6, dtype=torch.float64, generator=generator(0, "black"))
    pose = Pose.of(x, degrees=15.0, right=2.0)
    shifted = view(x - 3, pose, torch.full((1,), -3.0, dtype=torch.float64))
    torch.testing.assert_close(shifted, view(x, pose, torch.zeros(1)) - 3, rtol=0, atol=1e-12)


@pytest.mark.parametrize("border", ["black", "edge"])
def test_the_grid_is_exhaustive(border: str, digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.test.first(60)
    model = digits_model
    mode = "grid-constant" if border == "black" else "nearest"
    options = {"degrees": 6.0, "shift": 0.0625, "angles": 5, "shifts": 3}
    z = spatial_grid(model, x, y, border=border, **options)
    with torch.no_grad():
        oracle = model(x).argmax(1) != y
        for turn, down, right in itertools.product((-6, -3, 0, 3, 6), (-0.5, 0, 0.5), (-0.5, 0, 0.5)):
            moved = np.array([[warped(image[0], turn, down, right, mode)] for image in x.double().numpy()])
            oracle |= model(torch.tensor(moved, dtype=torch.float32).clamp(0, 1)).argmax(1) != y
        broken = model(z).argmax(1) != y
    assert torch.equal(broken, oracle) and 0.3 < float(broken.double().mean()) < 1
    assert torch.equal(z[~broken], x[~broken])  # nothing found: the image as it was


class Counting(nn.Module):
    """Gives the label 0 to all, but to images that the rule breaks."""

    def __init__(self, broken: int | None = None) -> None:
        super().__init__()
        self.seen: list[Tensor] = []
        self.broken = broken

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.clone())
        turned = len(self.seen) - 1 == self.broken
        return torch.tensor([[0.0, 1.0]] if turned else [[1.0, 0.0]]).expand(len(x), 2)


def test_an_image_that_holds_costs_the_whole_grid_and_each_point_once() -> None:
    x = torch.rand(1, 1, 10, 10, generator=generator(0, "grid"))
    target = Target(net := Counting())
    spatial_grid(target, x, torch.zeros(1, dtype=torch.long))
    assert target.ledger.queries == 31 * 5 * 5 == len({one.numpy().tobytes() for one in net.seen})
    assert torch.equal(net.seen[0], x)


def test_the_smallest_change_is_tried_first() -> None:
    grid = poses(30.0, 0.1, 7, 5)
    sizes = [(turn / 30) ** 2 + (down / 0.1) ** 2 + (right / 0.1) ** 2 for turn, down, right in grid]
    assert len(grid) == len(set(grid)) == 7 * 5 * 5 - 1 and sizes == sorted(sizes) and sizes[0] == pytest.approx(1 / 9)
    assert poses(0.0, 0.0, 31, 5) == []
    x = torch.rand(1, 1, 10, 10, generator=generator(0, "grid"))
    net = Counting(broken=4)
    target = Target(net)
    z = spatial_grid(target, x, torch.zeros(1, dtype=torch.long))
    assert torch.equal(z, net.seen[4]) and target.ledger.queries == 5  # and not one question more


def test_the_worst_of_the_draws_is_returned(digits: Data, digits_model: nn.Module) -> None:
    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[Tensor] = []

        def forward(self, x: Tensor) -> Tensor:
            self.seen.append(x.clone())
            return digits_model(x)

    x, y = digits.test.first(20)
    for i in range(20):
        net = Watched()
        z = spatial_random(net, x[i : i + 1], y[i : i + 1], tries=8, degrees=10, shift=0.05, seed=i)
        with torch.no_grad():
            logits = digits_model(torch.cat(net.seen))
            own, rest = logits[:, y[i]], logits.clone()
            rest[:, y[i]] = -torch.inf
            margin = own - rest.amax(1)
        assert torch.equal(z[0], torch.cat(net.seen)[int(margin.argmin())])
        assert len(net.seen) == 9 or float(margin[-1]) <= 0


def test_more_draws_break_more_and_the_grid_breaks_most(digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.test.first(300)

    def broken(z: Tensor) -> float:
        with torch.no_grad():
            return float((digits_model(z).argmax(1) != y).double().mean())

    one, ten = (broken(spatial_random(digits_model, x, y, tries=tries)) for tries in (1, 10))
    grid = broken(spatial_grid(digits_model, x, y))
    assert one < ten < grid


def test_options_out_of_range_are_refused(digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.test.first(2)
    for options in ({"border": "mirror"}, {"degrees": 200.0}, {"shift": -0.1}):
        for attack in (spatial_grid, spatial_random):
            with pytest.raises(UsageError, match=next(iter(options))):
                attack(digits_model, x, y, **options)
    with pytest.raises(UsageError, match="angles"):
        spatial_grid(digits_model, x, y, angles=0)
