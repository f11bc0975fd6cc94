"""Stickers: the non-printability score in closed form, and what its weight and that of the change do."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hauberk import Data
from hauberk.core.errors import UsageError
from hauberk.core.kinds import Universal
from hauberk.core.threat import Patch
from hauberk.robustness.attack.physical import non_printability, rp2

PALETTE = torch.tensor([[0.25], [0.6]])


def sticker() -> Tensor:
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[:, :4, :4] = True
    return mask


def score(made: Universal) -> float:
    return float(non_printability(made.pattern.movedim(0, -1), PALETTE)[sticker()[0]].mean())


def test_the_score_is_the_product_of_the_distances() -> None:
    palette = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    gray = torch.full((2, 5, 3), 0.5)
    assert non_printability(gray, palette).shape == (2, 5)
    # (sqrt 0.75)^3 for gray; nought for every colour of the palette; red to blue: 1 * sqrt 2 * sqrt 2
    torch.testing.assert_close(non_printability(gray, palette), torch.full((2, 5), 0.75**1.5))
    assert torch.equal(non_printability(palette, palette), torch.zeros(3))
    torch.testing.assert_close(non_printability(torch.tensor([0.0, 0.0, 1.0]), palette), torch.tensor(1.0 * 2**0.5 * 2**0.5))


def test_the_gradient_leads_to_the_palette_and_ends_there() -> None:
    colour = torch.tensor([[0.25], [0.30], [0.55]], requires_grad=True)
    non_printability(colour, PALETTE).sum().backward()
    # |c - .25| |c - .6|: (c - .25)(.6 - c) between them, with the slope .85 - 2c
    torch.testing.assert_close(colour.grad[1:, 0], torch.tensor([0.25, -0.25]))
    assert colour.grad[0] == 0  # at a colour of the palette it rests


@pytest.mark.parametrize("seed", range(2))
def test_printability_falls_with_its_weight(seed: int, digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.train.first(200)
    free, bound, hard = (
        rp2(digits_model, x, y, Patch(sticker()), palette=PALETTE, printable=weight, steps=150, seed=seed)
        for weight in (0.0, 5.0, 1e4)
    )
    assert score(bound) < score(free) and score(hard) < 0.05 * score(free)
    assert free.rate >= 0.3 and free.rate >= bound.rate - 0.05 and hard.rate <= free.rate


def test_restraint_makes_the_change_smaller(digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.train.first(200)
    changes = []
    for weight in (0.0, 1e3):
        made = rp2(digits_model, x, y, Patch(sticker()), restraint=weight, steps=100)
        changes.append(float((made.apply(x) - x).abs()[:, sticker()].mean()))
    # The least there is: the median of each pixel.
    least = float((x - x.median(0).values).abs()[:, sticker()].mean())
    assert changes[1] < 0.7 * changes[0] and least - 1e-6 <= changes[1]


def test_it_holds_in_views_and_on_digits_never_seen_before(digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.train.first(300)
    unseen, truth = digits.test.first(400)
    made, start = (rp2(digits_model, x, y, Patch(sticker()), steps=steps) for steps in (200, 0))
    with torch.no_grad():
        rates = [float((digits_model(one.apply(unseen)).argmax(1) != truth).double().mean()) for one in (made, start)]
    assert rates[0] >= 0.5 and rates[0] >= rates[1] + 0.2
    z = made.apply(unseen)
    assert torch.equal(z[:, ~sticker()], unseen[:, ~sticker()])
    assert bool((z[:, sticker()] == made.pattern[sticker()]).all())


@pytest.mark.parametrize("palette", [torch.rand(3), torch.rand(4, 3), torch.empty(0, 1), torch.tensor([[float("nan")]])])
def test_palettes_that_are_none_are_refused(palette: Tensor, digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.test.first(4)
    with pytest.raises(UsageError, match="palette"):
        rp2(digits_model, x, y, Patch(sticker()), palette=palette)
