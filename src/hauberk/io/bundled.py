"""The real data sets that come inside scikit-learn: `sklearn:digits` and others, split once for all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hauberk.core.errors import DataError, nearest
from hauberk.io.arrays import rows_of
from hauberk.io.parts import Part, Source

NAMES = ("digits", "breast_cancer", "wine", "iris", "diabetes")
TEST_SHARE = 0.3


def open_bundled(name: str, groups: Sequence[str]) -> Source:
    """Return a data set of scikit-learn, 70 % for training and 30 % for testing, classes in equal shares, always the same rows.

    Digits are images (n, 1, 8, 8) in [0, 1]. The others are tables whose features are scaled to [0, 1] by the lowest and highest
    value of the training part; test values beyond these are set to them. Diabetes is a regression, with the group `sex`.

    Raises:
        DataError: for a name or a group that is not there.
    """
    if name not in NAMES:
        raise DataError(f"there is no data set 'sklearn:{name}'", want=" | ".join(NAMES), fix=nearest(name, NAMES))
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    options = {"scaled": False} if name == "diabetes" else {}
    bunch = getattr(datasets, f"load_{name}")(**options)
    x, y = np.asarray(bunch.data, np.float64), np.asarray(bunch.target)
    held = {"sex": x[:, list(bunch.feature_names).index("sex")].astype(np.int64)} if name == "diabetes" else {}
    for group in groups:
        if group not in held:
            raise DataError(f"sklearn:{name} has no group '{group}'", want=", ".join(held) or "no groups for this data set")
    stratify = None if name == "diabetes" else y
    train, test = train_test_split(np.arange(len(x)), test_size=TEST_SHARE, random_state=0, stratify=stratify)
    values: NDArray[Any]
    if name == "digits":
        values = (x / 16).reshape(-1, 1, 8, 8)
    else:
        low, high = x[train].min(0), x[train].max(0)
        values = ((x - low) / np.where(high > low, high - low, 1)).clip(0, 1)
    parts = {}
    for role, index in (("train", train), ("test", test)):
        parts[role] = Part(
            rows_of(values[index].astype(np.float32), None, f"sklearn:{name}"), y[index], f"sklearn:{name}",
            {group: column[index] for group, column in held.items()}, [str(one) for one in getattr(bunch, "target_names", ())],
        )
    features = [] if name == "digits" else [str(one) for one in bunch.feature_names]
    return Source(f"sklearn:{name}", parts, name, features)
