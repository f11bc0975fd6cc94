"""Explicit parameters, their automatic draw, and boxes and key points that move with the pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from hauberk.core import rng
from hauberk.core.errors import DataError, UsageError
from hauberk.methods import load_methods
from hauberk.robustness import natural
from hauberk.robustness.natural.contract import RECIPES

load_methods()
PARAMETRIC = sorted(name for name, recipe in RECIPES.items() if recipe.sample is not None)
MOVING = sorted(name for name, recipe in RECIPES.items() if recipe.warp is not None)
SIZE = (60, 80)


def draws() -> torch.Generator:
    return rng.generator(0, "parameters")


@pytest.fixture(scope="module")
def image() -> Tensor:
    """Smooth random colour images, (3, 3, 60, 80), float64."""
    x = torch.rand(3, 3, 60, 80, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return natural.gaussian_blur_by(x, 2.0)


def test_what_has_parameters_and_what_moves() -> None:
    """The fifteen of MindSpore Armour, overexposure, and the elastic transform, whose field moves boxes."""
    assert sorted([
        "translate", "scale", "shear", "rotate", "perspective", "curve", "gaussian-blur", "motion-blur", "gradient-blur",
        "contrast", "gradient-luminance", "uniform-noise", "gaussian-noise", "salt-and-pepper", "natural-noise", "overexposure",
        "elastic-transform",
    ]) == PARAMETRIC
    assert MOVING == ["curve", "elastic-transform", "perspective", "rotate", "scale", "shear", "translate"]


@pytest.mark.parametrize("name", PARAMETRIC)
def test_sampled_parameters_applied_are_the_corruption(image: Tensor, name: str) -> None:
    for severity in (1, 4):
        expected = load_methods().get(name, "corruption").function(image, severity, generator=draws())
        parameters = natural.sample_parameters(name, severity, 3, SIZE, generator=draws())
        assert all(len(value) == 3 and value.dtype == torch.float64 for value in parameters.values())
        found = natural.applied(name, image, parameters, generator=rng.generator(1, "other"))
        if ("noise" in name and name != "natural-noise") or name == "salt-and-pepper":
            assert not torch.equal(found, expected)  # the noise itself is drawn again
        else:
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
        # Drawn one by one from the same generator, they are the same.
        one = draws()
        alone = [natural.sample_parameters(name, severity, 1, SIZE, generator=one) for _ in range(3)]
        for key, value in parameters.items():
            assert torch.equal(torch.cat([part[key] for part in alone]), value)


@pytest.mark.parametrize("name", PARAMETRIC)
def test_explicit_parameters_hold_for_each_image_and_any_range(image: Tensor, name: str) -> None:
    parameters = natural.sample_parameters(name, 3, 3, SIZE, generator=draws())
    whole = natural.applied(name, image, parameters, generator=draws())
    one = draws()
    for index in range(3):
        mine = {key: value[index : index + 1] for key, value in parameters.items()}
        alone = natural.applied(name, image[index : index + 1], mine, generator=one)
        torch.testing.assert_close(whole[index : index + 1], alone, rtol=0, atol=1e-9)
    scaled = natural.applied(name, image * 6 - 2, parameters, generator=draws(), bounds=(-2.0, 4.0))
    torch.testing.assert_close(scaled, whole * 6 - 2, rtol=0, atol=1e-9)


def test_bad_parameters_are_refused(image: Tensor) -> None:
    with pytest.raises(UsageError, match=r"was given \['angle'\].*\['degrees'\]"):
        natural.applied("rotate", image, {"angle": 3.0})
    with pytest.raises(DataError, match="one for each of 3 images"):
        natural.applied("rotate", image, {"degrees": torch.zeros(2)})
    with pytest.raises(DataError, match="finite numbers"):
        natural.rotate_by(image, float("nan"))
    with pytest.raises(UsageError, match="no parameters"):
        natural.sample_parameters("jpeg", 1, 1, SIZE)
    with pytest.raises(UsageError, match=r"no corruption called 'rotat'.*rotate"):
        natural.applied("rotat", image, {})
    with pytest.raises(DataError, match="boxes for 2 images"):
        natural.with_boxes("rotate", image, [torch.zeros(0, 4)] * 2, 1)
    with pytest.raises(DataError, match=r"shape \(k, 4\)"):
        natural.with_boxes("rotate", image, [torch.zeros(1, 2)] * 3, 1)


def test_affine_maps_equal_scipy(image: Tensor) -> None:
    """SciPy maps from the new image to the old, with pixel centres at whole numbers."""
    centre = (np.array(SIZE) - 1) / 2

    def oracle(back: list[list[float]]) -> Tensor:
        planes = [
            ndimage.affine_transform(plane.numpy(), np.array(back), centre - np.array(back) @ centre, order=1, mode="nearest")
            for plane in image.flatten(0, 1)
        ]
        return torch.tensor(np.stack(planes)).view_as(image)

    torch.testing.assert_close(natural.scale_by(image, 0.5, 0.8), oracle([[1 / 0.8, 0], [0, 2]]), rtol=0, atol=1e-9)
    torch.testing.assert_close(natural.shear_by(image, 0.3, 0.0), oracle([[1, 0], [-0.3, 1]]), rtol=0, atol=1e-9)
    torch.testing.assert_close(natural.shear_by(image, 0.0, -0.2), oracle([[1, 0.2], [0, 1]]), rtol=0, atol=1e-9)


def test_perspective_moves_the_corners_where_asked(image: Tensor) -> None:
    still = torch.tensor([[0.0, 0], [80, 0], [80, 60], [0, 60]]).expand(3, -1, -1)
    torch.testing.assert_close(natural.perspective_by(image, still), image, rtol=0, atol=1e-9)
    pushed = natural.perspective_by(image, still + torch.tensor([3.0, -2.0]))
    torch.testing.assert_close(pushed, natural.translate_by(image, 3.0, -2.0), rtol=0, atol=1e-9)
    corners = still + torch.tensor([[4.0, 2], [-6, 5], [-1, -3], [8, -4]])
    there = natural.moved_points("perspective", [still[0]], {"corners": corners[:1]}, SIZE)[0]
    torch.testing.assert_close(there, corners[0], rtol=0, atol=1e-4)


def test_curve_moves_columns_along_a_sine(image: Tensor) -> None:
    found = natural.curve_by(image, waves=2.0, depth=5.0)
    for column in (0, 7, 30, 79):
        down = 5 * math.sin(2 * math.pi * 2 * (column + 0.5) / 80)
        for channel in range(3):
            expected = ndimage.shift(image[0, channel, :, column].numpy(), down, order=1, mode="nearest")
            np.testing.assert_allclose(found[0, channel, :, column], expected, atol=1e-9)
    # Rows on an image turned by its diagonal are columns; gray images are bent like others.
    lying = natural.curve_by(image.mT, 2.0, 5.0, lying=1.0)
    torch.testing.assert_close(lying.mT, found, rtol=0, atol=1e-9)
    torch.testing.assert_close(natural.curve_by(image[:, :1], 2.0, 5.0), found[:, :1], rtol=0, atol=1e-9)


def test_gradient_blur_is_sharp_at_the_spot_and_blurred_in_the_far_corner(image: Tensor) -> None:
    found = natural.gradient_blur_by(image, 4.0, across=0.5 / 80, down=0.5 / 60)
    torch.testing.assert_close(found[..., 0, 0], image[..., 0, 0], rtol=0, atol=1e-9)
    torch.testing.assert_close(found[..., -1, -1], natural.gaussian_blur_by(image, 4.0)[..., -1, -1], rtol=0, atol=1e-9)
    halfway = natural.gradient_blur_by(image, torch.tensor([4.0, 2.0, 0.0]), 0.5, 0.5)
    torch.testing.assert_close(halfway[2], image[2], rtol=0, atol=1e-9)
    torch.testing.assert_close(halfway[1], natural.gradient_blur_by(image[1:2], 2.0)[0], rtol=0, atol=1e-9)


def test_light_falls_off_from_its_place() -> None:
    gray = torch.full((4, 1, 40, 60), 0.5, dtype=torch.float64)
    strength, pattern = torch.tensor([0.8, -0.8, 0.8, -0.4]), torch.tensor([0.0, 0.0, 1.0, 2.0])
    found = natural.gradient_luminance_by(gray, strength, 10.5 / 60, 20.5 / 40, pattern, 0.5)[:, 0]
    assert found[:, 20, 10].tolist() == pytest.approx([0.9, 0.1, 0.9, 0.3])  # the middle: the whole strength
    assert found[:, 20, 25].tolist() == pytest.approx([0.5 + 0.4 / 2, 0.5 - 0.4 / 2, 0.9, 0.5 - 0.2 / 2])  # 15 of 30 pixels away
    assert found[:, 5, 10].tolist() == pytest.approx([0.7, 0.3, 0.7, 0.3])
    assert found[:, 20, 50].tolist() == pytest.approx([0.5, 0.5, 0.9, 0.5])
    drawn = natural.sample_parameters("gradient-luminance", 2, 600, (40, 60), generator=draws())
    assert {0.0, 1.0, 2.0} == set(drawn["pattern"].tolist()) and {-0.3, 0.3} == set(drawn["strength"].tolist())


def test_contrast_exposure_and_spots_in_numbers() -> None:
    x = torch.tensor([0.1, 0.3, 0.5, 0.7]).double().view(1, 1, 2, 2)
    assert natural.contrast_by(x, 0.5, 0.1).flatten().tolist() == pytest.approx([0.35, 0.45, 0.55, 0.65])
    assert natural.overexposure_by(x, 1.0).flatten().tolist() == pytest.approx([0.2, 0.6, 1.0, 1.0])
    # No folding of negative values: they become black.
    assert natural.applied("contrast", x, {"kept": 3.0, "shift": 0.0}).flatten().tolist() == pytest.approx([0, 0.1, 0.7, 1.0])
    blank = torch.zeros(1, 2, 6, 8)
    boxes = torch.tensor([[[1.0, 2, 4, 3], [3, 1, 5, 5], [7, 5, 30, 30]]])
    found = natural.natural_noise_by(blank, boxes, torch.tensor([[0.2, 0.6, 1.0]]))
    expected = torch.zeros(6, 8)
    expected[2:3, 1:4] = 0.2
    expected[1:5, 3:5] = 0.6
    expected[2, 3] = 0.4  # two spots: their mean
    expected[5:, 7:] = 1.0
    torch.testing.assert_close(found[0], expected.expand(2, -1, -1))


def test_noise_of_each_image_has_its_own_strength() -> None:
    gray = torch.full((3, 3, 64, 64), 0.5, dtype=torch.float64)
    sigma = torch.tensor([0.0, 0.02, 0.08])
    found = natural.gaussian_noise_by(gray, sigma, draws()) - 0.5
    assert found.std((1, 2, 3)).tolist() == pytest.approx(sigma.tolist(), rel=0.03, abs=1e-6)
    reach = natural.uniform_noise_by(gray, sigma, draws()) - 0.5
    assert reach.abs().amax((1, 2, 3)).tolist() == pytest.approx(sigma.tolist(), rel=0.01, abs=1e-9)
    struck = natural.salt_and_pepper_by(gray, sigma, draws()) != 0.5
    assert struck.double().mean((1, 2, 3)).tolist() == pytest.approx(sigma.tolist(), rel=0.25, abs=1e-9)


@pytest.mark.parametrize("name", [name for name in MOVING if name != "elastic-transform"])
@pytest.mark.parametrize("severity", [1, 3, 5])
def test_a_dot_follows_its_key_point_within_half_a_pixel(name: str, severity: int) -> None:
    """Soft dots on black, so that their centre of mass can be told to a fraction of a pixel."""
    size, n = (96, 120), 6
    starts = torch.tensor([0.5, 0.5]) + torch.rand(n, 2, generator=torch.Generator().manual_seed(4)) * 0.2 - 0.1
    starts = starts * torch.tensor([size[1], size[0]])
    parameters = natural.sample_parameters(name, severity, n, size, generator=draws())
    ends = natural.moved_points(name, [one[None] for one in starts], parameters, size)
    rows, columns = (torch.arange(side) + 0.5 for side in size)
    squared = (rows[:, None] - starts[:, 1, None, None]) ** 2 + (columns - starts[:, 0, None, None]) ** 2
    dots = torch.exp(-squared / (2 * 1.5**2))[:, None]  # (n, 1, h, w)
    moved = natural.applied(name, dots, parameters)[:, 0].double()
    mass = moved.sum((1, 2))
    down, across = (moved.sum(2) * rows).sum(1) / mass, (moved.sum(1) * columns).sum(1) / mass
    for index in range(n):
        away = math.hypot(float(ends[index][0, 0] - across[index]), float(ends[index][0, 1] - down[index]))
        assert away < 0.5


@pytest.mark.parametrize(("size", "severity"), [((60, 64), 2), ((60, 64), 5), ((224, 232), 1), ((224, 232), 3), ((224, 232), 5)])
def test_key_points_of_an_elastic_transform_end_where_the_pixel_is_taken_from_them(size: tuple[int, int], severity: int) -> None:
    """The field at the end, and the affine map back, lead to the start: by SciPy's interpolation of the field."""
    shares = 0.3 + 0.4 * torch.rand(20, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    starts = shares * torch.tensor([size[1], size[0]])
    parameters = natural.sample_parameters("elastic-transform", severity, 1, size, generator=draws())
    (ends,) = natural.moved_points("elastic-transform", [starts], parameters, size)
    offsets = parameters["offsets"][0].numpy()
    centre, far = np.array([size[1] // 2, size[0] // 2]) + 0.5, min(size) // 3
    before = centre + far * np.array([[1, 1], [1, -1], [-1, -1]])
    forward = np.linalg.solve(np.c_[before, np.ones(3)], before + offsets).T  # (2, 3)
    place = ends.numpy().T  # across, down
    fields = [
        ndimage.map_coordinates(parameters[key][0].numpy(), place[::-1] - 0.5, order=1, mode="nearest")
        for key in ("right", "down")
    ]
    came = np.linalg.solve(forward[:, :2], place + np.stack(fields) - forward[:, 2:])
    away = np.hypot(*(came - starts.numpy().T))
    assert float(np.median(away)) < 0.05 and away.max() < 0.5


@pytest.mark.parametrize("name", MOVING)
def test_boxes_hold_what_they_held(name: str) -> None:
    """A filled box is moved: the new box fits around its pixels, within a pixel of the blur between pixels."""
    size, n = (60, 64), 4
    box = torch.tensor([20.0, 16.0, 44.0, 40.0])
    x = torch.zeros(n, 1, *size)
    x[:, :, 16:40, 20:44] = 1
    found, boxes, kept = natural.with_boxes(name, x, [box[None]] * n, 3, generator=draws())
    assert torch.equal(found, load_methods().get(name, "corruption").function(x, 3, generator=draws()))
    for index in range(n):
        assert kept[index].tolist() == [True]
        lit = (found[index, 0] > 0.5).nonzero()
        drawn = [lit[:, 1].min(), lit[:, 0].min(), lit[:, 1].max() + 1, lit[:, 0].max() + 1]
        assert boxes[index][0].tolist() == pytest.approx([float(one) for one in drawn], abs=2.0)


def test_boxes_are_cut_off_at_the_edge_and_dropped_when_too_little_is_left() -> None:
    boxes = [torch.tensor([[10.0, 10, 20, 20], [50, 10, 60, 20], [57, 10, 63, 20], [0, 0, 64, 60]])]
    found, kept = natural.moved_boxes("translate", boxes, {"right": 10.0, "down": -5.0}, (60, 64))
    assert found[0].tolist() == [[20, 5, 30, 15], [60, 5, 64, 15], [10, 0, 64, 55]]
    assert kept[0].tolist() == [True, True, False, True]
    found, kept = natural.moved_boxes("translate", boxes, {"right": 10.0, "down": -5.0}, (60, 64), least=0.5)
    assert kept[0].tolist() == [True, False, False, True]
    turned, _ = natural.moved_boxes("rotate", [torch.tensor([[10.0, 20, 30, 25]])], {"degrees": 90.0}, (64, 64))
    torch.testing.assert_close(turned[0], torch.tensor([[20.0, 34, 25, 54]]))  # counter-clockwise: (x, y) to (y, 64 - x)
    # A wave of depth 5 has its crest and trough inside the box: it grows by 5 pixels up and down.
    bent, _ = natural.moved_boxes(
        "curve", [torch.tensor([[8.0, 20, 56, 40]])], {"waves": 2.0, "depth": 5.0, "phase": 0.0, "lying": 0.0}, (64, 64)
    )
    torch.testing.assert_close(bent[0], torch.tensor([[8.0, 15, 56, 45]]), rtol=0, atol=0.01)


@pytest.mark.parametrize(("name", "parameters"), [
    ("scale", {"across": 0.0, "down": 1.0}), ("shear", {"across": 2.0, "down": 0.5}),
    ("perspective", {"corners": torch.tensor([[[0.0, 0], [9, 0], [9, 9], [9, 9]]])}),
])
def test_what_presses_an_image_flat_is_refused(name: str, parameters: dict[str, Tensor | float]) -> None:
    with pytest.raises(DataError, match=r"press an image flat|fall together"):
        natural.moved_boxes(name, [torch.tensor([[1.0, 1, 4, 4]])], parameters, (9, 9))


def test_what_moves_no_pixels_leaves_boxes_alone() -> None:
    x = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(1))
    boxes = [torch.tensor([[1.0, 2, 3, 4]]), torch.zeros(0, 4)]
    for name in ("gaussian-blur", "fog", "jpeg"):
        _, found, kept = natural.with_boxes(name, x, boxes, 4, generator=draws())
        assert torch.equal(found[0], boxes[0]) and found[1].shape == (0, 4) and kept[0].tolist() == [True]
    _, found, kept = natural.with_boxes("rotate", x, boxes, 0)
    assert torch.equal(found[0], boxes[0]) and kept[1].shape == (0,)
    _, found, kept = natural.with_boxes("rotate", x, boxes, 2)
    assert found[1].shape == (0, 4) and kept[1].shape == (0,)
    assert torch.equal(natural.moved_points("fog", [torch.ones(1, 2)], {}, (40, 40))[0], torch.ones(1, 2))


def test_neutral_parameters_change_nothing_and_nothing_is_rounded_or_stretched(image: Tensor) -> None:
    neutral: dict[str, dict[str, float]] = {
        "rotate": {"degrees": 0.0}, "translate": {"right": 0.0, "down": 0.0}, "scale": {"across": 1.0, "down": 1.0},
        "shear": {"across": 0.0, "down": 0.0}, "curve": {"waves": 2.0, "depth": 0.0, "phase": 0.0, "lying": 0.0},
        "gaussian-blur": {"sigma": 0.0}, "gradient-blur": {"sigma": 0.0, "across": 0.5, "down": 0.5},
        "contrast": {"kept": 1.0, "shift": 0.0}, "overexposure": {"stops": 0.0}, "gaussian-noise": {"sigma": 0.0},
        "uniform-noise": {"reach": 0.0}, "salt-and-pepper": {"share": 0.0},
    }
    for name, parameters in neutral.items():
        torch.testing.assert_close(natural.applied(name, image, parameters), image, rtol=0, atol=1e-9)
    # A blur of a flat, pale image is that image: its contrast is not stretched to black and white.
    pale = 0.4 + 0.01 * image
    found = natural.motion_blur_by(pale, 45.0, 5, 3.0)
    assert float(found.min()) >= 0.4 and float(found.max()) <= 0.41
    torch.testing.assert_close(natural.motion_blur_by(torch.full_like(pale, 0.4), 45.0, 5, 3.0), torch.full_like(pale, 0.4))


@pytest.mark.parametrize(("name", "parameters", "message"), [
    ("scale", {"across": 0.0, "down": 1.0}, "across is 0"),
    ("scale", {"across": 1.0, "down": -1.0}, "down is -1"), ("gaussian-blur", {"sigma": -0.5}, "sigma is -0.5"),
    ("gradient-blur", {"sigma": -1.0, "across": 0.5, "down": 0.5}, "sigma is -1"),
    ("motion-blur", {"degrees": 0.0, "radius": 3.0, "sigma": -1.0}, "sigma is -1"),
    ("gaussian-noise", {"sigma": -0.1}, "sigma is"),
    ("perspective", {"corners": torch.zeros(3, 4, 2)}, "corners fall together"),
    ("perspective", {"corners": torch.tensor([[0.0, 0], [80, 60], [80, 0], [0, 60]]).expand(3, 4, 2)}, "no convex shape"),
    ("perspective", {"corners": torch.zeros(3, 4)}, "corners has shape"),
])
def test_parameters_outside_their_range_are_refused(
    image: Tensor, name: str, parameters: dict[str, Tensor | float], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        natural.applied(name, image, parameters)


def test_blur_of_nothing_leaves_images_as_they_are(image: Tensor) -> None:
    for name, parameters in (
        ("motion-blur", {"degrees": 30.0, "radius": 3.0, "sigma": 0.0}), ("gaussian-blur", {"sigma": 0.0}),
        ("gradient-blur", {"sigma": 0.0, "across": 0.5, "down": 0.5}),
    ):
        torch.testing.assert_close(natural.applied(name, image, parameters), image, rtol=0, atol=1e-12)
    pixel = torch.full((2, 1, 1, 1), 0.3)
    assert torch.equal(natural.applied("gradient-blur", pixel, {"sigma": 1.0, "across": 0.5, "down": 0.5}), pixel)


def test_empty_images_and_bounds_of_another_shape_are_refused() -> None:
    rotate = load_methods().get("rotate", "corruption").function
    for shape in ((2, 3, 0, 8), (2, 3, 8, 0), (2, 0, 8, 8)):
        with pytest.raises(DataError, match="one channel, row and column"):
            rotate(torch.zeros(shape), 1)
    x = torch.full((2, 3, 8, 8), 0.5)
    for low in (torch.zeros(5), torch.zeros(2, 1, 1), torch.zeros(1, 3, 8, 8)):
        with pytest.raises(UsageError, match="a bound has shape"):
            rotate(x, 1, bounds=(low, torch.ones(())))
    for low in (torch.zeros(3, 1, 1), torch.zeros(8), torch.zeros(3, 8, 8)):
        assert rotate(x, 1, bounds=(low, torch.ones(()))).shape == x.shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["brightness", "gaussian-noise", "contrast"])
def test_few_digits_do_not_step_over_odd_bounds(dtype: torch.dtype, name: str) -> None:
    x = torch.linspace(-0.09, 0.69, 192).view(1, 3, 8, 8).to(dtype)
    method = load_methods().get(name, "corruption").function
    for severity in (1, 5):
        found = method(x, severity, bounds=(-0.1, 0.7))
        assert float(found.double().min()) >= -0.1 and float(found.double().max()) <= 0.7
        method(found, severity, bounds=(-0.1, 0.7))  # and so it can be corrupted again
