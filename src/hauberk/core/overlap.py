"""Overlap: test samples that are also in the training data, found by fingerprints of their rows; no split is held in memory."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from hauberk.core.data import Data, Split
from hauberk.core.rng import generator

VALUES = 1 << 28  # inputs of a split that are read for this: 340,000 samples of 784
PART = 1 << 22  # inputs read at once


@dataclasses.dataclass(frozen=True)
class Overlap:
    """Which test samples are also in the training data.

    Arguments:
        copies: by test sample, whether an equal one was found in train, shape (n,), bool; False where it was not looked at.
        test, train: how many samples of each split were looked at: all, or in very large splits an even spread of them.
    """

    copies: Tensor
    test: int
    train: int

    @property
    def count(self) -> int:
        """How many test samples are also in the training data."""
        return int(self.copies.sum())

    @property
    def share(self) -> float:
        """Their share of the test samples that were looked at."""
        return self.count / max(self.test, 1)


def looked_at(split: Split) -> Tensor:
    """Return the positions whose samples are compared, sorted: all, or an even spread that holds at most `VALUES` inputs."""
    n, most = len(split), max(1, VALUES // max(math.prod(split.shape), 1))
    return torch.arange(n) if n <= most else torch.linspace(0, n - 1, most, dtype=torch.float64).round().long().unique()


def fingerprints(x: Tensor) -> Tensor:
    """Return a number per sample of x, shape (n,), int64: the same for samples that are equal in float32.

    Others share one by rare chance (about 2^-57 a pair). A multilinear hash of the 32-bit patterns with fixed random weights,
    modulo 2^64.
    """
    rows = x.detach().cpu().reshape(len(x), math.prod(x.shape[1:])).float() + 0.0  # minus zero becomes zero
    bits = rows.contiguous().view(torch.int32)
    # Round numbers end in zero bits, of which a product keeps as many: the upper half is folded down first.
    bits = bits ^ (bits >> 16 & 0xFFFF)  # without the sign, which would fold a pattern and its complement into one
    weights = torch.randint(-(2**62), 2**62, (rows.shape[1],), generator=generator(0, "fingerprints")) | 1
    return bits.long() @ weights


def distinct(x: Tensor, y: Tensor) -> Tensor:
    """Return the positions of the first of each record (x, y), shapes (n, ...) and (n,), sorted: its copies are left out."""
    order = (keys := fingerprints(x) * 1_000_003 + y.cpu().long()).argsort(stable=True)
    ranked = keys[order]
    first = torch.ones(len(order), dtype=torch.bool)
    first[1:] = ranked[1:] != ranked[:-1]
    return order[first].sort().values


def remember(split: Split, marks: Tensor) -> None:
    """Keep the fingerprints of `looked_at(split)` with the split, for those who ask later."""
    # Not a field: it says nothing that the samples do not, and it is void once they are exchanged.
    vars(split)["_marks"] = (split.x, marks)


def overlap(data: Data) -> Overlap:
    """Compare the samples of test and train, without their labels; equal means equal in float32."""
    test, other = looked_at(data.test), data.train
    copies = torch.zeros(len(data.test), dtype=torch.bool)
    if other is None or not len(other) or other.shape != data.test.shape:
        return Overlap(copies, len(test), 0)
    theirs = _marks(other)
    copies[test] = torch.isin(_marks(data.test), theirs)
    return Overlap(copies, len(test), len(theirs))


def _marks(split: Split) -> Tensor:
    x, marks = vars(split).get("_marks", (None, None))
    if x is not split.x or marks is None:
        rows = max(1, PART // max(math.prod(split.shape), 1))
        marks = torch.cat([fingerprints(split.x.take(part)) for part in looked_at(split).split(rows)])
        remember(split, marks)
    known: Tensor = marks
    return known
