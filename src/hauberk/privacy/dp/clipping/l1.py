"""Clipping in the L1 norm, which is what the Laplace mechanism needs. Dwork et al. 2006, "Calibrating noise to sensitivity"."""

from __future__ import annotations

from hauberk.privacy.dp.clipping.flat import Flat


class L1(Flat):
    """Scale each example's gradient g by min(1, C/‖g‖₁).

    Arguments:
        clip: C, the greatest L1 norm.
    """

    norm = "l1"
