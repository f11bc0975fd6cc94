"""The classifiers that an adversary trains on a table, from scikit-learn."""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from hauberk.core.errors import DataError, UsageError
from hauberk.core.rng import derive_seed

Learner = Literal["forest", "boosting", "logistic"]


def fitted(learner: Learner, rows: Tensor, codes: Tensor, asked: Tensor, values: int, seed: int) -> Tensor:
    """Return log-probabilities of each value for the rows asked, shape (n, values), of a classifier trained on other rows.

    Arguments:
        learner: `forest`, `boosting` or `logistic`.
        rows, codes: to train on, shapes (m, features) and (m,).
        asked: shape (n, features).
        values: how many values there are; one that no row holds gets a tiny probability.
        seed: of the learner.

    Raises:
        UsageError: for an unknown learner.
        DataError: for rows of one value alone.
    """
    if learner not in get_args(Learner):
        raise UsageError(f"learner is '{learner}'", want=" | ".join(get_args(Learner)))
    if len(codes.unique()) < 2:
        raise DataError(f"the {len(codes)} known records all hold one value", want="known records of at least 2 values")
    made = _made(learner, derive_seed(seed, "attribute learner") % 2**31)
    # Standardised: a constant column is all zeros and moves no learner.
    middle, spread = rows.mean(0), rows.std(0)
    spread = torch.where(spread > 1e-12, spread, torch.inf)
    made.fit(((rows - middle) / spread).numpy(), codes.cpu().numpy())
    found = made.predict_proba(((asked - middle) / spread).numpy()) if len(asked) else np.zeros((0, len(made.classes_)))
    p = torch.full((len(asked), values), 1e-9, dtype=torch.float64)
    p[:, torch.as_tensor(made.classes_).long()] = torch.as_tensor(found, dtype=torch.float64).clamp_min(1e-9)
    return p.log()


def _made(learner: Learner, seed: int) -> Any:
    if learner == "forest":
        from sklearn.ensemble import RandomForestClassifier

        return RandomForestClassifier(100, min_samples_leaf=3, random_state=seed, n_jobs=1)
    if learner == "boosting":
        from sklearn.ensemble import HistGradientBoostingClassifier

        return HistGradientBoostingClassifier(max_iter=100, random_state=seed)
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=5000)
