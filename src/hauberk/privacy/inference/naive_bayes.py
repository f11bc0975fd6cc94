"""Database reconstruction from naive Bayes: its parameters are sums, and a sum minus what is known is the record that is not."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hauberk.core.errors import DataError, ModelError
from hauberk.core.kinds import Reconstruction, reconstruction
from hauberk.privacy.inference.attributes import TAGS


@reconstruction(
    question="Does a naive Bayes model hand over the one training record that the adversary does not know?",
    paper="Holohan et al. 2019, arXiv:1907.02444 (the statistics that a private naive Bayes noises)", tags=TAGS,
    preset="thorough", sees="statistics",
)
def naive_bayes_record(model: Any, known: tuple[Tensor, Tensor]) -> Reconstruction:
    """Return the missing record exactly, and its label, from the sufficient statistics of a fitted naive Bayes model.

    The class that counts one record more than is known is the label. Of a `GaussianNB`, count times mean minus the sum of the
    known records is the record; of a `CategoricalNB`, `MultinomialNB` or `BernoulliNB` it is the difference of the counts.

    Arguments:
        model: of scikit-learn, fitted without sample weights on the known records and one more.
        known: the other records and their labels, shapes (m, features) and (m,).

    Returns:
        `x` of shape (1, features), float64 (for `BernoulliNB` after its cut to 0 and 1); `y` of shape (1,), int64, by the place
        of the class in `model.classes_`; `loss` of shape (1,): how far the model's other statistics are from those that the
        record implies, relative; near 0 when the record is right, NaN where there are none to compare.

    Raises:
        ModelError: for a model that holds no such statistics.
        DataError: where it was not trained on just one record more.
    """
    if not hasattr(model, "class_count_"):
        raise ModelError(f"a {type(model).__name__} was given", want="a fitted naive Bayes model of scikit-learn")
    x, y = known[0].detach().cpu().double().numpy(), known[1].cpu().numpy()
    counts = np.asarray(model.class_count_, dtype=float)
    missing = counts - np.array([(y == one).sum() for one in model.classes_])
    label = int(missing.argmax())
    if not np.allclose(missing, np.eye(len(counts))[label], atol=1e-6):
        raise DataError(
            f"the model counts {counts.sum():g} records and {len(y)} are known, by class {missing.tolist()} more",
            want="all records but one, and a model fitted without sample weights",
        )
    rows = x[y == model.classes_[label]]
    record, loss = _record(model, rows, label)
    return Reconstruction(torch.from_numpy(record)[None], y=torch.tensor([label]), loss=torch.tensor([loss]))


def _record(model: Any, rows: NDArray[np.float64], label: int) -> tuple[NDArray[np.float64], float]:
    if hasattr(model, "theta_"):
        count = len(rows) + 1
        # Around the mean of the class, so that large offsets cost no digits.
        middle = np.asarray(model.theta_[label], dtype=float)
        record = middle - (rows - middle).sum(0)
        implied = ((rows - middle) ** 2).sum(0) + (record - middle) ** 2
        stored = np.asarray(model.var_[label], dtype=float)
        return record, float(np.abs(implied / count + model.epsilon_ - stored).max() / stored.max())
    if hasattr(model, "category_count_"):
        found = []
        apart = 0.0
        for feature, table in enumerate(model.category_count_):
            left = table[label] - np.bincount(rows[:, feature].astype(int), minlength=table.shape[1])
            found.append(float(left.argmax()))
            apart = max(apart, float(np.abs(left - np.eye(len(left))[int(left.argmax())]).max()))
        return np.array(found), apart
    if hasattr(model, "feature_count_"):
        cut = getattr(model, "binarize", None)
        seen = rows if cut is None else (rows > cut).astype(float)
        return np.asarray(model.feature_count_[label], dtype=float) - seen.sum(0), float("nan")
    raise ModelError(f"a {type(model).__name__} keeps no sums or counts", want="GaussianNB, CategoricalNB or one of counts")
