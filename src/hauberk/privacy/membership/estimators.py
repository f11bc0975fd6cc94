"""Reference models from estimators of scikit-learn, each fitted to its own records."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hauberk.core.errors import ModelError


@dataclasses.dataclass(frozen=True)
class Fitting:
    """One estimator to fit, and to what; picklable where the estimator is.

    Arguments:
        estimator: not fitted.
        x, y: its records.
        classes: how many there are in the whole pool; a half may lack one.
    """

    estimator: Any
    x: Tensor
    y: Tensor
    classes: int


@dataclasses.dataclass(frozen=True)
class Answering:
    """A fitted estimator as a function of a batch: probabilities of all classes, those it never saw with probability 0."""

    estimator: Any
    classes: int

    def __call__(self, x: Tensor) -> Tensor:
        """Return probabilities, shape (n, classes)."""
        told = np.asarray(self.estimator.predict_proba(_rows(x)))
        full = np.zeros((len(told), self.classes))
        full[:, np.asarray(self.estimator.classes_, dtype=int)] = told
        return torch.from_numpy(full)


def fit_estimator(item: Fitting) -> Answering:
    """Fit one estimator; importable by name, for other processes.

    Raises:
        ModelError: for an estimator that gives no probabilities.
    """
    item.estimator.fit(_rows(item.x), item.y.numpy())
    if not callable(getattr(item.estimator, "predict_proba", None)):
        raise ModelError(
            f"a {type(item.estimator).__name__} gives no probabilities", want="predict_proba",
            fix="Wrap it: CalibratedClassifierCV(estimator)",
        )
    return Answering(item.estimator, item.classes)


def fresh_estimator(estimator: Any, seed: int) -> Any:
    """Return an unfitted copy with its own random state."""
    from sklearn.base import clone

    made = clone(estimator)
    drawn = {key: seed for key in made.get_params() if key == "random_state" or key.endswith("__random_state")}
    return made.set_params(**drawn)


def _rows(x: Tensor) -> Any:
    return x.detach().cpu().double().reshape(len(x), -1).numpy()
