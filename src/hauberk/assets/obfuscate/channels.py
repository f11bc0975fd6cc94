"""Channels: which axes of which tensors carry the same units of a network, so that all can be changed together.

A network computes the same when the units between two layers change places, when they are scaled by positive numbers that the
activation lets through, or, where nothing nonlinear lies between, when they are rotated. A reader of a graph (`fx_reader`,
`onnx_reader`) calls `mix`, `channelwise` and so on in the order of computation; what it does not know it declares opaque.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection


@dataclasses.dataclass(frozen=True)
class Value:
    """What flows on an edge of the graph.

    Arguments:
        units: the group of units whose order it shares.
        scale: the group that is scaled alike.
        repeat: features per unit: 1, or the size of a feature map after it was flattened.
        axis: where the units lie: 1, or -1 for the last axis.
        size: number of units.
    """

    units: int
    scale: int
    size: int
    repeat: int = 1
    axis: int = 1


@dataclasses.dataclass(frozen=True)
class Edit:
    """How one axis of one tensor follows a group.

    Arguments:
        tensor: its name.
        axis: of the tensor.
        units: the group that orders it.
        scales: the groups that scale it, each with the power 1 or -1.
        repeat: consecutive entries per unit.
    """

    tensor: str
    axis: int
    units: int
    scales: tuple[tuple[int, int], ...] = ()
    repeat: int = 1


class Channels:
    """Groups of units and scales of one graph, with the tensors' axes that follow them."""

    def __init__(self) -> None:
        self.edits: list[Edit] = []
        self.sizes: dict[int, int] = {}
        self._parent: list[int] = []
        self._fixed: set[int] = set()
        self._bent: set[int] = set()

    def settle(self, frozen: Collection[str] = ()) -> None:
        """Fix the groups of every tensor that two layers use: it cannot follow both. Called once, when the graph was read.

        Arguments:
            frozen: tensors that something else reads, too.
        """
        seen: dict[tuple[str, int], Edit] = {}
        for edit in self.edits:
            first = seen.setdefault((edit.tensor, edit.axis), edit)
            if first is not edit or edit.tensor in frozen:
                for one in (first, edit):
                    self._fixed |= {one.units, *(group for group, _ in one.scales)}

    def root(self, group: int) -> int:
        """Return the group that stands for this one since they were joined."""
        while self._parent[group] != group:
            group = self._parent[group]
        return group

    def moves(self, group: int) -> bool:
        """Whether the group may change."""
        return self.root(group) not in {self.root(one) for one in self._fixed}

    def turns(self, units: int) -> bool:
        """Whether the units may be rotated: none of what touches them works on each one alone."""
        return self.moves(units) and self.root(units) not in {self.root(one) for one in self._bent}

    def fresh(self, size: int, *, axis: int = 1, fixed: bool = False) -> Value:
        """Return a value of new groups."""
        units, scale = self._new(), self._new()
        self.sizes[units] = size
        if fixed:
            self._fixed |= {units, scale}
        return Value(units, scale, size, 1, axis)

    def opaque(self, *values: Value) -> None:
        """Fix all that these values share: something reads them that is not understood."""
        for value in values:
            self._fixed |= {value.units, value.scale}

    def mix(
        self, value: Value, weight: str, bias: str, size: int, *, out_axis: int = 0, in_axis: int = 1, axis: int = 1
    ) -> Value:
        """Record a layer that mixes the units of `value` into `size` new ones, and return these."""
        made = self.fresh(size, axis=axis)
        self.edits += [
            Edit(weight, out_axis, made.units, ((made.scale, 1),)),
            Edit(weight, in_axis, value.units, ((value.scale, -1),), value.repeat),
        ]
        if bias:
            self.edits.append(Edit(bias, 0, made.units, ((made.scale, 1),)))
        return made

    def channelwise(self, value: Value, scaled: tuple[str, ...], ordered: tuple[str, ...], *, linear: bool) -> Value:
        """Record a layer that works on each unit alone, with a number or a kernel of its own.

        Arguments:
            value: what it reads.
            scaled: tensors by which its answer scales, such as a norm's weight and bias; the first is a factor.
            ordered: tensors that follow the order alone, such as running statistics.
            linear: whether the answer scales with what is read, as a depthwise convolution's does; a norm takes the scale out.
        """
        self._bent.add(value.units)
        made = dataclasses.replace(value, scale=self._new())
        if not linear:
            self._fixed.add(value.scale)
        if not scaled:
            self._fixed.add(made.scale)
        for at, name in enumerate(scaled):
            taken = ((value.scale, -1),) if linear and at == 0 else ()
            self.edits.append(Edit(name, 0, value.units, ((made.scale, 1), *taken), value.repeat))
        self.edits += [Edit(name, 0, value.units, (), value.repeat) for name in ordered]
        return made

    def pointwise(self, value: Value, *, homogeneous: bool) -> Value:
        """Record a function of each number alone; `homogeneous` lets positive scales through."""
        self._bent.add(value.units)
        if not homogeneous:
            self._fixed.add(value.scale)
        return value

    def shifted(self, value: Value, bias: str) -> Value:
        """Record a vector of weights that is added, one number a unit."""
        self.edits.append(Edit(bias, 0, value.units, ((value.scale, 1),), value.repeat))
        return value

    def linear(self, value: Value) -> Value:
        """Record what treats all units alike and linearly, such as the mean over positions."""
        return value

    def join(self, left: Value, right: Value, *, adds: bool = True) -> Value:
        """Record a sum, or a product, unit by unit: the units of both must move together."""
        if (left.size, left.repeat, left.axis) != (right.size, right.repeat, right.axis):
            self.opaque(left, right)
            return self.fresh(left.size, axis=left.axis, fixed=True)
        self._join(left.units, right.units)
        self._join(left.scale, right.scale)
        if not adds:
            self._bent.add(left.units)
            self._fixed.add(left.scale)
        return left

    def flatten(self, value: Value, positions: int) -> Value:
        """Record that feature maps of so many positions were laid in one row, unit by unit."""
        if value.axis != 1:
            self.opaque(value)
            return self.fresh(value.size * positions, fixed=True)
        return dataclasses.replace(value, repeat=value.repeat * positions)

    def _new(self) -> int:
        self._parent.append(len(self._parent))
        return len(self._parent) - 1

    def _join(self, left: int, right: int) -> None:
        a, b = self.root(left), self.root(right)
        if a != b:
            self._parent[b] = a


def combinations(channels: Channels) -> float:
    """Return log2 of the number of orders that the units could have: how many a searcher would have to try."""
    groups = {channels.root(edit.units) for edit in channels.edits if channels.moves(edit.units)}
    return sum(math.lgamma(channels.sizes[group] + 1) for group in groups) / math.log(2)
