"""Canaries for classifiers: records with labels drawn at random, planted in training, and others drawn alike that are not."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from hauberk.core.data import Split
from hauberk.core.errors import DataError, UsageError
from hauberk.core.rng import generator
from hauberk.io.canaries import save_canaries

Kind = Literal["mislabelled", "noise"]


@dataclasses.dataclass(frozen=True)
class Planting:
    """Training data with canaries in it.

    Arguments:
        train: what to train on.
        canaries: all canaries, planted and spare, with the group `planted`: the adversary's candidates.
    """

    train: Split
    canaries: Split

    def save(self, path: str | Path) -> None:
        """Write the canaries to an .npz, to be named in the plan (data.canaries) once the model is trained.

        Raises:
            UsageError: where it cannot be written.
        """
        save_canaries(self.canaries, path)


def plant_canaries(
    train: Split, *, count: int = 50, classes: int | None = None, kind: Kind = "mislabelled", copies: int = 1, seed: int = 0,
) -> Planting:
    """Draw canaries twice as many as asked for, and plant a random half of them in the training data.

    The other half is what the planted ones are ranked among once the model is trained: nothing but having been planted sets
    the two apart (Carlini et al. 2019, arXiv:1802.08232).

    Arguments:
        train: the training split, labels are classes; its groups are kept for `mislabelled` alone, where no record is new.
        count: canaries to plant; as many are kept back.
        classes: how many there are; None reads it from the labels.
        kind: `mislabelled` takes 2 x count records out of the training data and puts half of them back under another label;
            `noise` adds inputs drawn evenly within the range of each feature (of images: of all pixels) under any label.
        copies: how often each is planted.
        seed: of the draw.

    Raises:
        UsageError: for a count or number of copies below 1, or another kind.
        DataError: for labels that are no classes, or too few records.
    """
    if count < 1 or copies < 1 or kind not in ("mislabelled", "noise"):
        raise UsageError(f"{count} canaries of kind '{kind}', {copies} times", want="at least 1, mislabelled | noise")
    if train.y.is_floating_point() or not len(train):
        raise DataError(f"the training split is {train!r}", want="records whose labels are classes")
    labels = int(train.y.max()) + 1 if classes is None else classes
    if labels < 2:
        raise DataError(f"there is {labels} class", want="at least 2", fix="Give classes=")
    draw, number = generator(seed, "plant canaries", kind), 2 * count
    kept = torch.arange(len(train))
    if kind == "mislabelled":
        if number > len(train) // 2:
            raise DataError(f"{number} of {len(train)} records would become canaries", want="at most half", fix="Lower the count")
        order = torch.randperm(len(train), generator=draw)
        taken, kept = order[:number], order[number:].sort().values
        x, y = train.take(taken)
        y = (y + torch.randint(1, labels, y.shape, generator=draw)) % labels
    else:
        x, y = _noise(train, number, seed, draw), torch.randint(labels, (number,), generator=draw)
    planted = torch.arange(number) < count  # the draw is in random order already
    back = torch.arange(count).repeat(copies)
    old_x, old_y = train.take(kept)
    groups = {}
    if kind == "mislabelled":
        groups = {name: torch.cat([group[kept], group[taken[back]]]) for name, group in train.groups.items()}
    joined = Split(torch.cat([old_x, x[back].to(old_x)]), torch.cat([old_y, y[back]]), groups)
    return Planting(joined, Split(x, y, {"planted": planted.long()}))


def _noise(train: Split, number: int, seed: int, draw: torch.Generator) -> Tensor:
    known, _ = train.sample(1000, seed, "range of canaries")
    if not known.is_floating_point():
        highest = int(known.max()) + 1
        return torch.randint(highest, (number, *train.shape), generator=draw)
    rows = known if len(train.shape) == 1 else known.flatten()
    low, high = rows.amin(0), rows.amax(0)
    return low + (high - low) * torch.rand(number, *train.shape, generator=draw, dtype=known.dtype)
