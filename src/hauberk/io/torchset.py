"""A torch Dataset as samples: items are fetched when they are read."""

from __future__ import annotations

import dataclasses
from collections.abc import Sized
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset, TensorDataset

from hauberk.core import progress
from hauberk.core.errors import DataError
from hauberk.io.arrays import arranged, rows_of, view_of
from hauberk.io.parts import SINGLE, Part, Source


@dataclasses.dataclass
class DatasetRows:
    """The inputs of a map-style dataset of `(x, y)` items: tensors, arrays or pictures of one shape."""

    dataset: Dataset[Any]
    modality: str | None = None

    def __post_init__(self) -> None:
        self.size = tuple(self.take(torch.zeros(1, dtype=torch.int64)).shape[1:])

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, ...) of the samples."""
        return (len(self), *self.size)

    def __len__(self) -> int:
        return len(cast(Sized, self.dataset))

    def take(self, index: Tensor) -> Tensor:
        """Return the samples at those positions, floating point."""
        items = [_tensor(_item(self.dataset, at)[0]) for at in index.reshape(-1).tolist()]
        if not items:
            return torch.zeros((0, *self.size))
        if any(one.shape != items[0].shape for one in items):
            shapes = sorted({tuple(one.shape) for one in items})
            raise DataError(f"the items of the dataset have shapes {shapes}", want="one shape",
                            fix="Give the dataset a transform that resizes")
        values, scale = arranged(torch.stack(items), self.modality)
        values = values if values.is_floating_point() else values.to(torch.get_default_dtype())
        return values if scale == 1.0 else values * scale


def open_dataset(dataset: Dataset[Any], modality: str | None) -> Source:
    """Return a torch Dataset as one split. Labels are taken from its `targets` where it has them, else every item is read once.

    Raises:
        DataError: for a dataset without length or without items, or whose items are not `(x, y)`.
    """
    where = type(dataset).__name__
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__") or not len(cast(Sized, dataset)):
        raise DataError(f"the dataset {where} has no items that can be counted", want="a map-style dataset with __len__",
                        fix="Take a part of the stream into a list of (x, y) first")
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
        x, y = dataset.tensors
        return Source(where, {SINGLE: Part(rows_of(x, modality, where), y.detach().cpu().numpy(), where)}, where)
    rows = DatasetRows(dataset, modality)
    classes = getattr(dataset, "classes", ())
    names = [str(one) for one in classes] if isinstance(classes, (list, tuple)) else []
    return Source(where, {SINGLE: Part(rows, _labels(dataset), where, class_names=names)}, where)


def _labels(dataset: Dataset[Any]) -> NDArray[Any]:
    known = _targets(dataset)
    if known is not None:
        return known
    size = len(cast(Sized, dataset))
    return np.asarray([_label(_item(dataset, at)[1]) for at in progress.track(range(size), "labels")])


def _targets(dataset: Dataset[Any]) -> NDArray[Any] | None:
    """The labels that a dataset keeps beside its items, if the first and last item agree with them."""
    if isinstance(dataset, Subset):
        inner = _targets(dataset.dataset)
        return None if inner is None else inner[np.asarray(dataset.indices, np.int64)]
    held = getattr(dataset, "targets", None)
    if held is None or getattr(dataset, "target_transform", None) is not None or getattr(dataset, "transforms", None) is not None:
        return None
    values = held.detach().cpu().numpy() if isinstance(held, Tensor) else np.asarray(held)
    if values.ndim != 1 or len(values) != len(cast(Sized, dataset)):
        return None
    return values if all(values[at] == _label(_item(dataset, at)[1]) for at in (0, len(values) - 1)) else None


def _item(dataset: Dataset[Any], at: int) -> tuple[Any, Any]:
    item = dataset[at]
    if not isinstance(item, (tuple, list)) or len(item) != 2:
        raise DataError(f"item {at} of the dataset is a {type(item).__name__}", want="a pair (x, y)", fix="Wrap the dataset")
    return item[0], item[1]


def _label(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    if hasattr(value, "getbands"):  # a Pillow picture
        value = np.asarray(value)
    return view_of(np.asarray(value))
