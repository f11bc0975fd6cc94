"""Differential privacy: training whose result tells hardly anything about any one example, with an account of how much."""

from hauberk.privacy.dp.options import PrivateOptions as PrivateOptions
from hauberk.privacy.dp.private import Private as Private
from hauberk.privacy.dp.private import make_private as make_private
from hauberk.privacy.dp.sampling import poisson_batches as poisson_batches
