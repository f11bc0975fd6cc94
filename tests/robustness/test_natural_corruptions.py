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
from hauberk.robustness.natural.blur import correlate, disk, motion_kernels
from hauberk.robustness.natural.geometry import moved, turned

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
    struck = natural.salt_and_pepper(GRAY, severity, generator=draws())
    for value in (0.0, 1.0):
        hits = int((struck == value).sum())
        assert stats.binomtest(hits, n, share / 2).pvalue > 1e-3
    assert bool(((struck == 0) | (struck == 1) | (struck == 0.5)).all())


def test_impulses_are_nested_over_severities() -> None:
    struck = [natural.salt_and_pepper(GRAY, severity, generator=draws()) != GRAY for severity in range(6)]
    assert all(bool((milder <= stronger).all()) for milder, stronger in itertools.pairwise(struck))


@pytest.mark.parametrize("severity", [1, 2, 5])
def test_gaussian_blur_equals_scipy(image: Tensor, severity: int) -> None:
    sigma = levels("gaussian-blur")[severity - 1]
    expected = channels(image, ndimage.gaussian_filter, sigma, mode="nearest", truncate=4)
    torch.testing.assert_close(natural.gaussian_blur(image, severity), expected, rtol=0, atol=1e-12)


def test_defocus_is_correlation_with_a_smoothed_disk(image: Tensor) -> None:
    for severity in (1, 4, 5):
        radius, rim = load_methods().get("defocus-blur", "corruption").facts["small"][severity - 1]
        line = np.arange(-3, 4)
        solid = (line[:, None] ** 2 + line**2 <= radius**2).astype(float)
        taps = np.exp(-np.arange(-1, 2) ** 2 / (2 * rim**2))
        taps = taps / taps.sum()
        soft = ndimage.convolve(solid, np.outer(taps, taps), mode="constant")
        expected = channels(image, ndimage.correlate, soft / soft.sum(), mode="nearest")
        torch.testing.assert_close(natural.defocus_blur(image, severity), expected, rtol=0, atol=1e-12)
    # A radius of 1.5 with a sharp rim covers the nine pixels around the centre alike.
    torch.testing.assert_close(disk(1.5, 0.1)[1:-1, 1:-1], torch.full((3, 3), 1 / 9, dtype=torch.float64), rtol=0, atol=1e-12)


def test_motion_blur_is_correlation_with_a_half_gaussian_line(image: Tensor) -> None:
    radius, sigma = 6, 2.0
    level = motion_kernels(torch.zeros(1, dtype=torch.float64), radius, sigma)[0]
    reach = level.shape[0] // 2
    weights = np.exp(-np.arange(reach + 1) ** 2 / (2 * sigma**2))
    np.testing.assert_allclose(level[reach, reach:], weights / weights.sum(), atol=1e-12)
    assert float(level.sum() - level[reach].sum()) == pytest.approx(0, abs=1e-12)
    angles = torch.tensor([0.3, -0.7], dtype=torch.float64)
    kernels = motion_kernels(angles, radius, sigma)
    torch.testing.assert_close(kernels.sum((1, 2)), torch.ones(2).double(), rtol=0, atol=1e-12)
    line = torch.arange(-reach, reach + 1, dtype=torch.float64)
    down, right = (kernels.sum(2) * line).sum(1), (kernels.sum(1) * line).sum(1)  # bilinear shares keep the centre of mass
    torch.testing.assert_close(torch.atan2(down, right), angles, rtol=0, atol=1e-9)
    mean = float((weights * np.arange(reach + 1)).sum() / weights.sum())
    torch.testing.assert_close(torch.hypot(down, right), torch.full((2,), mean, dtype=torch.float64), rtol=0, atol=1e-9)
    expected = torch.cat([channels(image[i : i + 1], ndimage.correlate, kernels[i].numpy(), mode="nearest") for i in range(2)])
    torch.testing.assert_close(correlate(image, kernels), expected, rtol=0, atol=1e-12)


def test_motion_blur_draws_directions_within_45_degrees() -> None:
    """A single bright dot is smeared to one side of itself, never more up or down than sideways."""
    dots = torch.zeros(200, 1, 33, 33, dtype=torch.float64)
    dots[:, :, 16, 16] = 1
    smear = natural.motion_blur(dots, 5, generator=draws())[:, 0]
    line = torch.arange(-16, 17, dtype=torch.float64)
    down, right = (smear.sum(2) * line).sum(1), (smear.sum(1) * line).sum(1)
    assert bool((down.abs() <= right.abs() + 1e-9).all())
    assert stats.kstest((down / right).atan().rad2deg().numpy(), stats.uniform(-45, 90).cdf).pvalue > 1e-3


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
    torch.testing.assert_close(turned(square, torch.full((2,), 90.0).double()), square.rot90(1, (2, 3)), rtol=0, atol=1e-9)
    expected = channels(image, ndimage.rotate, 17.0, reshape=False, order=1, mode="nearest")
    torch.testing.assert_close(turned(image, torch.full((2,), 17.0).double()), expected, rtol=0, atol=1e-9)
    found = natural.rotate(image.repeat(20, 1, 1, 1), 4, generator=draws())
    sides = {sign: turned(image, torch.full((2,), sign * 20.0).double()) for sign in (-1, 1)}
    taken = [sign for one in found.split(2) for row in (0, 1) for sign in sides if torch.allclose(one[row], sides[sign][row])]
    assert len(taken) == 40  # each image was turned by exactly that angle
    assert 8 < taken.count(1) < 32  # to both sides


def test_translation_equals_scipy_and_whole_pixels_are_exact(image: Tensor) -> None:
    found = moved(image, torch.tensor([2.0, 0.0]).double(), torch.tensor([-3.0, 0.0]).double())
    torch.testing.assert_close(found[0, :, 2:, :-3], image[0, :, :-2, 3:], rtol=0, atol=1e-9)
    torch.testing.assert_close(found[1], image[1], rtol=0, atol=1e-9)
    expected = channels(image, ndimage.shift, (1.25, -0.5), order=1, mode="nearest")
    found = moved(image, torch.full((2,), 1.25).double(), torch.full((2,), -0.5).double())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


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


def test_pixelate_is_the_mean_over_areas(image: Tensor) -> None:
    """Area means by brute force: repeat every pixel until old and new borders fall on the same grid."""
    for severity, share in enumerate(levels("pixelate"), 1):
        expected = image.numpy()
        for axis in (2, 3):
            side = expected.shape[axis]
            few = int(side * share)
            fine = np.repeat(expected, few, axis)  # side * few cells
            small = np.moveaxis(fine, axis, -1).reshape(*np.moveaxis(fine, axis, -1).shape[:-1], few, side).mean(-1)
            back = np.repeat(small, side, -1)
            large = back.reshape(*back.shape[:-1], side, few).mean(-1)
            expected = np.moveaxis(large, -1, axis)
        np.testing.assert_allclose(natural.pixelate(image, severity), expected, atol=1e-12)


def test_the_levels_are_those_of_the_published_benchmarks() -> None:
    """CIFAR-10-C and ImageNet-C, severities 1 to 5."""
    published = {
        "gaussian-noise": ((0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)),
        "shot-noise": ((500, 250, 100, 75, 50), (60, 25, 12, 5, 3)),
        "salt-and-pepper": ((0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27)),
        "brightness": ((0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),
        "contrast": ((0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
        "jpeg": ((80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),
        "gaussian-blur": ((0.4, 0.6, 0.7, 0.8, 1.0), (1, 2, 3, 4, 6)),
    }
    for name, (small, large) in published.items():
        assert levels(name) == small
        assert levels(name, "large") == large


def test_large_images_take_the_large_levels() -> None:
    large = torch.full((1, 3, 65, 200), 0.5, dtype=torch.float64)
    assert float((natural.brightness(large, 1) - large).max()) == pytest.approx(0.1)
    assert float((natural.brightness(large[:, :, :64], 1) - large[:, :, :64]).max()) == pytest.approx(0.05)


def test_gradients_flow_where_they_can(image: Tensor) -> None:
    x = image.clone().requires_grad_(True)
    natural.gaussian_blur(x, 3).sum().backward()
    assert x.grad is not None
    assert float(x.grad.sum()) == pytest.approx(image.numel(), rel=1e-9)  # a blur with repeated borders keeps the total weight
