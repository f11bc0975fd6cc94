"""Each corruption against SciPy, Pillow, colorsys, or the law its noise should follow."""

from __future__ import annotations

import colorsys
import io
import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage, stats
from torch import Tensor

from hauberk.core import rng
from hauberk.methods import load_methods
from hauberk.robustness import natural
from hauberk.robustness.natural.filters import correlate, motion_kernels, smear

GRAY = torch.full((4, 3, 64, 64), 0.5, dtype=torch.float64)


@pytest.fixture
def image() -> Tensor:
    return torch.rand(2, 3, 20, 28, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def levels(name: str, table: str = "small") -> tuple[float, ...]:
    found: tuple[float, ...] = load_methods().get(name, "corruption").facts[table]
    return found


def draws() -> torch.Generator:
    return rng.generator(0, "oracle")


def channels(x: Tensor, function: object, *arguments: object, **options: object) -> Tensor:
    """Apply a SciPy filter to every channel of every image."""
    done = [[function(one.numpy(), *arguments, **options) for one in image] for image in x]  # type: ignore[operator]
    return torch.tensor(np.array(done))


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_noise_follows_its_law(severity: int) -> None:
    n = GRAY.numel()
    sigma = levels("gaussian-noise")[severity - 1]
    noise = (natural.gaussian_noise(GRAY, severity, generator=draws()) - 0.5).flatten().numpy()
    assert stats.kstest(noise / sigma, "norm").pvalue > 1e-3
    even = (natural.uniform_noise(GRAY, severity, generator=draws()) - 0.5).flatten().numpy()
    reach = math.sqrt(3) * sigma
    assert stats.kstest(even, stats.uniform(-reach, 2 * reach).cdf).pvalue > 1e-3
    photons = levels("shot-noise")[severity - 1]
    counts = natural.shot_noise(GRAY, severity, generator=draws()).flatten().numpy() * photons
    assert np.abs(counts - counts.round()).max() < 1e-6
    assert counts.mean() == pytest.approx(0.5 * photons, abs=5 * math.sqrt(0.5 * photons / n))
    assert counts.var() == pytest.approx(0.5 * photons, rel=5 * math.sqrt(2 / n) + 0.01)
    share = levels("salt-and-pepper")[severity - 1]
    struck = natural.impulse_noise(GRAY, severity, generator=draws())
    for value in (0.0, 1.0):
        hits = int((struck == value).sum())
        assert stats.binomtest(hits, n, share / 2).pvalue > 1e-3
    assert bool(((struck == 0) | (struck == 1) | (struck == 0.5)).all())
    assert not torch.equal(struck[:, 0], struck[:, 1])
    whole = natural.salt_and_pepper(GRAY, severity, generator=draws())
    assert torch.equal(whole[:, :1].expand_as(whole), whole)  # dead pixels are dead in all colours
    assert stats.binomtest(int((whole[:, 0] != 0.5).sum()), n // 3, share).pvalue > 1e-3
    sigma = levels("speckle-noise")[severity - 1]
    speckle = natural.speckle_noise(GRAY / 2, severity, generator=draws()).flatten().numpy()  # a quarter: nothing is clipped
    assert stats.kstest((speckle / 0.25 - 1) / sigma, "norm").pvalue > 1e-3


def test_impulses_are_nested_over_severities() -> None:
    struck = [natural.salt_and_pepper(GRAY, severity, generator=draws()) != GRAY for severity in range(6)]
    assert all(bool((milder <= stronger).all()) for milder, stronger in itertools.pairwise(struck))


@pytest.mark.parametrize("severity", [1, 2, 5])
def test_gaussian_blur_equals_scipy(image: Tensor, severity: int) -> None:
    sigma = levels("gaussian-blur")[severity - 1]
    expected = channels(image, ndimage.gaussian_filter, sigma, mode="nearest", truncate=4)
    torch.testing.assert_close(natural.gaussian_blur(image, severity), expected, rtol=0, atol=1e-12)


def test_motion_blur_is_a_half_gaussian_line_of_whole_pixels(image: Tensor) -> None:
    angles = torch.tensor([0.0, 0.3, -0.7], dtype=torch.float64)
    kernels = motion_kernels(angles, torch.full((3,), 6), torch.full((3,), 2.0))
    reach = kernels.shape[-1] // 2
    weights = np.exp(-np.arange(13) ** 2 / 8)
    for kernel, angle in zip(kernels, angles, strict=True):
        expected = np.zeros((2 * reach + 1, 2 * reach + 1))
        for step, weight in enumerate(weights):
            down, across = (math.ceil(step * turn(float(angle)) - 0.5) for turn in (math.sin, math.cos))
            expected[reach + down, reach + across] += weight / weights.sum()
        np.testing.assert_allclose(kernel, expected, atol=1e-12)
    expected = torch.cat([channels(image[i : i + 1], ndimage.correlate, kernels[i].numpy(), mode="nearest") for i in range(2)])
    torch.testing.assert_close(correlate(image, kernels[:2]), expected, rtol=0, atol=1e-12)
    wide = image.repeat(1, 1, 6, 6)
    torch.testing.assert_close(smear(wide, kernels[:2]), correlate(wide, kernels[:2]), rtol=0, atol=1e-12)  # both ways to the sum
    both = natural.motion_blur_by(image, torch.tensor([30.0, -80.0]), radius=6, sigma=2)
    single = natural.motion_blur_by(image[1:], -80.0, 6, 2)
    torch.testing.assert_close(both[1:], single, rtol=0, atol=1e-12)


def test_motion_blur_draws_directions_within_45_degrees() -> None:
    """A single bright dot is smeared to one side of itself, never more up or down than sideways."""
    dots = torch.zeros(200, 1, 33, 33, dtype=torch.float64)
    dots[:, :, 16, 16] = 1
    smear = natural.motion_blur(dots, 5, generator=draws())[:, 0]
    line = torch.arange(-16, 17, dtype=torch.float64)
    down, right = (smear.sum(2) * line).sum(1), (smear.sum(1) * line).sum(1)
    assert bool((down.abs() <= right.abs() + 1e-9).all()) and float(right.max()) < 0  # pixels are taken from the right
    angles = natural.sample_parameters("motion-blur", 5, 2000, (33, 33), generator=draws())["degrees"]
    assert stats.kstest(angles.numpy(), stats.uniform(-45, 90).cdf).pvalue > 1e-3


def test_brightness_equals_colorsys(image: Tensor) -> None:
    extra = levels("brightness")[3]
    image[0, :, 0, 0] = 0.0  # black turns gray
    found = natural.brightness(image, 4)
    for place in [(0, 0, 0), (0, 3, 4), (1, 19, 27), (1, 7, 7)]:
        n, row, column = place
        hue, saturation, value = colorsys.rgb_to_hsv(*image[n, :, row, column].tolist())
        expected = colorsys.hsv_to_rgb(hue, saturation, min(value + extra, 1))
        assert found[n, :, row, column].tolist() == pytest.approx(expected, abs=1e-12)


def test_contrast_keeps_the_mean_and_scales_the_deviation(image: Tensor) -> None:
    for severity, kept in enumerate(levels("contrast"), 1):
        found = natural.contrast(image, severity)
        torch.testing.assert_close(found.mean((2, 3)), image.mean((2, 3)), rtol=0, atol=1e-12)
        torch.testing.assert_close(found.std((2, 3)), kept * image.std((2, 3)), rtol=0, atol=1e-12)


def test_rotation_equals_scipy_and_a_quarter_turn_is_exact(image: Tensor) -> None:
    square = image[..., :20]
    torch.testing.assert_close(natural.rotate_by(square, 90.0), square.rot90(1, (2, 3)), rtol=0, atol=1e-9)
    expected = channels(image, ndimage.rotate, 17.0, reshape=False, order=1, mode="nearest")
    torch.testing.assert_close(natural.rotate_by(image, 17.0), expected, rtol=0, atol=1e-9)
    found = natural.rotate(image.repeat(20, 1, 1, 1), 4, generator=draws())
    sides = {sign: natural.rotate_by(image, sign * 20.0) for sign in (-1, 1)}
    taken = [sign for one in found.split(2) for row in (0, 1) for sign in sides if torch.allclose(one[row], sides[sign][row])]
    assert len(taken) == 40  # each image was turned by exactly that angle
    assert 8 < taken.count(1) < 32  # to both sides


def test_translation_equals_scipy_and_whole_pixels_are_exact(image: Tensor) -> None:
    found = natural.translate_by(image, torch.tensor([-3.0, 0.0]), torch.tensor([2.0, 0.0]))
    torch.testing.assert_close(found[0, :, 2:, :-3], image[0, :, :-2, 3:], rtol=0, atol=1e-9)
    torch.testing.assert_close(found[1], image[1], rtol=0, atol=1e-9)
    expected = channels(image, ndimage.shift, (1.25, -0.5), order=1, mode="nearest")
    torch.testing.assert_close(natural.translate_by(image, -0.5, 1.25), expected, rtol=0, atol=1e-9)


def test_translation_moves_by_its_share_of_the_shorter_side() -> None:
    dots = torch.zeros(50, 1, 40, 60, dtype=torch.float64)
    dots[:, :, 20, 30] = 1
    for severity, share in enumerate(levels("translate"), 1):
        found = natural.translate(dots, severity, generator=draws())[:, 0]
        down = (found.sum(2) * torch.arange(40)).sum(1) - 20
        right = (found.sum(1) * torch.arange(60)).sum(1) - 30
        assert torch.hypot(down, right).tolist() == pytest.approx([share * 40] * 50, abs=1e-6)


def test_jpeg_is_pillow_image_by_image(image: Tensor) -> None:
    for x, mode in ((image, "RGB"), (image[:, :1], "L")):
        for severity, quality in enumerate(levels("jpeg"), 1):
            found = natural.jpeg(x, severity)
            for index in range(2):
                pixels = (x[index] * 255).round().byte().permute(1, 2, 0).numpy()
                buffer = io.BytesIO()
                Image.fromarray(pixels if mode == "RGB" else pixels[..., 0]).save(buffer, "JPEG", quality=quality)
                expected = np.asarray(Image.open(buffer), dtype=float) / 255
                read = found[index].permute(1, 2, 0).numpy()
                np.testing.assert_allclose(read if mode == "RGB" else read[..., 0], expected, atol=1e-12)


def test_large_images_take_the_large_levels() -> None:
    large = torch.full((1, 3, 65, 200), 0.5, dtype=torch.float64)
    assert float((natural.brightness(large, 1) - large).max()) == pytest.approx(0.1)
    assert float((natural.brightness(large[:, :, :64], 1) - large[:, :, :64]).max()) == pytest.approx(0.05)


def test_gradients_flow_where_they_can(image: Tensor) -> None:
    x = image.clone().requires_grad_(True)
    natural.gaussian_blur(x, 3).sum().backward()
    assert x.grad is not None
    assert float(x.grad.sum()) == pytest.approx(image.numel(), rel=1e-9)  # a blur with repeated borders keeps the total weight
