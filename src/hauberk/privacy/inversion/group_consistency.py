"""Inputs on which several searches agree."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from hauberk.core.kinds import Reconstruction, reconstruction
from hauberk.privacy.inversion.client import ClientUpdate
from hauberk.privacy.inversion.first_linear import TAGS
from hauberk.privacy.inversion.guided import Weights, guided


@reconstruction(
    question="Do several searches that heed each other find the inputs behind a gradient?", tags=TAGS, sees="update",
    preset="thorough", paper="Yin et al. 2021, arXiv:2104.07586",
)
def group_consistency(
    module: nn.Module, update: ClientUpdate | Sequence[ClientUpdate], *, seeds: int = 4, steps: int = 1200, lr: float = 0.05,
    tv: float = 1e-3, group: float = 1e-2, seed: int = 0,
) -> Reconstruction:
    """Search inputs from several seeds by the angle between gradients, each drawn to the registered mean of all.

    Arguments:
        module: the model that was sent to the clients; returns logits; never changed.
        update: what a client sent, or several, each to be inverted by itself.
        seeds: searches that heed each other, run side by side.
        steps: of each.
        lr: its rate, in units of the input range.
        tv: weight of the total variation, for images.
        group: weight of the distance from the mean of the seeds, once a quarter of the steps is done.
        seed: of the starts.

    Returns:
        `x` of shape (clients * n, ...) of the best seed, `y`, and `loss` of shape (clients * n,), the objective of the client of
        each input.

    Raises:
        DataError: for updates that are missing, not finite, or not of this model.
        UsageError: for steps or seeds below 1, or a weight below 0.
    """
    weights = Weights(tv=tv, group=group)
    return guided(module, update, weights, seeds=seeds, steps=steps, lr=lr, seed=seed, label="group consistency")
