"""Geometry: the camera tilted, moved or bent. Between pixels values are interpolated; beyond the edge its pixels are repeated.

Positions are in pixels from the top left corner of the image, so that the centre of the first pixel is at (0.5, 0.5).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from hauberk.core.errors import DataError
from hauberk.robustness.natural.contract import Parameters, Size, Warp, natural, spread
from hauberk.robustness.natural.draws import Draws

ENGSTROM = "Engstrom et al. 2019, arXiv:1712.02779; the levels are ours"
MINDSPORE = "MindSpore Armour, natural robustness; the levels are ours"


def _turn(degrees: float, draws: Draws, size: Size) -> Parameters:
    return {"degrees": degrees * _side(draws)}


@natural(
    question="Does a tilted camera change the answer?", family="geometry", preset="quick", sample=_turn,
    paper="Engstrom et al. 2019, arXiv:1712.02779; the angles are ours, up to the 30° of the paper", small=(5, 10, 15, 20, 30),
    warp=lambda parameters, size: matrix_warp(rotation(parameters["degrees"], size)),
)
def rotate(x: Tensor, parameters: Parameters, draws: Draws) -> Tensor:
    """Rotate each image about its centre by that angle, to a side drawn at random."""
    return rotate_by(x, parameters["degrees"])


def rotate_by(x: Tensor, degrees: Tensor | float) -> Tensor:
    """Return images, shape (n, c, h, w), turned counter-clockwise about their centre by an angle, one or shape (n,)."""
    return warped(x, rotation(spread(degrees, x, "degrees"), _size(x)))


def _move(share: float, draws: Draws, size: Size) -> Parameters:
    angle, length = 2 * math.pi * draws.uniform(), share * min(size)
    return {"right": length * angle.cos(), "down": length * angle.sin()}


@natural(
    question="Does an object off the centre change the answer?", family="geometry", paper=ENGSTROM, sample=_move,
    small=(0.04, 0.08, 0.12, 0.16, 0.20),
    warp=lambda parameters, size: matrix_warp(translation(parameters["right"], parameters["down"])),
)
def translate(x: Tensor, parameters: Parameters, draws: Draws) -> Tensor:
    """Move each image in a random direction by that share of its shorter side."""
    return translate_by(x, **parameters)


def translate_by(x: Tensor, right: Tensor | float, down: Tensor | float) -> Tensor:
    """Return images, shape (n, c, h, w), moved by so many pixels, one number or shape (n,) each."""
    return warped(x, translation(spread(right, x, "right"), spread(down, x, "down")))


def _grow(factor: float, draws: Draws, size: Size) -> Parameters:
    factors = factor ** _side(draws)  # to the power of 1 or -1
    return {"across": factors, "down": factors.clone()}


@natural(
    question="Does an object nearer or farther than usual change the answer?", family="geometry", paper=MINDSPORE, sample=_grow,
    small=(0.9, 0.8, 0.7, 0.6, 0.5),
    warp=lambda parameters, size: matrix_warp(scaling(parameters["across"], parameters["down"], size)),
)
def scale(x: Tensor, parameters: Parameters, draws: Draws) -> Tensor:
    """Shrink each image about its centre by that factor, or enlarge it by as much, drawn at random."""
    return scale_by(x, **parameters)


def scale_by(x: Tensor, across: Tensor | float, down: Tensor | float) -> Tensor:
    """Return images, shape (n, c, h, w), scaled about their centre by factors above 0, one number or shape (n,) each."""
    return warped(x, scaling(spread(across, x, "across", above=0), spread(down, x, "down", above=0), _size(x)))


def _slant(slope: float, draws: Draws, size: Size) -> Parameters:
    slopes, lying = slope * _side(draws), draws.uniform() < 0.5
    return {"across": torch.where(lying, slopes, 0.0), "down": torch.where(lying, 0.0, slopes)}


@natural(
    question="Does a slanted view change the answer?", family="geometry", paper=MINDSPORE, sample=_slant,
    small=(0.08, 0.16, 0.24, 0.32, 0.40),
    warp=lambda parameters, size: matrix_warp(shearing(parameters["across"], parameters["down"], size)),
)
def shear(x: Tensor, parameters: Parameters, draws: Draws) -> Tensor:
    """Slant each image to one side or the other, sideways or upright, drawn at random; the levels are slopes."""
    return shear_by(x, **parameters)


def shear_by(x: Tensor, across: Tensor | float, down: Tensor | float) -> Tensor:
    """Return slanted images, shape (n, c, h, w): pixels to the right per pixel down, and down per pixel to the right."""
    return warped(x, shearing(spread(across, x, "across"), spread(down, x, "down"), _size(x)))


def _tilt(share: float, draws: Draws, size: Size) -> Parameters:
    angle = 2 * math.pi * draws.uniform(4)  # (n, 4)
    return {"corners": corners_of(size).to(angle) + share * min(size) * torch.stack([angle.cos(), angle.sin()], -1)}


@natural(
    question="Does a picture taken at an angle change the answer?", family="geometry", paper=MINDSPORE, sample=_tilt,
    small=(0.03, 0.06, 0.09, 0.12, 0.16),
    warp=lambda parameters, size: matrix_warp(homography(parameters["corners"], size)),
)
def perspective(x: Tensor, parameters: Parameters, draws: Draws) -> Tensor:
    """Move each corner of an image in a random direction; the levels are shares of its shorter side."""
    return perspective_by(x, parameters["corners"])


def perspective_by(x: Tensor, corners: Tensor) -> Tensor:
    """Return images, shape (n, c, h, w), whose corners, clockwise from the top left, are moved to positions, shape (n, 4, 2)."""
    places = spread(corners, x, "corners")
    if places.shape != (len(x), 4, 2):
        raise DataError(f"corners has shape {tuple(places.shape)}", want=f"four positions for each image: {(len(x), 4, 2)}")
    sides = places.roll(-1, 1) - places
    turns = sides[..., 0] * sides.roll(-1, 1)[..., 1] - sides[..., 1] * sides.roll(-1, 1)[..., 0]  # (n, 4)
    if not bool(((turns > 1e-9).all(1) | (turns < -1e-9).all(1)).all()):
        raise DataError("corners fall together, on one line, or make no convex shape", want="the four corners of a view, in turn")
    return warped(x, homography(places, _size(x)))


def _wave(share: float, draws: Draws, size: Size) -> Parameters:
    draw = draws.uniform(3)  # (n, 3)
    return {
        "waves": 1 + draw[:, 0], "depth": torch.full_like(draw[:, 0], share * min(size)), "phase": 2 * math.pi * draw[:, 1],
        "lying": (draw[:, 2] < 0.5).double(),
    }


@natural(
    question="Does curved paper or a bent label change the answer?", family="geometry", paper=MINDSPORE, sample=_wave,
    small=(0.02, 0.04, 0.06, 0.08, 0.10), warp=lambda parameters, size: _bend(size, **parameters),
)
def curve(x: Tensor, parameters: Parameters, draws: Draws) -> Tensor:
    """Bend each image along one to two waves, upright or lying; the levels are their depth as a share of the shorter side."""
    return curve_by(x, **parameters)


def curve_by(
    x: Tensor, waves: Tensor | float, depth: Tensor | float, phase: Tensor | float = 0.0, lying: Tensor | float = 0.0
) -> Tensor:
    """Bend images along sine waves. Each argument is one number or shape (n,).

    Arguments:
        x: images, shape (n, c, h, w).
        waves: number of waves over the image.
        depth: their amplitude in pixels.
        phase: where they begin, in radians.
        lying: 0 moves columns up and down, 1 moves rows to the sides.

    Returns:
        The bent images.
    """
    bend = _bend(_size(x), *(spread(one, x) for one in (waves, depth, phase, lying)))
    place = positions(_size(x), x).expand(len(x), -1, -1)
    return sampled(x, bend.source(place))


def _bend(size: Size, waves: Tensor, depth: Tensor, phase: Tensor, lying: Tensor) -> Warp:
    height, width = size

    def slide(place: Tensor, sign: int) -> Tensor:
        waves_, depth_, phase_ = (one.to(place)[:, None] for one in (waves, depth, phase))
        rows = lying.to(place)[:, None] > 0.5
        along = torch.where(rows, place[..., 1] / height, place[..., 0] / width)
        far = sign * depth_ * torch.sin(2 * math.pi * waves_ * along + phase_)  # (n, m)
        return place + torch.stack([torch.where(rows, far, 0.0), torch.where(rows, 0.0, far)], -1)

    # What moves is one axis, by what the other says: the way back is the same with the other sign.
    return Warp(lambda place: slide(place, -1), lambda place: slide(place, 1))


def rotation(degrees: Tensor, size: Size) -> Tensor:
    """Return counter-clockwise turns about the centre as matrices, shape (n, 3, 3)."""
    cos, sin = degrees.deg2rad().cos(), degrees.deg2rad().sin()
    return _about(cos, sin, -sin, cos, size)  # the second axis points down


def scaling(across: Tensor, down: Tensor, size: Size) -> Tensor:
    """Return scalings about the centre as matrices, shape (n, 3, 3)."""
    none = torch.zeros_like(across)
    return _about(across, none, none, down, size)


def shearing(across: Tensor, down: Tensor, size: Size) -> Tensor:
    """Return shears about the centre as matrices, shape (n, 3, 3)."""
    one = torch.ones_like(across)
    return _about(one, across, down, one, size)


def translation(right: Tensor, down: Tensor) -> Tensor:
    """Return moves as matrices, shape (n, 3, 3)."""
    matrix = torch.eye(3, dtype=right.dtype, device=right.device).repeat(len(right), 1, 1)
    matrix[:, 0, 2], matrix[:, 1, 2] = right, down
    return matrix


def homography(corners: Tensor, size: Size) -> Tensor:
    """Return the maps that move the corners of the image to those, shape (n, 4, 2), as matrices, shape (n, 3, 3)."""
    before = corners_of(size).to(corners).expand_as(corners)
    x, y, one, none = before[..., 0], before[..., 1], torch.ones_like(before[..., 0]), torch.zeros_like(before[..., 0])
    u, v = corners[..., 0], corners[..., 1]
    rows = torch.cat([
        torch.stack([x, y, one, none, none, none, -u * x, -u * y], -1),
        torch.stack([none, none, none, x, y, one, -v * x, -v * y], -1),
    ], 1)  # (n, 8, 8)
    found, wrong = torch.linalg.solve_ex(rows, torch.cat([u, v], 1))
    if bool((wrong != 0).any()) or not bool(found.isfinite().all()):
        raise DataError("corners fall together or on one line", want="the four corners of a view, in turn")
    return torch.cat([found, torch.ones_like(found[:, :1])], 1).view(-1, 3, 3)


def corners_of(size: Size) -> Tensor:
    """Return the corners of an image, clockwise from the top left, shape (4, 2)."""
    height, width = size
    return torch.tensor([[0, 0], [width, 0], [width, height], [0, height]], dtype=torch.float64)


def matrix_warp(matrix: Tensor) -> Warp:
    """Return the warp of matrices, shape (n, 3, 3), from positions in the old image to those in the new one."""
    back = undone(matrix)
    return Warp(lambda place: carried(place, back), lambda place: carried(place, matrix), straight=True)


def undone(matrix: Tensor) -> Tensor:
    """Return the way back of matrices, shape (n, 3, 3). Raises DataError where there is none."""
    back, wrong = torch.linalg.inv_ex(matrix)
    if bool((wrong != 0).any()) or not bool(back.isfinite().all()):
        raise DataError("the parameters press an image flat", want="factors above 0, and slopes whose product is not 1")
    return back


def carried(place: Tensor, matrix: Tensor) -> Tensor:
    """Return positions, shape (n, m, 2), carried by matrices, shape (n, 3, 3)."""
    matrix = matrix.to(place)
    full = place @ matrix[:, :, :2].mT + matrix[:, None, :, 2]  # (n, m, 3)
    return full[..., :2] / full[..., 2:]


def warped(x: Tensor, matrix: Tensor, edge: str = "border") -> Tensor:
    """Return images, shape (n, c, h, w), carried by matrices, shape (n, 3, 3)."""
    height, width = x.shape[2:]
    ends = torch.tensor([[2 / width, 0, -1], [0, 2 / height, -1], [0, 0, 1]], dtype=torch.float64, device=x.device)
    # To the scale of grid_sample, which runs from -1 to 1 on both axes.
    maps = (ends @ undone(matrix.double()) @ torch.linalg.inv(ends)).to(x)
    if bool((matrix[:, 2, :2] == 0).all()):
        rows, columns = ((2 * torch.arange(side, device=x.device, dtype=x.dtype) + 1) / side - 1 for side in (height, width))
        grid = x.new_empty(len(x), height, width, 2)
        for axis in (0, 1):  # a sum of a row and a column: functional.affine_grid, without its copies
            along, down, shift = (maps[:, axis, place, None] for place in range(3))  # (n, 1)
            torch.add((along * columns)[:, None], (down * rows + shift)[..., None], out=grid[..., axis])
    else:
        place = positions((height, width), x) @ ends[:2, :2].to(x) - 1
        grid = carried(place, maps).view(-1, height, width, 2)
    return functional.grid_sample(x, grid, mode="bilinear", padding_mode=edge, align_corners=False)


def sampled(x: Tensor, place: Tensor, edge: str = "border") -> Tensor:
    """Return images, shape (n, c, h, w), whose pixels are taken from positions, shape (n, h * w, 2)."""
    height, width = x.shape[2:]
    grid = (place * place.new_tensor([2 / width, 2 / height]) - 1).view(-1, height, width, 2)
    return functional.grid_sample(x, grid.to(x), mode="bilinear", padding_mode=edge, align_corners=False)


def positions(size: Size, like: Tensor) -> Tensor:
    """Return the centres of all pixels, row by row, shape (1, h * w, 2), with the dtype and device of `like`."""
    height, width = size
    rows, columns = (torch.arange(side, device=like.device, dtype=like.dtype) + 0.5 for side in (height, width))
    return torch.stack([columns.expand(height, -1), rows[:, None].expand(-1, width)], -1).view(1, -1, 2)


def _about(a: Tensor, b: Tensor, c: Tensor, d: Tensor, size: Size) -> Tensor:
    """Return the maps [[a, b], [c, d]] about the centre of the image as matrices, shape (n, 3, 3)."""
    x, y = size[1] / 2, size[0] / 2
    none, one = torch.zeros_like(a), torch.ones_like(a)
    return torch.stack([a, b, x - a * x - b * y, c, d, y - c * x - d * y, none, none, one], 1).view(-1, 3, 3)


def _side(draws: Draws) -> Tensor:
    return torch.where(draws.uniform() < 0.5, -1.0, 1.0).double()


def _size(x: Tensor) -> Size:
    return x.shape[2], x.shape[3]
