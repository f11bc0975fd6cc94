"""Clipping: how the gradient of each example is bounded before the sum."""

from hauberk.privacy.dp.clipping.automatic import Automatic as Automatic
from hauberk.privacy.dp.clipping.base import Clipping as Clipping
from hauberk.privacy.dp.clipping.flat import Flat as Flat
from hauberk.privacy.dp.clipping.l1 import L1 as L1
from hauberk.privacy.dp.clipping.per_layer import PerLayer as PerLayer
from hauberk.privacy.dp.clipping.quantile import Quantile as Quantile
