"""Inputs whose gradient and whose batch-norm statistics are the known ones."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from hauberk.core.kinds import Reconstruction, reconstruction
from hauberk.privacy.inversion.client import ClientUpdate
from hauberk.privacy.inversion.first_linear import TAGS
from hauberk.privacy.inversion.guided import Weights, guided


@reconstruction(
    question="Do batch-norm statistics help to find the inputs behind a gradient?", tags=TAGS, sees="update",
    preset="thorough", paper="Yin et al. 2021, arXiv:2104.07586; Yin et al. 2020, arXiv:1912.08795",
)
def batch_norm_matching(
    module: nn.Module, update: ClientUpdate | Sequence[ClientUpdate], *, steps: int = 1200, lr: float = 0.05, tv: float = 1e-3,
    statistics: float = 1e-3, restarts: int = 1, seed: int = 0,
) -> Reconstruction:
    """Search inputs by the angle between gradients, total variation, and the mean and variance that enter each batch norm.

    Arguments:
        module: the model that was sent to the clients, with batch normalisation; returns logits; never changed.
        update: what a client sent, or several, each to be inverted by itself. Statistics that the client shares are matched, else
            the model's running ones.
        steps: of the search.
        lr: its rate, in units of the input range.
        tv: weight of the total variation, for images.
        statistics: weight of the statistics.
        restarts: starts; the best is returned.
        seed: of the starts.

    Returns:
        `x` of shape (clients * n, ...), `y`, and `loss` of shape (clients * n,), the objective of the client of each input.

    Raises:
        DataError: for updates that are missing, not finite, or not of this model.
        ModelError: when there are no statistics to match.
        UsageError: for steps or restarts below 1, or a weight below 0.
    """
    weights = Weights(tv=tv, statistics=statistics)
    return guided(module, update, weights, seeds=restarts, steps=steps, lr=lr, seed=seed, label="batch-norm matching")
