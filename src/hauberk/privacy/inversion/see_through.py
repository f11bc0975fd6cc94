"""Batches seen through their gradient: everything that is known of images at once."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hauberk.core.kinds import Reconstruction, reconstruction
from hauberk.privacy.inversion.client import ClientUpdate
from hauberk.privacy.inversion.first_linear import TAGS
from hauberk.privacy.inversion.guided import Weights, guided


@reconstruction(
    question="Does all that is known of images together win back a batch from its gradient?", tags=TAGS, sees="update",
    preset="thorough", paper="Yin et al. 2021, arXiv:2104.07586",
)
def see_through(
    module: nn.Module, update: ClientUpdate | Sequence[ClientUpdate], *, seeds: int = 4, steps: int = 1200, lr: float = 0.05,
    weights: Weights | None = None, seed: int = 0,
) -> Reconstruction:
    """Search inputs from several seeds by gradients, image priors, batch-norm statistics and what the seeds agree on.

    GradInversion, with the angle between gradients as the distance. Labels that are not known are read off the gradient first.

    Arguments:
        module: the model that was sent to the clients; returns logits; never changed. Without batch normalisation the statistics
            are left out.
        update: what a client sent, or several, each to be inverted by itself.
        seeds: searches that heed each other, run side by side.
        steps: of each.
        lr: its rate, in units of the input range.
        weights: of the priors; None takes total variation .001, squares 1e-6, statistics .001, agreement .01.
        seed: of the starts.

    Returns:
        `x` of shape (clients * n, ...) of the best seed, `y`, and `loss` of shape (clients * n,), the objective of the client of
        each input.

    Raises:
        DataError: for updates that are missing, not finite, or not of this model.
        UsageError: for steps or seeds below 1, or a weight below 0.
    """
    normal = any(isinstance(part, _BatchNorm) and part.running_mean is not None for part in module.modules())
    used = weights or Weights(tv=1e-3, l2=1e-6, statistics=1e-3 if normal else 0.0, group=1e-2)
    return guided(module, update, used, seeds=seeds, steps=steps, lr=lr, seed=seed, label="see through gradients")
