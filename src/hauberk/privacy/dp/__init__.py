"""Differential privacy: training whose result tells hardly anything about any one example, with an account of how much."""

from hauberk.privacy.dp.engine import to_group_norm as to_group_norm
from hauberk.privacy.dp.ftrl import PrivateFtrl as PrivateFtrl
from hauberk.privacy.dp.ftrl import make_private_ftrl as make_private_ftrl
from hauberk.privacy.dp.options import PrivateOptions as PrivateOptions
from hauberk.privacy.dp.private import Private as Private
from hauberk.privacy.dp.private import make_private as make_private
from hauberk.privacy.dp.sampling import poisson_batches as poisson_batches
