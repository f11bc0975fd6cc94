"""Summaries: a few quantities per sample that drift can be read from, made without the model.

A model's own features would be shorter still, but they differ between training and test samples by memorisation alone, without
any drift. So samples with many features are summarised by themselves: images by brightness, contrast and sharpness, and all by
principal components, whose directions are fitted on samples that are then left out of the comparison.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from hauberk.core.errors import DataError


@dataclasses.dataclass(frozen=True)
class Summary:
    """Turns samples into few quantities.

    Arguments:
        names: of the quantities.
        mean: shape (features,), and `axes`: shape (features, components); None passes the features on as they are.
        image: whether brightness, contrast and sharpness are measured.
    """

    names: tuple[str, ...]
    mean: Tensor | None
    axes: Tensor | None
    image: bool

    def __call__(self, x: Tensor) -> Tensor:
        """Return the quantities of the samples x, shape (n, ...), as (n, len(names)), float64."""
        if self.mean is None or self.axes is None:
            return x.detach().cpu().double().flatten(1)
        components = (_rows(x, self.image) - self.mean) @ self.axes
        return torch.cat([_looks(x.detach().cpu().double()), components], 1) if self.image else components


def fit_summary(x: Tensor, *, image: bool, names: Sequence[str] = (), components: int = 16, most: int = 64) -> Summary:
    """Return how samples like x are to be summarised.

    Arguments:
        x: samples that take no part in the comparison, shape (n, ...).
        image: whether they are images, (n, channels, height, width); components of large ones are those of a 32x32 reduction.
        names: of the features, for samples that stay as they are.
        components: principal components at most.
        most: samples that are not images and have no more features than this stay as they are.

    Raises:
        DataError: for fewer than 2 samples.
    """
    if len(x) < 2:
        raise DataError(f"{len(x)} samples were given to fit a summary on", want="at least 2")
    flat = _rows(x, image)
    width = flat.shape[1]
    if not image and width <= most:
        called = tuple(names) if len(names) == width else tuple(f"feature {column}" for column in range(width))
        return Summary(called, None, None, False)
    mean = flat.mean(0)
    centred = flat - mean
    # The smaller of the two product matrices has the same leading directions.
    wide = width > len(flat)
    squares, vectors = torch.linalg.eigh(centred @ centred.T if wide else centred.T @ centred)
    held = int((squares > 1e-10 * squares[-1].clamp(min=1e-300)).sum())
    kept = vectors.flip(1)[:, : min(components, held)]
    axes = (centred.T @ kept) / squares.flip(0)[: kept.shape[1]].sqrt() if wide else kept
    # The sign of a component is free: the largest weight is made positive, so that runs on other machines agree.
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign() if axes.numel() else axes
    called = tuple(f"component {number + 1}" for number in range(axes.shape[1]))
    return Summary((("brightness", "contrast", "sharpness") if image else ()) + called, mean, axes, image)


def _rows(x: Tensor, image: bool) -> Tensor:
    """Samples as rows, (n, features), float64; images of more than 32 pixels a side are reduced to that by averaging."""
    x = x.detach().cpu().double()
    if image and max(x.shape[2:]) > 32:
        x = functional.adaptive_avg_pool2d(x, (min(x.shape[2], 32), min(x.shape[3], 32)))
    return x.flatten(1)


def _looks(x: Tensor) -> Tensor:
    """Mean, standard deviation and mean absolute difference of neighbours of each image, shape (n, 3)."""
    flat = x.flatten(1)
    across, down = x.diff(dim=-1).abs().flatten(1), x.diff(dim=-2).abs().flatten(1)
    steps = torch.cat([across, down], 1)
    sharpness = steps.mean(1) if steps.shape[1] else torch.zeros(len(x), dtype=x.dtype)
    return torch.stack([flat.mean(1), flat.std(1, correction=0), sharpness], 1)
