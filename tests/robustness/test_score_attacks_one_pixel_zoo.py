"""One pixel beside the trial of all pixels, and ZOO beside the closed form of its distance."""

from __future__ import annotations

import math

import torch
from closed_form import least_distance
from torch import Tensor, nn

from hauberk import L0, L2, Data
from hauberk.robustness.attack import one_pixel, zoo


def test_one_pixel_finds_what_trying_all_pixels_finds(digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.test.first(80)
    z = one_pixel(digits_model, x, y, L0(1))
    assert int((z != x).flatten(1).sum(1).max()) <= 1
    # The oracle: every pixel at eleven values.
    broken = []
    for image, label in zip(x, y, strict=True):
        tried = image.expand(64 * 11, -1, -1, -1).clone().flatten(1)
        tried[torch.arange(64 * 11), torch.arange(64).repeat(11)] = torch.linspace(0, 1, 11).repeat_interleave(64)
        broken.append(bool((digits_model(tried.view(-1, 1, 8, 8)).argmax(1) != label).any()))
    found = digits_model(z).argmax(1) != y
    oracle = torch.tensor(broken)
    assert int((oracle & ~found).sum()) <= 1 and int(oracle.sum()) >= 5


def test_a_pixel_of_a_colour_image_is_all_its_channels() -> None:
    class Colours(nn.Module):  # the label turns where one pixel is white in all three channels
        def forward(self, z: Tensor) -> Tensor:
            white = z.amin(1).flatten(1).amax(1)
            return torch.stack([0.8 - white, white - 0.8], 1)

    x = torch.full((10, 3, 6, 6), 0.3)
    y = torch.zeros(10, dtype=torch.long)
    z = one_pixel(Colours(), x, y, L0(3))
    changed = (z != x).any(1).flatten(1).sum(1)
    assert bool((Colours()(z).argmax(1) == 1).all()) and changed.tolist() == [1] * 10
    z = one_pixel(Colours(), x, y, L0(2), queries=200)  # two features are no pixel
    assert bool((Colours()(z).argmax(1) == 0).all()) and int((z != x).flatten(1).sum(1).max()) <= 2


def test_zoo_comes_as_near_as_the_closed_form(linear_model: nn.Linear, linear_samples: tuple[Tensor, Tensor]) -> None:
    x, plane = linear_samples[0][:12], nn.Linear(20, 2).double()
    with torch.no_grad():
        plane.weight.copy_(linear_model.weight[:2])
        plane.bias.copy_(-linear_model.weight[:2] @ torch.full((20,), 0.5, dtype=torch.float64))
    y = plane(x).argmax(1)
    ratio = (zoo(plane, x, y, L2(math.inf), queries=3000) - x).norm(dim=1) / least_distance(plane, x, y, "l2")
    assert float(ratio.min()) >= 1 - 1e-9 and float(ratio.median()) <= 1.05 and float(ratio.max()) <= 1.25
