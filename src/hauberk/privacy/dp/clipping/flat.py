"""Flat clipping: the whole gradient of an example is scaled down to norm C. Abadi et al. 2016, arXiv:1607.00133."""

from __future__ import annotations

from torch import Tensor

from hauberk.privacy.dp.clipping.base import Clipping, Norms, shrunk, whole


class Flat(Clipping):
    """Scale each example's gradient g by min(1, C/‖g‖).

    Arguments:
        clip: C, the greatest L2 norm.
    """

    def weights(self, norms: Norms) -> Tensor:
        """Return min(1, C/‖g‖), shape (batch,)."""
        return shrunk(whole(norms, self.norm), self.clip)
