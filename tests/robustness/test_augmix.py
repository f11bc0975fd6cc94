"""AugMix: its operations against brute force, its mixtures and its loss in closed form, and what it is for."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn
from torch.nn import functional

from hauberk import Data, Schedule, fit
from hauberk.core.errors import DataError, UsageError
from hauberk.methods import load_methods
from hauberk.robustness.defend import augmix
from hauberk.robustness.defend.augmix import OPERATIONS, jensen_shannon, mixed
from hauberk.robustness.evaluate import corrupted_run, corruption_metrics

HELD_OUT = ("defocus-blur", "glass-blur", "motion-blur", "zoom-blur", "contrast", "elastic-transform")


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Six colour images of bytes as shares, 9 by 12, one of them flat."""
    bytes_ = torch.randint(0, 200, (6, 3, 9, 12), generator=torch.Generator().manual_seed(0))
    bytes_[5] = 37
    return bytes_ / 255


def run(name: str, x: Tensor, strength: float, side: int = 0) -> Tensor:
    n = len(x)
    return OPERATIONS[name](x, torch.full((n,), strength, dtype=torch.float64), torch.full((n,), side))


def as_pillow(x: Tensor) -> Image.Image:
    return Image.fromarray((x * 255).round().byte().permute(1, 2, 0).numpy())


def test_autocontrast_posterize_and_solarize_are_those_of_pillow(images: Tensor) -> None:
    """Strength 10 of 10 leaves no bit of 4 and turns all over; 5 leaves 2 bits; the paper's levels reach 3."""
    for index in range(5):
        x, picture = images[index : index + 1], as_pillow(images[index])
        expected = torch.tensor(np.asarray(ImageOps.autocontrast(picture))).permute(2, 0, 1) / 255
        torch.testing.assert_close(run("autocontrast", x, 1)[0], expected, rtol=0, atol=1 / 255 + 1e-6)
        for strength, bits in ((0.1, 4), (2.4, 4), (2.6, 3), (5, 2)):
            expected = torch.tensor(np.asarray(ImageOps.posterize(picture, bits))).permute(2, 0, 1) / 255
            torch.testing.assert_close(run("posterize", x, strength)[0], expected, rtol=0, atol=1e-6)
        threshold = 255 * (1 - 3 / 10)  # 178.5: no byte lies on it
        expected = torch.tensor(np.asarray(ImageOps.solarize(picture, math.ceil(threshold)))).permute(2, 0, 1) / 255
        torch.testing.assert_close(run("solarize", x, 3)[0], expected, rtol=0, atol=1e-6)


def test_equalize_is_the_rank_of_each_pixel(images: Tensor) -> None:
    """Brute force: the share of the pixels above the darkest that are no brighter."""
    found = run("equalize", images, 1)
    for image, made in zip(images[:5], found[:5], strict=True):
        for channel, equal in zip(image.flatten(1), made.flatten(1), strict=True):
            darkest = int((channel == channel.min()).sum())
            expected = [(int((channel <= value).sum()) - darkest) / (len(channel) - darkest) for value in channel]
            torch.testing.assert_close(equal, torch.tensor(expected), rtol=0, atol=1e-6)
    assert torch.equal(found[5], images[5]) and torch.equal(run("autocontrast", images, 1)[5], images[5])


def test_geometry_moves_by_its_share_to_both_sides(images: Tensor) -> None:
    """Strength 10 of 10 moves by a third of the side: 4 of 12 columns, 3 of 9 rows, whole pixels."""
    for side, back in ((0, 1), (1, 0)):
        right = run("translate-x", images, 10, side)
        down = run("translate-y", images, 10, side)
        a, b = (images[..., :-4], right[..., 4:]) if not side else (images[..., 4:], right[..., :-4])
        torch.testing.assert_close(b, a, rtol=0, atol=1e-5)
        a, b = (images[:, :, :-3], down[:, :, 3:]) if not side else (images[:, :, 3:], down[:, :, :-3])
        torch.testing.assert_close(b, a, rtol=0, atol=1e-5)
        smooth = functional.interpolate(images[:, :, :2, :2], size=(40, 40), mode="bicubic").clamp(0, 1)
        for name in ("turn", "shear-x", "shear-y"):
            there = run(name, smooth, 3, side)
            again = run(name, there, 3, back)
            inner = (slice(None), slice(None), slice(10, 30), slice(10, 30))
            assert float((there - smooth)[inner].abs().max()) > 0.01
            assert float((again - smooth)[inner].abs().max()) < 0.02


def test_mixtures_are_convex_sums_of_the_chains() -> None:
    """Operations that add 1 and 10: a chain of one to three steps, weighted and mixed with the image, by hand from its law.

    With one operation that adds 1 to 0, a mixture is (1 - m) times the mean length of the chains: 1/2 times 2 on average.
    """
    x = torch.zeros(4000, 1, 1, 1, dtype=torch.float64)
    add = [lambda z, strength, seeds: z + 1]
    draw = torch.Generator().manual_seed(0)
    found = mixed(x, add, severity=3, shape=(3, 3), alpha=1.0, generator=draw).flatten()
    assert float(found.mean()) == pytest.approx(1.0, abs=0.03)
    assert float(found.min()) >= 0 and float(found.max()) <= 3
    # Chains of one step alone: the value is 1 - m, even over [0, 1], whatever the weights.
    single = mixed(x, add, severity=3, shape=(5, 1), alpha=1.0, generator=draw).flatten().sort().values
    assert float((single - torch.linspace(0, 1, 4000)).abs().max()) < 0.03
    strengths: list[Tensor] = []

    def listen(z: Tensor, strength: Tensor, seeds: Tensor) -> Tensor:
        strengths.append(strength)
        return z

    same = torch.rand(50, 2, 3, 4, generator=draw)
    torch.testing.assert_close(mixed(same, [listen], severity=3, shape=(3, 2), alpha=0.5, generator=draw), same)
    seen = torch.cat(strengths)
    assert [len(strengths), len(strengths[0])] == [2, 150] and 50 < len(strengths[1]) < 100
    assert float(seen.min()) >= 0.1 and float(seen.max()) < 3


def test_divergence_of_answers_in_closed_form() -> None:
    """Alike: 0. Three certain and different answers: log 3. Two halves: the mean divergence from their mean."""
    alike = torch.randn(1, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).expand(3, 5, 4)
    torch.testing.assert_close(jensen_shannon(alike), torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-12)
    certain = 1000 * torch.eye(3, dtype=torch.float64)[:, None]
    assert float(jensen_shannon(certain)) == pytest.approx(math.log(3))
    some = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    p = some.softmax(2)
    middle = torch.distributions.Categorical(p.mean(0)).entropy()
    expected = middle - torch.distributions.Categorical(p).entropy().mean(0)
    torch.testing.assert_close(jensen_shannon(some), expected)


def test_without_weight_it_is_ordinary_training(digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.train.first(20)
    found = augmix(beta=0.0)(digits_model, x, y).detach()
    torch.testing.assert_close(found, functional.cross_entropy(digits_model(x), y).detach())


def test_the_model_sees_the_batch_and_two_mixtures_in_one_pass(digits: Data) -> None:
    x, y = digits.train.first(16)
    seen: list[Tensor] = []

    class Spy(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            seen.append(inputs.clone())
            return super().forward(inputs.flatten(1))

    model = Spy(64, 10)
    value = augmix(severity=5)(model, x, y)
    assert len(seen) == 1 and seen[0].shape == (48, 1, 8, 8) and torch.equal(seen[0][:16], x)
    first, second = seen[0][16:32], seen[0][32:]
    assert not torch.equal(first, second) and not torch.equal(first, x)
    assert float(seen[0].min()) >= 0 and float(seen[0].max()) <= 1
    logits = model(seen.pop())
    expected = functional.cross_entropy(logits[:16], y) + 12 * jensen_shannon(logits.view(3, 16, 10)).mean()
    torch.testing.assert_close(value, expected)


def test_other_bounds_scale_the_same_mixtures(digits: Data) -> None:
    x, y = digits.train.first(12)
    seen: list[Tensor] = []

    class Spy(nn.Linear):
        def forward(self, inputs: Tensor) -> Tensor:
            seen.append(inputs.clone())
            return super().forward(inputs.flatten(1))

    model = Spy(64, 10).double()
    for scaled, bounds in ((x.double(), (0.0, 1.0)), (x.double() * 4 - 3, (-3.0, 1.0))):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(3)
            augmix(bounds=bounds)(model, scaled, y)
    torch.testing.assert_close(seen[1], seen[0] * 4 - 3, rtol=0, atol=1e-9)


def test_no_operation_is_a_corruption_that_tests_by_default(digits: Data) -> None:
    corruptions = {card.name for card in load_methods().cards("corruption")}
    assert not corruptions & set(OPERATIONS) and len(OPERATIONS) == 9
    x, y = digits.train.first(8)
    named = augmix(("gaussian-noise", "turn"), severity=10)(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), x, y)
    assert bool(named.isfinite())


@pytest.mark.slow  # that training works is tried by default, in the conformance suite
def test_answers_hold_better_under_corruptions_never_seen(
    digits: Data, digits_model: nn.Module, fresh_cnn: Callable[..., nn.Module]
) -> None:
    model = fresh_cnn()
    fit(model, digits.train, loss=augmix(), schedule=Schedule(epochs=12, batch_size=64))
    x, y = digits.test.tensors()
    plain, hardened = (corruption_metrics(corrupted_run(net, x, y, names=HELD_OUT)) for net in (digits_model, model))
    assert plain.mean.value is not None and hardened.mean.value is not None and hardened.clean.value is not None
    assert hardened.mean.value > plain.mean.value + 0.015
    assert hardened.clean.value > 0.93


def test_bad_options_are_refused(digits: Data, digits_model: nn.Module) -> None:
    for options in ({"severity": 0}, {"severity": 11}, {"width": 0}, {"depth": 0}, {"alpha": 0.0}, {"beta": -1.0}):
        with pytest.raises(UsageError, match="severity, width"):
            augmix(**options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="solarize"):
        augmix(("solarise",))
    with pytest.raises(DataError, match="channels"):
        augmix()(digits_model, torch.zeros(3, 64), torch.zeros(3, dtype=torch.long))
