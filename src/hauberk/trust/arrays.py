"""Tensors and arrays as float64 arrays, and the sums of resampled rows that every bootstrap here is made of."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from hauberk.core.errors import DataError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_CELLS = 4_000_000


def floats(values: ArrayLike | Tensor, what: str, ndim: int) -> Floats:
    """Return the values as a float64 array with that many axes.

    Raises:
        DataError: for another number of axes, for no rows, or for values that are not finite.
    """
    array = np.asarray(values.detach().cpu().numpy() if isinstance(values, Tensor) else values, dtype=np.float64)
    if array.ndim != ndim or not len(array):
        raise DataError(f"{what} has shape {array.shape}", want=f"{ndim} axes and at least one row")
    if not np.isfinite(array).all():
        raise DataError(f"{what} holds values that are not finite", want="finite values", fix="Remove or repair those rows")
    return array


def labels(values: ArrayLike | Tensor, n: int, classes: int | None = None) -> Ints:
    """Return class labels as int64, shape (n,).

    Raises:
        DataError: for another length, or labels outside 0 to classes - 1.
    """
    array = np.asarray(values.detach().cpu().numpy() if isinstance(values, Tensor) else values)
    if array.shape != (n,):
        raise DataError(f"the labels have shape {array.shape}", want=f"({n},), one per sample")
    whole = array.astype(np.int64)
    if (whole != array).any() or (whole < 0).any() or (classes is not None and (whole >= classes).any()):
        raise DataError(
            f"the labels lie in [{array.min()}, {array.max()}]", want=f"whole numbers from 0 to {(classes or 0) - 1}"
            if classes is not None else "whole numbers from 0",
        )
    return whole


def resampled_sums(rows: Floats, rng: np.random.Generator, draws: int = 1000) -> Floats:
    """Return the column sums of `draws` resamples of the rows, drawn with replacement.

    Arguments:
        rows: shape (n, k).
        rng: the source of the draws.
        draws: number of resamples.

    Returns:
        Shape (draws, k). A resample is a row of counts, so that all sums are one matrix product (Efron 1979).
    """
    n = len(rows)
    size = max(1, _CELLS // n)
    parts = []
    for start in range(0, draws, size):
        count = min(size, draws - start)
        drawn = rng.integers(0, n, (count, n)) + np.arange(count)[:, None] * n
        weights = np.bincount(drawn.reshape(-1), minlength=count * n).reshape(count, n)
        parts.append(weights.astype(np.float64) @ rows)
    return np.concatenate(parts)
