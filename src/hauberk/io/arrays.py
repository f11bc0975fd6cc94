"""Arrays as samples: what their axes and their numbers mean, without copying them."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hauberk.core.data import Rows, TensorRows
from hauberk.core.errors import DataError

CHANNELS = (1, 3, 4)
BYTE_SCALE = 1 / 255


@dataclasses.dataclass
class ArrayRows(TensorRows):
    """Samples from a file or a NumPy array, read in torch's default floating type: float64 there is a habit, not a wish."""

    def take(self, index: Tensor) -> Tensor:
        """Return the samples at those positions in the default floating type."""
        return super().take(index).to(torch.get_default_dtype())


@dataclasses.dataclass
class JoinedRows:
    """Samples of several sources of one shape, read as one."""

    parts: Sequence[Rows]

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, ...) of all samples."""
        return (len(self), *self.parts[0].shape[1:])

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def take(self, index: Tensor) -> Tensor:
        """Return the samples at those positions."""
        index = index.cpu().reshape(-1)
        index = torch.where(index < 0, index + len(self), index)
        made: Tensor | None = None
        start = 0
        for part in self.parts:
            here = ((index >= start) & (index < start + len(part))).nonzero().reshape(-1)
            if len(here) or made is None:
                taken = part.take(index[here] - start)
                made = taken.new_zeros((len(index), *taken.shape[1:])) if made is None else made
                made[here] = taken
            start += len(part)
        if bool(((index < 0) | (index >= start)).any()):
            raise IndexError(f"sample {int(index.max())} of {start}")
        assert made is not None
        return made


def rows_of(values: NDArray[Any] | Tensor, modality: str | None, where: str) -> Rows:
    """Return an array as samples, as a view: see `arranged` for what axes and numbers mean.

    Raises:
        DataError: for an array that holds no numbers, or has no axis of samples.
    """
    if isinstance(values, Tensor):
        if values.ndim < 2 or values.is_complex():
            raise _shapeless(where, tuple(values.shape), str(values.dtype))
        view, scale = arranged(values.detach(), modality)
        return TensorRows(view, scale)
    if values.ndim < 2 or values.dtype.kind not in "biuf":
        raise _shapeless(where, values.shape, str(values.dtype))
    view, scale = arranged(view_of(values), modality)
    return ArrayRows(view, scale)


def arranged(values: Tensor, modality: str | None) -> tuple[Tensor, float]:
    """Return a batch with its axes as torch has them, (n, channels, height, width), and the factor to scale it by.

    Bytes of images (samples with two axes or more) mean 0..255 and are scaled by 1/255; bytes of a table, (n, features), and all
    other numbers are taken as they are. Bytes (n, height, width), and other numbers where the modality says `image`, are gray
    images. (n, height, width, 1 | 3 | 4) is turned channels first, unless the second axis already counts channels. The modality
    `other` leaves axes as they are.
    """
    is_bytes = values.dtype == torch.uint8
    scale = BYTE_SCALE if is_bytes and values.ndim > 2 and modality not in ("tabular", "other") else 1.0
    if modality in ("tabular", "other"):
        return values, scale
    if values.ndim == 3 and (is_bytes or modality == "image"):
        return values.unsqueeze(1), scale
    if values.ndim == 4 and values.shape[3] in CHANNELS and values.shape[1] not in CHANNELS:
        return values.permute(0, 3, 1, 2), scale
    return values, scale


def view_of(values: NDArray[Any]) -> Tensor:
    """Return a numeric array as a tensor, without a copy wherever torch can hold and index it."""
    if not values.dtype.isnative:
        values = values.astype(values.dtype.newbyteorder("="))
    if values.dtype.kind == "u" and values.dtype.itemsize > 1:
        # torch can hold these but not index them.
        values = values.astype(np.int64)
    if values.dtype.itemsize > 8 or any(step < 0 for step in values.strides):
        values = np.ascontiguousarray(values, dtype=np.float64 if values.dtype.itemsize > 8 else None)
    with warnings.catch_warnings():
        # Samples are only ever read.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(values)


def _shapeless(where: str, shape: Sequence[int], kind: str) -> DataError:
    return DataError(
        f"the samples of {where} have shape {tuple(shape)} and type {kind}", want="numbers of shape (n, features) or (n, ...)",
        fix="Give one row per sample, as a numeric array",
    )
