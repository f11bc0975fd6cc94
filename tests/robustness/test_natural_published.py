"""The nineteen corruptions of CIFAR-10-C and ImageNet-C: their tables, and their values beside a plain transcription.

The transcriptions follow the definitions in float64, on NumPy, SciPy and Pillow; what they draw at random, they take from ours.
"""

from __future__ import annotations

import colorsys
import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from scipy import ndimage
from sklearn.datasets import load_sample_image
from torch import Tensor

from hauberk.core import rng
from hauberk.methods import load_methods
from hauberk.robustness import natural
from hauberk.robustness.natural.blur import copied_from
from hauberk.robustness.natural.draws import Draws
from hauberk.robustness.natural.water import distance, equalised, rim
from hauberk.robustness.natural.weather import diamond_square, ice

Array = npt.NDArray[np.float64]
BYTE = 1 / 255
PUBLISHED = {  # CIFAR-10-C, ImageNet-C
    "gaussian-noise": ((0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot-noise": ((500, 250, 100, 75, 50), (60, 25, 12, 5, 3)),
    "impulse-noise": ((0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27)),
    "speckle-noise": ((0.06, 0.1, 0.12, 0.16, 0.2), (0.15, 0.2, 0.35, 0.45, 0.6)),
    "gaussian-blur": ((0.4, 0.6, 0.7, 0.8, 1), (1, 2, 3, 4, 6)),
    "glass-blur": (
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    ),
    "defocus-blur": (
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)), ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    ),
    "motion-blur": (((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)), ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))),
    "fog": (((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)), ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))),
    "frost": (
        ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
        ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    ),
    "brightness": ((0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": ((0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
    "pixelate": ((0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg": ((80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),
    "saturate": (((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)), ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2))),
    "snow": (
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95), (0.1, 0.2, 1, 0.5, 10, 4, 0.9), (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85), (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8), (0.2, 0.3, 2, 0.5, 12, 4, 0.7), (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65), (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    ),
    "spatter": (
        (
            (0.62, 0.1, 0.7, 0.7, 0.5, 0), (0.65, 0.1, 0.8, 0.7, 0.5, 0), (0.65, 0.3, 1, 0.69, 0.5, 0),
            (0.65, 0.1, 0.7, 0.69, 0.6, 1), (0.65, 0.1, 0.5, 0.68, 0.6, 1),
        ),
        (
            (0.65, 0.3, 4, 0.69, 0.6, 0), (0.65, 0.3, 3, 0.68, 0.6, 0), (0.65, 0.3, 2, 0.68, 0.5, 0),
            (0.65, 0.3, 1, 0.65, 1.5, 1), (0.67, 0.4, 1, 0.65, 1.5, 1),
        ),
    ),
}
ZOOMS = {
    "small": [np.arange(1, end, 0.01) for end in (1.06, 1.11, 1.16, 1.21, 1.26)],
    "large": [np.arange(1, 1.11, 0.01), np.arange(1, 1.16, 0.01), np.arange(1, 1.21, 0.02), np.arange(1, 1.26, 0.02),
              np.arange(1, 1.31, 0.03)],
}
ELASTIC = {  # force, smoothness, reach of the affine step, in pixels
    32: [(0, 0, 2.56), (1.6, 6.4, 2.24), (2.56, 1.92, 1.92), (3.2, 1.28, 1.6), (3.2, 0.96, 0.96)],
    224: [(488, 170.8, 24.4), (488, 19.52, 48.8), (12.2, 2.44, 4.88), (17.08, 2.44, 4.88), (29.28, 2.44, 4.88)],
}
CASES = [(side, severity) for side in (32, 224) for severity in range(1, 6)]


def draws() -> torch.Generator:
    return rng.generator(0, "published")


@pytest.fixture(scope="module")
def photos() -> dict[int, Tensor]:
    """Crops of two real photographs at both sizes, in whole 255ths."""
    made = {}
    pixels = [load_sample_image(name)[100:324, 200:424] for name in ("china.jpg", "flower.jpg")]
    for side in (224, 32):
        small = [np.asarray(Image.fromarray(one).resize((side, side), Image.Resampling.BOX)) for one in pixels]
        made[side] = torch.tensor(np.stack(small)).permute(0, 3, 1, 2).double() / 255
    return made


def level(name: str, side: int, severity: int) -> tuple[float, ...]:
    found: tuple[float, ...] = load_methods().get(name, "corruption").facts["small" if side == 32 else "large"][severity - 1]
    return found


def each(x: Tensor, function: object) -> Tensor:
    """Apply a function of arrays (h, w, c) to every image."""
    done = [function(one.permute(1, 2, 0).numpy()) for one in x]  # type: ignore[operator]
    return torch.tensor(np.stack(done)).permute(0, 3, 1, 2)


def near(found: Tensor, expected: Tensor, within: float = 1e-9) -> None:
    assert float((found - expected.clamp(0, 1)).abs().max()) <= within


def test_the_levels_are_those_of_the_published_benchmarks() -> None:
    for name, (small, large) in PUBLISHED.items():
        for side, table in ((32, small), (224, large)):
            assert [level(name, side, severity) for severity in range(1, 6)] == list(table), name


@pytest.mark.parametrize(("side", "severity"), CASES)
def test_zoom_blur(photos: dict[int, Tensor], side: int, severity: int) -> None:
    factors = ZOOMS["small" if side == 32 else "large"][severity - 1]

    def oracle(image: Array) -> Array:
        total = image.copy()
        for factor in factors:
            crop = math.ceil(side / factor)
            top = (side - crop) // 2
            large = ndimage.zoom(image[top : top + crop, top : top + crop], (factor, factor, 1), order=1)
            trim = (large.shape[0] - side) // 2
            total += large[trim : trim + side, trim : trim + side]
        return total / (len(factors) + 1)

    near(natural.zoom_blur(photos[side], severity), each(photos[side], oracle))


@pytest.mark.parametrize(("side", "severity"), CASES)
def test_defocus_blur(photos: dict[int, Tensor], side: int, severity: int) -> None:
    radius, rim_ = level("defocus-blur", side, severity)
    most, soft = (8, 1) if radius <= 8 else (int(radius), 2)
    line = np.arange(-most, most + 1)
    solid = (line[:, None] ** 2 + line**2 <= radius**2).astype(float)
    taps = np.exp(-np.arange(-soft, soft + 1) ** 2 / (2 * rim_**2))
    taps /= taps.sum()
    kernel = ndimage.correlate(solid / solid.sum(), np.outer(taps, taps), mode="mirror")
    expected = each(photos[side], lambda image: ndimage.correlate(image, kernel[..., None], mode="mirror"))
    near(natural.defocus_blur(photos[side], severity), expected)


@pytest.mark.parametrize(("side", "severity"), CASES)
def test_gaussian_blur(photos: dict[int, Tensor], side: int, severity: int) -> None:
    sigma = level("gaussian-blur", side, severity)
    expected = each(photos[side], lambda image: ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest", truncate=4))
    near(natural.gaussian_blur(photos[side], severity), expected)


@pytest.mark.parametrize("severity", range(1, 6))
def test_glass_blur_copies_neighbours_one_after_the_other(severity: int) -> None:
    """The plain loop over pixels, in bytes as published; two truncations to bytes stay below one of them."""
    x = torch.rand(2, 3, 20, 24, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    sigma, far, times = (int(one) if index else one for index, one in enumerate(level("glass-blur", 32, severity)))
    steps = (Draws(2, draws(), x).uniform(int(times), 2, 20, 24) * 2 * far).long() - far
    for index, image in enumerate(x):
        done = image.permute(1, 2, 0).numpy()
        done = np.uint8(ndimage.gaussian_filter(done, (sigma, sigma, 0), mode="nearest") * 255)
        for turn in range(int(times)):
            for row in range(20 - far, far, -1):
                for column in range(24 - far, far, -1):
                    down, across = steps[index, turn, :, row, column].tolist()
                    done[row, column] = done[row + down, column + across]
        expected = ndimage.gaussian_filter(done / 255, (sigma, sigma, 0), mode="nearest")
        found = natural.glass_blur(x, severity, generator=draws())[index].permute(1, 2, 0).numpy()
        assert np.abs(found - expected).max() <= BYTE + 1e-9


def test_chains_of_copies_are_followed_to_their_ends() -> None:
    """Every pixel copies the one to its right, so that a row becomes its last one; or the one above, which is old."""
    steps = torch.zeros(1, 2, 6, 200, dtype=torch.int64)
    steps[:, 1] = 1
    rows = copied_from(steps, 2).view(6, 200)
    assert rows[3].tolist() == [600, 601, 602] + [799] * 197 and rows[2].tolist() == list(range(400, 600))
    steps[:, 1], steps[:, 0] = 0, -1
    assert copied_from(steps, 2).view(6, 200)[4, 3:199].tolist() == list(range(603, 799))


@pytest.mark.parametrize(("side", "severity"), CASES)
def test_saturate_and_brightness(photos: dict[int, Tensor], side: int, severity: int) -> None:
    x = photos[side].clone()
    x[0, :, 0, :4] = torch.tensor([0.0, 0.5, 1.0, 1e-9]).double()  # gray pixels count as red without saturation
    factor, extra = level("saturate", side, severity)
    light = level("brightness", side, severity)
    coloured, lit = natural.saturate(x, severity), natural.brightness(x, severity)
    places = [(0, 0, column) for column in range(4)] + [(i % 2, (7 * i) % side, (13 * i) % side) for i in range(60)]
    for n, row, column in places:
        hue, saturation, value = colorsys.rgb_to_hsv(*x[n, :, row, column].tolist())
        expected = colorsys.hsv_to_rgb(hue, min(saturation * factor + extra, 1), value)
        assert coloured[n, :, row, column].tolist() == pytest.approx(expected, abs=1e-9)
        expected = colorsys.hsv_to_rgb(hue, saturation, min(value + light, 1))
        assert lit[n, :, row, column].tolist() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("side", "severity"), CASES)
def test_contrast(photos: dict[int, Tensor], side: int, severity: int) -> None:
    kept = level("contrast", side, severity)
    expected = each(photos[side], lambda image: (image - image.mean((0, 1))) * kept + image.mean((0, 1)))
    near(natural.contrast(photos[side], severity), expected)


@pytest.mark.parametrize(("side", "severity"), CASES)
def test_pixelate_is_pillows_box_filter_within_its_rounding(photos: dict[int, Tensor], side: int, severity: int) -> None:
    few = int(side * level("pixelate", side, severity))

    def oracle(image: Array) -> Array:
        small = Image.fromarray(np.uint8(np.round(image * 255))).resize((few, few), Image.Resampling.BOX)
        return np.asarray(small.resize((side, side), Image.Resampling.BOX), dtype=np.float64) / 255

    # Pillow rounds to bytes after each of its passes; enlarging by whole pixels changes nothing.
    near(natural.pixelate(photos[side], severity), each(photos[side], oracle), BYTE + 1e-9)


@pytest.mark.parametrize(("side", "severity"), CASES)
def test_elastic_transform(photos: dict[int, Tensor], side: int, severity: int) -> None:
    x = photos[side][:1]
    force, smooth, affine = ELASTIC[side][severity - 1]
    parameters = natural.sample_parameters("elastic-transform", severity, 1, (side, side), generator=draws())
    assert float(parameters["offsets"].abs().max()) <= affine
    streams = Draws(1, draws(), torch.empty(0, dtype=torch.float64))
    offsets = affine * (2 * streams.uniform(3, 2) - 1)[0].numpy()
    noise = 2 * streams.single().uniform(2, side, side)[0].double().numpy() - 1
    middle, far = side // 2, side // 3
    before = np.array([[middle + far, middle + far], [middle + far, middle - far], [middle - far, middle - far]], float)
    forward = np.linalg.solve(np.c_[before, np.ones(3)], before + offsets).T  # (2, 3), across then down
    back = np.linalg.inv(np.vstack([forward, [0, 0, 1]]))
    row, column = np.mgrid[:side, :side]
    came = np.tensordot(back, np.stack([column, row, np.ones_like(row)]), 1)
    fields = [force * ndimage.gaussian_filter(one, smooth, mode="reflect", truncate=3) if force else 0 * one for one in noise]

    def oracle(image: Array) -> Array:
        planes = []
        for channel in range(3):
            moved = ndimage.map_coordinates(image[..., channel], [came[1], came[0]], order=1, mode="mirror")
            planes.append(ndimage.map_coordinates(moved, [row + fields[1], column + fields[0]], order=1, mode="reflect"))
        return np.stack(planes, -1)

    near(natural.elastic_transform(x, severity, generator=draws()), each(x, oracle), 1e-4)  # the field has the digits of float32


def test_diamond_square_is_the_plain_loop() -> None:
    side, decay = 16, 1.7
    noise = 2 * torch.rand(3, side, side, generator=torch.Generator().manual_seed(2), dtype=torch.float64) - 1
    for index in range(3):
        given = noise[index].numpy()
        height = np.zeros((side, side))
        step, wibble = side, 1.0
        while step >= 2:
            half = step // 2
            for row in range(half, side, step):
                for column in range(half, side, step):
                    corners = [height[(row + a) % side, (column + b) % side] for a in (-half, half) for b in (-half, half)]
                    height[row, column] = sum(corners) / 4 + wibble**2 * given[row, column]
            for row in range(0, side, half):
                for column in range((row + half) % step, side, step):
                    sides = ((half, 0), (-half, 0), (0, half), (0, -half))
                    around = [height[(row + a) % side, (column + b) % side] for a, b in sides]
                    height[row, column] = sum(around) / 4 + wibble**2 * given[row, column]
            step, wibble = half, wibble / decay
        height -= height.min()
        np.testing.assert_allclose(diamond_square(noise, decay)[index], height / height.max(), atol=1e-12)


@pytest.mark.parametrize(("side", "severity"), [(32, 1), (32, 5), (224, 1), (224, 5)])
def test_fog_frost_and_snow_mix_as_published(photos: dict[int, Tensor], side: int, severity: int) -> None:
    x = photos[side]
    weight, decay = level("fog", side, severity)
    size = 32 if side == 32 else 256
    haze = diamond_square(2 * Draws(2, draws(), x).uniform(size, size) - 1, decay)[:, None, :side, :side]
    most = x.amax((1, 2, 3), keepdim=True)
    near(natural.fog(x, severity, generator=draws()), (x + weight * haze) * most / (most + weight))
    kept, weight = level("frost", side, severity)
    crystals = ice(x, Draws(2, draws(), x)) * x.new_tensor([0.86, 0.94, 1.0]).view(3, 1, 1)
    near(natural.frost(x, severity, generator=draws()), kept * x + weight * crystals)
    mean, deviation, zoom, threshold, radius, sigma, kept = level("snow", side, severity)
    streams = Draws(2, draws(), x)
    degrees, fields = -135 + 90 * streams.uniform(), mean + deviation * streams.normal(1, side, side)
    for index in range(2):
        crop = math.ceil(side / zoom)
        top = (side - crop) // 2
        flakes = ndimage.zoom(fields[index, 0, top : top + crop, top : top + crop].numpy(), zoom, order=1)
        trim = (flakes.shape[0] - side) // 2
        flakes = flakes[trim : trim + side, trim : trim + side]
        flakes = np.clip(np.where(flakes < threshold, 0, flakes), 0, 1)
        weights = np.exp(-np.arange(2 * int(radius) + 1) ** 2 / (2 * sigma**2))
        turn, fallen = math.radians(float(degrees[index])), np.zeros((side, side))
        rows, columns = np.mgrid[:side, :side]
        for step, share in enumerate(weights / weights.sum()):
            down, across = math.ceil(step * math.sin(turn) - 0.5), math.ceil(step * math.cos(turn) - 0.5)
            fallen += share * flakes[np.clip(rows + down, 0, side - 1), np.clip(columns + across, 0, side - 1)]
        image = x[index].permute(1, 2, 0).numpy()
        gray = (image @ [0.299, 0.587, 0.114])[..., None]
        white = kept * image + (1 - kept) * np.maximum(image, gray * 1.5 + 0.5)
        expected = white + (fallen + np.rot90(fallen, 2))[..., None]
        found = natural.snow(x, severity, generator=draws())[index].permute(1, 2, 0).numpy()
        assert np.abs(found - np.clip(expected, 0, 1)).max() <= BYTE + 1e-9


def test_synthetic_ice_is_ice_like() -> None:
    """As bright as photographs of ice on average, with strong contrast, and different for every image."""
    x = torch.zeros(4, 3, 224, 224)
    texture = ice(x, Draws(4, draws(), x))
    assert 0.3 < float(texture.mean()) < 0.7
    assert bool((texture.std((1, 2, 3)) > 0.1).all())
    assert float((texture[0] - texture[1]).abs().mean()) > 0.05


@pytest.mark.parametrize(("side", "severity"), [(32, 4), (32, 5), (224, 4), (224, 5)])
def test_mud(photos: dict[int, Tensor], side: int, severity: int) -> None:
    x = photos[side]
    mean, deviation, smooth, threshold, soft, _ = level("spatter", side, severity)
    noise = mean + deviation * Draws(2, draws(), x).normal(1, side, side).numpy()
    for index in range(2):
        liquid = ndimage.gaussian_filter(noise[index, 0], smooth, mode="nearest", truncate=4)
        cover = ndimage.gaussian_filter((liquid > threshold).astype(float), soft, mode="nearest", truncate=4)
        cover = np.where(cover < 0.8, 0, cover)[..., None]
        expected = x[index].permute(1, 2, 0).numpy() * (1 - cover) + cover * np.array([63, 42, 20]) / 255
        found = natural.spatter(x, severity, generator=draws())[index].permute(1, 2, 0).numpy()
        assert np.abs(found - expected).max() < 1e-9


def test_water_is_brighter_only_where_there_are_drops(photos: dict[int, Tensor]) -> None:
    for side, severity in ((32, 3), (224, 1), (224, 3)):
        x = photos[side] * 0
        mean, deviation, smooth, threshold, strength, _ = level("spatter", side, severity)
        noise = mean + deviation * Draws(2, draws(), x).normal(1, side, side).numpy()
        liquid = np.stack([ndimage.gaussian_filter(one[0], smooth, mode="nearest", truncate=4) for one in noise])
        found = natural.spatter(x, severity, generator=draws())
        wet = torch.tensor(liquid >= threshold)
        assert bool((found.amax(1)[~wet] == 0).all())
        # The brightest drop of each image has the strength of the table, in the colour of shallow water.
        assert found[:, 1].amax((1, 2)).tolist() == pytest.approx([strength * 238 / 255] * 2)
        torch.testing.assert_close(found[:, 0] * 238, found[:, 1] * 175)
        torch.testing.assert_close(found[:, 1], found[:, 2])


def test_the_steps_towards_water_are_exact() -> None:
    mask = torch.rand(2, 1, 40, 50, generator=torch.Generator().manual_seed(3)) < 0.002
    mask[:, :, 3, 4] = True
    expected = np.stack([ndimage.distance_transform_edt(~one[0].numpy()) for one in mask])
    np.testing.assert_allclose(distance(mask)[:, 0], np.minimum(expected, 20), atol=1e-5)
    depth = torch.tensor([0.0, 0, 0, 3, 3, 20, 20, 20]).view(1, 1, 2, 4)
    assert equalised(depth).flatten().tolist() == [0, 0, 0, 102, 102, 255, 255, 255]  # 2 of 5 are up to 3, all up to 20
    assert equalised(torch.full((1, 1, 2, 2), 7.0)).flatten().tolist() == [7] * 4
    film = torch.zeros(1, 1, 9, 9)
    film[..., 3:6, 2:7] = 200
    found = rim(film)[0, 0].int()
    # A box has a closed rim, one pixel thin on its straight sides, and nothing elsewhere.
    assert found[:2].sum() == found[7:].sum() == found[:, 0].sum() == found[:, 8].sum() == 0
    assert found[:, 4].sum() == 2 and found[4].sum() == 2
