"""Colour attacks: hue and saturation against colorsys, curves in closed form."""

from __future__ import annotations

import colorsys

import pytest
import torch
from torch import Tensor, nn

from hauberk import Target
from hauberk.core.errors import UsageError
from hauberk.core.rng import generator
from hauberk.robustness.attack.physical import colour_curve, colour_shift
from hauberk.robustness.attack.physical.colour import bent, recoloured


def picture(n: int = 1, side: int = 12) -> Tensor:
    return torch.rand(n, 3, side, side, generator=generator(2, "picture", n), dtype=torch.float64)


@pytest.mark.parametrize(("turn", "fill"), [(0.0, 0.0), (0.3, 0.0), (-0.45, 0.2), (0.5, -0.6), (0.9, 1.0)])
def test_hue_and_saturation_are_those_of_colorsys(turn: float, fill: float) -> None:
    x = picture()
    x[0, :, 0] = torch.tensor([0.4, 0.4, 0.4], dtype=torch.float64)[:, None]  # gray has no hue to fill
    x[0, :, 1], x[0, :, 2] = 0.0, 1.0
    seen = recoloured(x, torch.full((1, 1, 1, 1), turn, dtype=torch.float64), torch.full((1, 1, 1, 1), fill, dtype=torch.float64))
    for row in range(12):
        for column in range(12):
            hue, saturation, value = colorsys.rgb_to_hsv(*x[0, :, row, column].tolist())
            filled = min(max(saturation + fill, 0.0), 1.0) if saturation else 0.0
            expected = colorsys.hsv_to_rgb((hue + turn) % 1, filled, value)
            torch.testing.assert_close(seen[0, :, row, column], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


def test_a_third_of_the_circle_changes_places_of_the_channels() -> None:
    x = picture()
    third = torch.full((1, 1, 1, 1), 1 / 3, dtype=torch.float64)
    torch.testing.assert_close(recoloured(x, third, torch.zeros(1, 1, 1, 1).double()), x.roll(1, 1), rtol=0, atol=1e-12)


class Redness(nn.Module):
    """Label 1 where green outweighs red by the margin."""

    def __init__(self, least: float = 0.0) -> None:
        super().__init__()
        self.least = least

    def forward(self, x: Tensor) -> Tensor:
        gap = (x[:, 1] - x[:, 0]).mean((1, 2)) - self.least
        return torch.stack([-gap, gap], 1)


def test_a_hue_that_crosses_the_border_is_found_and_the_value_stays() -> None:
    x = picture(30)
    x[:, 0] = 0.5 + x[:, 0] / 2
    x[:, 1] /= 2
    y = torch.zeros(30, dtype=torch.long)
    target = Target(Redness())
    z = colour_shift(target, x, y)
    assert bool((Redness()(z).argmax(1) == 1).all()) and target.ledger.queries < 30 * 20
    torch.testing.assert_close(z.amax(1), x.amax(1), rtol=0, atol=1e-9)  # hue and saturation leave the value alone
    frozen = colour_shift(Target(Redness()), x, y, hue=0.0, saturation=0.0, tries=3)
    torch.testing.assert_close(frozen, x, rtol=0, atol=1e-12)


def test_gray_pictures_change_in_light_and_contrast_alone() -> None:
    class Bright(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            gap = x.mean((1, 2, 3)) - 0.6
            return torch.stack([-gap, gap], 1)

    x = picture(10)[:, :1] * 0.4 + 0.3  # of mean .5
    y = torch.zeros(10, dtype=torch.long)
    assert torch.equal(colour_shift(Bright(), x, y, tries=20), x.clone())
    z = colour_shift(Bright(), x, y, brightness=0.25)
    change = (z - x).flatten(1)
    assert bool((z.mean((1, 2, 3)) > 0.6).all())
    # One number is added to all pixels, and mild tries come first: it is little more than what is needed.
    torch.testing.assert_close(change, change[:, :1].expand_as(change), rtol=0, atol=1e-12)
    assert float((change[:, 0] - (0.6 - x.mean((1, 2, 3)))).max()) < 0.1


def test_a_curve_is_a_straight_line_between_its_knots() -> None:
    unit = torch.tensor([0.0, 0.1, 0.5, 0.75, 1.0], dtype=torch.float64).view(1, 1, 1, 5)
    curve = torch.tensor([[[0.0, 0.2, -0.4]]], dtype=torch.float64)
    torch.testing.assert_close(bent(unit, curve).flatten(), torch.tensor([0.0, 0.04, 0.2, -0.1, -0.4], dtype=torch.float64))


def test_curves_on_a_linear_model_go_as_far_as_they_may() -> None:
    x = picture(8)
    y = torch.zeros(8, dtype=torch.long)
    z = colour_curve(Redness(least=10.0), x, y, eps=0.07)  # out of reach, so that nobody leaves early
    # Green rises and red falls by eps at every value, blue stays.
    expected = torch.stack([x[:, 0] - 0.07, x[:, 1] + 0.07, x[:, 2]], 1).clamp(0, 1)
    torch.testing.assert_close(z, expected, rtol=0, atol=1e-12)


def test_equal_colours_stay_equal_and_no_value_moves_far() -> None:
    draw = generator(0, "levels")
    x = torch.randint(0, 6, (6, 3, 10, 10), generator=draw) / 5.0
    net = nn.Sequential(nn.Flatten(), nn.Linear(300, 40), nn.Tanh(), nn.Linear(40, 3))
    with torch.no_grad():
        for part in net.parameters():
            part.copy_(torch.randn(part.shape, generator=draw) * 0.2)
        y = net(x).argmax(1)
    z = colour_curve(net, x, y, eps=0.1)
    assert float((z - x).abs().max()) <= 0.1 + 1e-6 and not torch.equal(z, x)
    for image, changed in zip(x, z, strict=True):
        for before, after in zip(image, changed, strict=True):
            for level in before.unique():
                values = after[before == level]
                assert float(values.max() - values.min()) == 0


@pytest.mark.parametrize("options", [{"hue": 0.7}, {"saturation": -0.1}, {"contrast": 2.0}])
def test_options_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        colour_shift(Redness(), picture(), torch.zeros(1, dtype=torch.long), **options)
    with pytest.raises(UsageError, match="eps"):
        colour_curve(Redness(), picture(), torch.zeros(1, dtype=torch.long), eps=2.0)
