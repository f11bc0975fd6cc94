"""Canaries on disk: an .npz of samples, labels, and which of them were planted in the training data."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch

from hauberk.core.data import Split
from hauberk.core.errors import DataError
from hauberk.core.files import write_whole
from hauberk.io.npz import read_members

WANT = "arrays x (n, ...) of floats, y (n,) of whole numbers, and planted (n,) of True and False"
FIX = "hauberk.privacy.inference.plant_canaries makes them, and its answer has save()"


def read_canaries(path: str | Path) -> Split:
    """Return the canaries of a file, with the group `planted`: 1 for those in the training data, 0 for those left out of it.

    Arguments:
        path: an .npz with `x`, `y` and `planted`; without `planted` all of them were.

    Raises:
        DataError: for a file that is missing, broken, or holds other things.
    """
    place = Path(path).expanduser()
    if not place.is_file() or place.suffix.lower() != ".npz":
        raise DataError(f"the canaries {place} are no .npz file that is there", want=f"an .npz with {WANT}", fix=FIX)
    try:
        held = read_members(place)
    except OSError as error:
        raise DataError(f"{place} cannot be read ({error.strerror or error})", want="a file that may be read") from error
    if "x" not in held or "y" not in held:
        raise DataError(f"{place} holds the arrays {', '.join(sorted(held)[:12]) or 'of nothing'}", want=WANT, fix=FIX)
    x, y, planted = np.array(held["x"]), np.array(held["y"]), np.array(held.get("planted", np.ones(len(held["y"]), dtype=bool)))
    shapes = f"x {x.dtype} {x.shape}, y {y.dtype} {y.shape}, planted {planted.dtype} {planted.shape}"
    kinds = (x.dtype.kind == "f" or x.dtype == np.int64) and y.dtype.kind in "iu" and planted.dtype.kind in "biu"
    if not kinds or (y.ndim, planted.ndim) != (1, 1) or not x.ndim or not len(x) == len(y) == len(planted):
        raise DataError(f"{place} holds {shapes}", want=WANT, fix=FIX)
    if not np.isin(planted, (0, 1)).all():
        raise DataError(f"{place} holds {shapes}", want=WANT, fix=FIX)
    if x.dtype.kind == "f":
        x = x.astype(np.float32)
    labels, marks = (torch.from_numpy(one.astype(np.int64)) for one in (y, planted))
    return Split(torch.from_numpy(x), labels, {"planted": marks})


def save_canaries(canaries: Split, path: str | Path) -> None:
    """Write canaries as `read_canaries` takes them (plan: data.canaries).

    Arguments:
        canaries: with the group `planted`.
        path: of the .npz to write; an earlier one is replaced.

    Raises:
        UsageError: where it cannot be written.
    """
    x, y = canaries.tensors()
    planted = canaries.groups.get("planted", torch.ones_like(y)).bool()
    made = io.BytesIO()
    np.savez(made, x=x.cpu().numpy(), y=y.cpu().numpy(), planted=planted.cpu().numpy())
    write_whole(Path(path), made.getvalue())
