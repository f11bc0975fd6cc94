"""Which failures are one fault: those of the same labels whose features lie close together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hauberk.robustness.fuzz.corpus import Failure
from hauberk.robustness.fuzz.coverage.novelty import natural_distance, squared


def radius_of(features: Tensor) -> float:
    """Return the radius of a fault: the median distance, over clean samples, to the nearest other one.

    Two failures nearer to each other than two natural samples are count as one.

    Arguments:
        features: of clean samples, shape (n, width).
    """
    return natural_distance(features)


class Faults:
    """Sorts failures into faults as they come.

    In order, a failure joins the first one of its kind, label and answer whose features lie within the radius, else it leads a
    fault of its own: any two leaders of a kind lie farther apart than that.

    Arguments:
        radius: in units of the features.
    """

    def __init__(self, radius: float) -> None:
        self.radius, self.count = radius, 0
        self._leaders: dict[tuple[str, int, int], tuple[list[int], Tensor]] = {}

    def add(self, failure: Failure) -> bool:
        """Number a failure in place, and return whether its fault is a new one."""
        row = failure.features.double()[None]
        key = failure.kind, failure.label, failure.answer
        numbers, points = self._leaders.get(key, ([], row[:0]))
        near = squared(row, points)[0].sqrt() <= self.radius if numbers else torch.zeros(0, dtype=torch.bool)
        if bool(near.any()):
            failure.cluster = numbers[int(near.int().argmax())]
            return False
        failure.cluster = self.count
        self._leaders[key] = [*numbers, self.count], torch.cat([points, row])
        self.count += 1
        return True


def leaders_of(failures: Sequence[Failure]) -> list[Failure]:
    """Return the first failure of each fault, in order."""
    first: dict[int, Failure] = {}
    for one in failures:
        first.setdefault(one.cluster, one)
    return list(first.values())
