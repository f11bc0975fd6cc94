"""Data: samples and labels by role, with bounds and modality; large arrays are read in parts, never copied whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from hauberk.core.errors import DataError
from hauberk.core.rng import generator
from hauberk.core.threat import Bounds


class Rows(Protocol):
    """Samples that can be read in parts: a tensor, a memory map, a folder of images, a Parquet file."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, ...) of the samples as the model sees them."""
        ...

    def __len__(self) -> int: ...

    def take(self, index: Tensor) -> Tensor:
        """Return the samples at those positions, shape (len(index), ...), floating point but for tokens."""
        ...


@dataclasses.dataclass
class TensorRows:
    """Samples held in one tensor; integers are scaled by `scale` when read (images of bytes stay bytes until then).

    Arguments:
        values: shape (n, ...).
        scale: what is multiplied when read.
        tokens: whether integers stay what they are: names of things, as an embedding takes them.
    """

    values: Tensor
    scale: float = 1.0
    tokens: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, ...) of the samples."""
        return tuple(self.values.shape)

    def __len__(self) -> int:
        return len(self.values)

    def take(self, index: Tensor) -> Tensor:
        """Return the samples at those positions, floating point but for tokens."""
        part = self.values[index.to(self.values.device)]
        if self.tokens:
            return part
        part = part if part.is_floating_point() else part.to(torch.get_default_dtype())
        return part if self.scale == 1.0 else part * self.scale


@dataclasses.dataclass(repr=False)
class Split:
    """Samples of one role.

    Arguments:
        x: the samples, `Rows` or a tensor of shape (n, ...); int64 stays int64 (tokens), other whole numbers are read as floats.
        y: labels, shape (n,): int64 for classes, floating point for regression.
        groups: by name, the group of each sample, shape (n,), int64; for fairness and slices.
    """

    x: Rows
    y: Tensor
    groups: dict[str, Tensor] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.x, Tensor):
            self.x = TensorRows(self.x, tokens=self.x.dtype == torch.int64)
        self.y = torch.as_tensor(self.y).reshape(-1)
        if not self.y.is_floating_point():
            self.y = self.y.long()
        if len(self.x) != len(self.y):
            raise DataError(
                f"there are {len(self.x)} samples and {len(self.y)} labels", want="one label per sample",
                fix="Check that x and y come from the same split",
            )
        for name, group in self.groups.items():
            if len(group) != len(self.y):
                raise DataError(f"group '{name}' has {len(group)} entries", want=f"{len(self.y)}, one per sample")

    def __len__(self) -> int:
        return len(self.y)

    def __repr__(self) -> str:
        kind = "values" if self.y.is_floating_point() else "labels"
        groups = f", groups {', '.join(self.groups)}" if self.groups else ""
        return f"Split({len(self)} samples, {self.shape}, {kind}{groups})"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.x.shape[1:])

    def take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return x and y at those positions."""
        return self.x.take(index), self.y[index]

    def first(self, n: int) -> tuple[Tensor, Tensor]:
        """Return the first n samples (all when there are fewer)."""
        return self.take(torch.arange(min(n, len(self))))

    def pick(self, n: int, seed: int, *names: object) -> Tensor:
        """Return the sorted positions of n samples drawn without replacement (all when there are fewer)."""
        if n >= len(self):
            return torch.arange(len(self))
        order = torch.randperm(len(self), generator=generator(seed, "pick", *names))
        return order[:n].sort().values

    def sample(self, n: int, seed: int, *names: object) -> tuple[Tensor, Tensor]:
        """Return n samples drawn without replacement (all when there are fewer)."""
        return self.take(self.pick(n, seed, *names))

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all samples in order, `size` at a time."""
        for start in range(0, len(self), size):
            yield self.take(torch.arange(start, min(start + size, len(self))))

    def tensors(self) -> tuple[Tensor, Tensor]:
        """Return all samples and labels as tensors; for small splits."""
        return self.take(torch.arange(len(self)))


@dataclasses.dataclass(repr=False)
class Data:
    """What a model is assessed on.

    Arguments:
        test: held-out samples (privacy: the non-members).
        train: samples the model was trained on (privacy: the members); None when they are not at hand.
        trusted: a small clean split for filters and repairs; None when there is none.
        bounds: lowest and highest input; numbers, or tensors with one per feature.
        classes: number of classes; None for regression.
        modality: `image` (n, channels, height, width), `tabular` (n, features) or `other`.
        class_names, feature_names: for people; may be empty.
        name: how reports call the data.
        group_names: by group, what each of its codes means; may be empty.
        canaries: records that were planted in the training data to see whether the model learns them by heart, and records drawn
            alike that were not; their group `planted` tells which. None where none were.
    """

    test: Split
    train: Split | None = None
    trusted: Split | None = None
    bounds: Bounds = (0.0, 1.0)
    classes: int | None = None
    modality: str = ""
    class_names: Sequence[str] = ()
    feature_names: Sequence[str] = ()
    name: str = "data"
    group_names: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    canaries: Split | None = None

    def __post_init__(self) -> None:
        for role in ("test", "train", "trusted", "canaries"):
            given = getattr(self, role)
            if isinstance(given, (tuple, list)):
                setattr(self, role, Split(*given))
        if self.classes is None and not self.test.y.is_floating_point():
            labels = [split.y for split in self.splits().values() if len(split)]
            self.classes = int(max(int(y.max()) for y in labels)) + 1 if labels else None
        if not self.modality:
            self.modality = {3: "image", 1: "tabular"}.get(len(self.test.shape), "other")

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(split)} {role}" for role, split in self.splits().items())
        kind = f"{self.classes} classes" if self.is_classification else "numbers to predict"
        low, high = (torch.as_tensor(end).double() for end in self.bounds)
        ends = f"[{float(low.min()):.6g}, {float(high.max()):.6g}]" + (" by feature" if low.ndim or high.ndim else "")
        return f"Data({self.name}: {sizes}, {self.test.shape}, {kind}, bounds {ends})"

    def splits(self) -> dict[str, Split]:
        """Return the splits that are there, by role."""
        named = {"test": self.test, "train": self.train, "trusted": self.trusted, "canaries": self.canaries}
        return {role: split for role, split in named.items() if split is not None}

    @property
    def is_classification(self) -> bool:
        """Whether labels are classes."""
        return not self.test.y.is_floating_point()
