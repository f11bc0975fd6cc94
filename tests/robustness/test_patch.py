"""Patches: placement against plain indexing, the mask, the closed form on a linear model, and unseen digits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from hauberk import Data, Linf
from hauberk.core.errors import UsageError
from hauberk.core.rng import generator
from hauberk.core.threat import Patch
from hauberk.robustness.attack.physical import adversarial_patch
from hauberk.robustness.attack.physical.transformations import Pose, paste, view


def drawn(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=generator(3, *shape), dtype=torch.float64)


@pytest.mark.parametrize(("top", "left"), [(0, 0), (3, 5), (6, 4)])
def test_a_patch_that_lies_straight_is_a_plain_assignment(top: int, left: int) -> None:
    x, pattern = drawn(2, 3, 11, 9), drawn(3, 5, 4)
    pose = Pose.of(x, down=top + 2.5 - 5.5, right=left + 2.0 - 4.5)
    expected = x.clone()
    expected[:, :, top : top + 5, left : left + 4] = pattern
    torch.testing.assert_close(paste(pattern, x, pose, torch.zeros(1)), expected, rtol=0, atol=1e-12)


def test_a_quarter_turn_is_rot90_and_changes_no_size() -> None:
    x, pattern = torch.zeros(1, 3, 10, 10, dtype=torch.float64), drawn(3, 4, 6)
    seen = paste(pattern, x, Pose.of(x, degrees=90.0), torch.zeros(1))[0]
    torch.testing.assert_close(seen[:, 2:8, 3:7], pattern.rot90(1, (1, 2)), rtol=0, atol=1e-12)
    assert int((seen[0] != 0).sum()) == 24
    picture = drawn(1, 2, 7, 7)
    torch.testing.assert_close(view(picture, Pose.of(picture, degrees=90.0), torch.zeros(1)), picture.rot90(1, (2, 3)))


def test_scale_and_light() -> None:
    x, pattern = torch.zeros(1, 1, 16, 16, dtype=torch.float64), torch.full((1, 8, 8), 0.5, dtype=torch.float64)
    half = paste(pattern, x, Pose.of(x, scale=0.5, light=0.2), torch.zeros(1))
    assert int((half > 0).sum()) == 16 and float(half.max()) == pytest.approx(0.6, abs=1e-12)
    deep = paste(pattern, x, Pose.of(x, light=0.2), torch.full((1,), -1.0, dtype=torch.float64))
    assert float(deep.max()) == pytest.approx(0.8, abs=1e-12)  # lighter, as counted from black


def test_the_gradient_of_a_patch_is_the_area_it_covers() -> None:
    x, pattern = torch.zeros(1, 1, 20, 20, dtype=torch.float64), drawn(1, 6, 6).requires_grad_()
    seen = paste(pattern, x, Pose.of(x, degrees=33.0, scale=1.4, down=1.3, right=-2.2), torch.zeros(1))
    seen.sum().backward()
    # Bilinear weights add up to 1 for every pixel covered.
    assert float(pattern.grad.sum()) == pytest.approx(float((seen.detach() > 0).sum()), abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_a_fixed_patch_on_a_linear_model_takes_the_end_that_its_weight_points_to(seed: int) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).double()
    x = drawn(30, 1, 8, 8)
    with torch.no_grad():
        net[1].weight.copy_(0.05 * torch.randn(2, 64, generator=generator(seed, "weights"), dtype=torch.float64))
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[:, 2:5, 1:7] = True
    y = torch.ones(30, dtype=torch.long)
    made = adversarial_patch(net, x, y, Patch(mask).targeted(), degrees=0, smallest=1, light=0, seed=seed)
    slope = (net[1].weight[1] - net[1].weight[0]).detach().view(1, 8, 8)
    torch.testing.assert_close(made.apply(x)[:, mask], (slope > 0).double()[mask].expand(30, -1), rtol=0, atol=1e-6)
    assert torch.equal(made.apply(x)[:, ~mask], x[:, ~mask])


def test_it_never_leaves_its_mask_however_it_is_turned(digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.test.first(60)
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[:, 1:6, 2:5] = True
    mask[:, 3, 3] = False  # a hole
    made = adversarial_patch(digits_model, x, y, Patch(mask), steps=20, degrees=180)
    for number in range(5):
        z = made.apply(x, generator=generator(number, "place"))
        assert torch.equal(z[:, ~mask], x[:, ~mask]) and not torch.equal(z, x)
    assert made.pattern.shape == (1, 5, 3)


def test_places_are_drawn_over_the_whole_image_and_the_same_at_every_call(digits: Data, digits_model: nn.Module) -> None:
    x = torch.zeros(400, 1, 8, 8)
    made = adversarial_patch(digits_model, x[:20], torch.zeros(20, dtype=torch.long), Linf(math.inf), share=4 / 64, steps=0)
    assert made.pattern.shape == (1, 2, 2)
    z = made.apply(x)
    assert torch.equal(z, made.apply(x)) and not torch.equal(z, made.apply(x, generator=generator(1, "other")))
    touched = (z != 0).any(0)[0]
    assert bool(touched.all())  # somewhere everywhere
    assert 1 <= float((z != 0).flatten(1).sum(1).double().mean()) <= 4


def test_it_beats_a_random_patch_on_digits_never_seen_before(digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.train.first(300)
    unseen, truth = digits.test.first(500)
    rates = []
    for steps in (0, 300):
        made = adversarial_patch(digits_model, x, y, Linf(math.inf), share=0.15, steps=steps)
        with torch.no_grad():
            rates.append(float((digits_model(made.apply(unseen)).argmax(1) != truth).double().mean()))
    assert rates[1] >= rates[0] + 0.1 and rates[1] >= 0.25


def test_every_label_is_reached_from_the_middle(digits: Data, digits_model: nn.Module) -> None:
    x, _ = digits.train.first(300)
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[:, 2:6, 2:6] = True
    for label in (0, 8):
        made = adversarial_patch(
            digits_model, x, torch.full((300,), label), Patch(mask).targeted(), degrees=0, smallest=1, light=0, steps=150
        )
        assert made.rate >= 0.85


@pytest.mark.parametrize("options", [{"share": 1.5}, {"smallest": 0.0}, {"light": -1.0}, {"batch": 0}])
def test_options_out_of_range_are_refused(options: dict[str, float], digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.test.first(4)
    with pytest.raises(UsageError, match=next(iter(options))):
        adversarial_patch(digits_model, x, y, Linf(math.inf), **options)
