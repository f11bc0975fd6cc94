"""What every poison needs first: a train split with classes, and a share of it chosen by seed."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.core.data import Data, Split
from hauberk.core.errors import DataError, UsageError


def training(data: Data, *labels: int | None) -> tuple[Split, int]:
    """Return the train split and the number of classes.

    Raises:
        DataError: where either is missing.
        UsageError: for a label that is not among the classes.
    """
    if data.train is None or not len(data.train):
        raise DataError("there is no train split to poison", want="Data(..., train=...)")
    if data.classes is None or not data.is_classification:
        raise DataError("the labels are not classes", want="integer labels")
    for label in labels:
        if label is not None and not 0 <= label < data.classes:
            raise UsageError(f"the label {label} is not there", want=f"0 to {data.classes - 1}")
    return data.train, data.classes


def choose(free: Tensor, rate: float, draws: torch.Generator) -> Tensor:
    """Return the sorted positions of round(rate * n) samples drawn from those that are `free`, shape (n,), bool.

    Raises:
        UsageError: for a rate outside 0 to 1.
        DataError: when too few are free.
    """
    if not 0 <= rate <= 1:
        raise UsageError(f"rate is {rate}", want="a share from 0 to 1")
    count, places = round(rate * len(free)), free.nonzero()[:, 0]
    if count > len(places):
        raise DataError(
            f"a rate of {rate:g} asks for {count} of {len(free)} samples, and {len(places)} can be poisoned",
            want=f"a rate of at most {len(places) / max(len(free), 1):.4g}",
        )
    return places[torch.randperm(len(places), generator=draws)[:count]].sort().values
