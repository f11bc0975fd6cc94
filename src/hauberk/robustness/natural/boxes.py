"""Boxes and key points that move with the pixels, for detection data.

Positions are in pixels from the top left corner of the image: the centre of the first pixel is at (0.5, 0.5), and a box around
the whole image is (0, 0, width, height).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hauberk.core import rng
from hauberk.core.card import registry
from hauberk.core.errors import DataError
from hauberk.core.threat import Bounds
from hauberk.robustness.natural.contract import Points, Size, Warp, recipe_of, sample_parameters, spread
from hauberk.robustness.natural.geometry import positions

EDGE = 257  # points along each edge of a box whose edges bend


def moved_points(
    name: str, points: Sequence[Tensor], parameters: Mapping[str, Tensor | float], size: Size
) -> list[Tensor]:
    """Return key points where a corruption carries them.

    Arguments:
        name: of the corruption; one that moves no pixels leaves them where they are.
        points: for each image its key points, shape (k, 2), across then down in pixels.
        parameters: those of the images, as `applied` takes them.
        size: (height, width) of the images.

    Returns:
        For each image its key points, shape (k, 2). They may lie outside the image, except after an elastic transform, which ends
        a point that leaves the image at its edge.

    Raises:
        DataError: for shapes that do not fit. UsageError: for an unknown corruption.
    """
    _fits(points, 2, "key points")
    warp = _warp(name, len(points), parameters, size)
    if warp is None:
        return [one.clone() for one in points]
    return [_carried(one, index, len(points), warp, size) for index, one in enumerate(points)]


def moved_boxes(
    name: str, boxes: Sequence[Tensor], parameters: Mapping[str, Tensor | float], size: Size, *, least: float = 0.25
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the upright boxes around what was inside the boxes before, cut off at the edge of the image.

    Arguments:
        name: of the corruption; one that moves no pixels leaves boxes where they are.
        boxes: for each image its boxes, shape (k, 4): left, top, right, bottom in pixels.
        parameters: those of the images, as `applied` takes them.
        size: (height, width) of the images.
        least: share of a moved box that has to lie in the image; others are dropped, and those thinner than a pixel.

    Returns:
        For each image its boxes that are left, shape (j, 4), and which of them those are, a mask of shape (k,).

    Raises:
        DataError: for shapes that do not fit. UsageError: for an unknown corruption.
    """
    _fits(boxes, 4, "boxes")
    warp = _warp(name, len(boxes), parameters, size)
    left, kept = [], []
    for index, one in enumerate(boxes):
        whole = one.double() if warp is None else _hulls(one.double(), index, len(boxes), warp, size)
        ends = torch.tensor([size[1], size[0]] * 2, dtype=torch.float64, device=one.device)
        cut = torch.minimum(whole.clamp(min=0), ends)
        inside, before = _area(cut), _area(whole)
        sides = torch.minimum(cut[:, 2] - cut[:, 0], cut[:, 3] - cut[:, 1])
        keep = (inside >= least * before) & (inside > 0)
        if warp is not None:
            keep &= sides >= 1
        left.append(cut[keep].to(one))
        kept.append(keep)
    return left, kept


def with_boxes(
    name: str, x: Tensor, boxes: Sequence[Tensor], severity: int, *, generator: torch.Generator | None = None,
    bounds: Bounds = (0.0, 1.0),
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Corrupt images of detection data together with their boxes: `x, boxes, kept = with_boxes("rotate", x, boxes, 3)`.

    Arguments:
        name: of the corruption.
        x: images, shape (n, channels, height, width), inside `bounds`.
        boxes: for each image its boxes, shape (k, 4): left, top, right, bottom in pixels.
        severity: 0 to 5.
        generator: of all random draws; None takes one that is always seeded alike.
        bounds: lowest and highest input.

    Returns:
        The images that the corruption returns by itself, the boxes left, and which of the boxes those are.

    Raises:
        DataError: for images or boxes that do not fit. UsageError: for an unknown corruption or severity.
    """
    if len(boxes) != len(x):
        raise DataError(f"there are boxes for {len(boxes)} images", want=f"one tensor of boxes for each of {len(x)} images")
    recipe, draws = recipe_of(name), rng.given(generator, 0, "corruption", name)
    state = draws.get_state()
    done = registry.get(name, "corruption").function(x, severity, generator=draws, bounds=bounds)
    if recipe.warp is None or severity == 0:
        return done, [one.clone() for one in boxes], [torch.ones(len(one), dtype=torch.bool, device=one.device) for one in boxes]
    again = torch.Generator(device=draws.device)
    again.set_state(state)
    size = (x.shape[2], x.shape[3])
    return done, *moved_boxes(name, boxes, sample_parameters(name, severity, len(x), size, generator=again), size)


def _warp(name: str, n: int, parameters: Mapping[str, Tensor | float], size: Size) -> Warp | None:
    recipe = recipe_of(name)
    if recipe.warp is None:
        return None
    like = torch.empty(n, 0, dtype=torch.float64)
    return recipe.warp({key: spread(value, like, key) for key, value in parameters.items()}, size)


def _carried(points: Tensor, index: int, n: int, warp: Warp, size: Size) -> Tensor:
    """Return the points of one image, shape (k, 2), where the warp of that image carries them."""
    place = points.detach().double().cpu()
    if warp.target is not None:
        return _one(warp.target, place, index, n).to(points)
    grid = positions(size, place)[0]  # (h * w, 2)
    best = grid[torch.cdist(place, _one(warp.source, grid, index, n)).argmin(1)]
    found, ends = best, torch.tensor([size[1], size[0]], dtype=torch.float64)
    for _ in range(4):  # Newton's steps, from the pixel that comes from nearest; where the warp folds, not all of them help
        half = torch.eye(2, dtype=torch.float64) / 2
        slopes = [_one(warp.source, found + step, index, n) - _one(warp.source, found - step, index, n) for step in half]
        ahead = torch.linalg.pinv(torch.stack(slopes, -1)) @ (place - _one(warp.source, found, index, n))[..., None]
        found = torch.minimum((found + ahead[..., 0].clamp(-1, 1)).clamp(min=0), ends)
        off, least = ((place - _one(warp.source, one, index, n)).norm(dim=1, keepdim=True) for one in (found, best))
        best = torch.where(off < least, found, best)
    return best.to(points)


def _hulls(boxes: Tensor, index: int, n: int, warp: Warp, size: Size) -> Tensor:
    """Return the upright boxes around the boxes of one image, shape (k, 4), after its warp; empty where nothing is left."""
    place = boxes.detach().cpu()
    if warp.target is None:
        grid = positions(size, place)[0]
        came = _one(warp.source, grid, index, n)[:, None]  # (h * w, 1, 2)
        inside = ((came >= place[:, :2]) & (came <= place[:, 2:])).all(2)  # (h * w, k)
        low = torch.where(inside[..., None], grid[:, None], torch.inf).amin(0) - 0.5
        high = torch.where(inside[..., None], grid[:, None], -torch.inf).amax(0) + 0.5
        hull = torch.where(inside.any(0)[:, None], torch.cat([low, high], 1), 0.0)
        return hull.to(boxes)
    along = torch.linspace(0, 1, 2 if warp.straight else EDGE, dtype=torch.float64)
    across = place[:, None, 0] + along * (place[:, 2] - place[:, 0])[:, None]  # (k, m)
    down = place[:, None, 1] + along * (place[:, 3] - place[:, 1])[:, None]
    edges = [torch.stack([across, one[:, None].expand_as(across)], -1) for one in (place[:, 1], place[:, 3])]
    edges += [torch.stack([one[:, None].expand_as(down), down], -1) for one in (place[:, 0], place[:, 2])]
    ring = torch.cat(edges, 1)  # (k, 4 m, 2)
    there = _one(warp.target, ring.flatten(0, 1), index, n).view_as(ring)
    return torch.cat([there.amin(1), there.amax(1)], 1).to(boxes) if len(place) else boxes


def _one(carry: Points, place: Tensor, index: int, n: int) -> Tensor:
    """Return positions of one image, shape (m, 2), carried by a map of n images."""
    return carry(place.expand(n, -1, -1))[index]


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0]).clamp(min=0) * (boxes[:, 3] - boxes[:, 1]).clamp(min=0)


def _fits(rows: Sequence[Tensor], columns: int, what: str) -> None:
    for one in rows:
        if one.ndim != 2 or one.shape[1] != columns or not bool(one.isfinite().all()):
            raise DataError(f"{what} of one image have shape {tuple(one.shape)}", want=f"finite numbers, shape (k, {columns})")
