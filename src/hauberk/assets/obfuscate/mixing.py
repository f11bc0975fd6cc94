"""Mixing: another set of weights that computes the same."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from hauberk.assets.obfuscate.channels import Channels, Edit
from hauberk.assets.obfuscate.draws import Draws

OCTAVES = 2  # scales are 1/4 to 4: half precision keeps its range
LARGEST_ROTATION = 4096  # a QR factorisation of this size takes seconds


def mixed(tensors: Mapping[str, Tensor], channels: Channels, key: bytes, salt: bytes) -> dict[str, Tensor]:
    """Return the tensors with units reordered, scaled by powers of two and, where nothing nonlinear lies between, rotated.

    Arguments:
        tensors: weights by name; every name in `channels.edits` must be there.
        channels: which axes belong together.
        key, salt: of the draws.

    Returns:
        New tensors of the same shapes and dtypes; those that no group may change are the same objects.
    """
    turning = {channels.root(edit.units) for edit in channels.edits if channels.turns(edit.units)}
    turning -= {channels.root(edit.units) for edit in channels.edits if edit.repeat != 1}
    turning = {group for group in turning if channels.sizes[group] <= LARGEST_ROTATION}
    out, touched = dict(tensors), set[str]()
    for edit in channels.edits:
        if not _changes(channels, edit):
            continue
        value = out[edit.tensor].detach().cpu().double() if edit.tensor not in touched else out[edit.tensor]
        touched.add(edit.tensor)
        out[edit.tensor] = _edited(value, channels, edit, key, salt, turning)
    for name in touched:
        out[name] = out[name].to(tensors[name].device, tensors[name].dtype)
    return out


def _changes(channels: Channels, edit: Edit) -> bool:
    return channels.moves(edit.units) or any(channels.moves(group) for group, _ in edit.scales)


def _edited(value: Tensor, channels: Channels, edit: Edit, key: bytes, salt: bytes, turning: set[int]) -> Tensor:
    units = channels.root(edit.units)
    n = value.shape[edit.axis] // edit.repeat
    moved = value.movedim(edit.axis, 0).reshape(n, -1)  # (units, repeat x the rest)
    if channels.moves(units):
        moved = moved[Draws(key, salt, f"order\0{units}").permutation(n)]
    for group, power in edit.scales:
        if channels.moves(group):
            scale = Draws(key, salt, f"scale\0{channels.root(group)}").powers(n, OCTAVES)
            moved = moved * scale[:, None] ** power
    if units in turning:
        moved = Draws(key, salt, f"turn\0{units}").rotation(n) @ moved
    rest = [size for axis, size in enumerate(value.shape) if axis != edit.axis]
    return moved.reshape(value.shape[edit.axis], *rest).movedim(0, edit.axis)
