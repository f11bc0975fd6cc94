"""Mechanisms beyond the private step, one file each: each returns its result and the releases for the ledger."""

from hauberk.privacy.dp.mechanisms.banded import BandedNoise as BandedNoise
from hauberk.privacy.dp.mechanisms.banded import mean_squared_error as mean_squared_error
from hauberk.privacy.dp.mechanisms.banded import optimised as optimised
from hauberk.privacy.dp.mechanisms.banded import square_root as square_root
from hauberk.privacy.dp.mechanisms.correlated import CorrelatedNoise as CorrelatedNoise
from hauberk.privacy.dp.mechanisms.fedavg import Round as Round
from hauberk.privacy.dp.mechanisms.fedavg import dp_fedavg as dp_fedavg
from hauberk.privacy.dp.mechanisms.noisy_max import Chosen as Chosen
from hauberk.privacy.dp.mechanisms.noisy_max import exponential_mechanism as exponential_mechanism
from hauberk.privacy.dp.mechanisms.noisy_max import gaussian_noisy_max as gaussian_noisy_max
from hauberk.privacy.dp.mechanisms.noisy_max import laplace_noisy_max as laplace_noisy_max
from hauberk.privacy.dp.mechanisms.randomized_response import NoisyLabels as NoisyLabels
from hauberk.privacy.dp.mechanisms.randomized_response import forward_loss as forward_loss
from hauberk.privacy.dp.mechanisms.randomized_response import randomized_response as randomized_response
from hauberk.privacy.dp.mechanisms.randomized_response import rr_with_prior as rr_with_prior
from hauberk.privacy.dp.mechanisms.randomized_response import transition as transition
from hauberk.privacy.dp.mechanisms.randomized_response import unbiased_loss as unbiased_loss
from hauberk.privacy.dp.mechanisms.tree import TreeNoise as TreeNoise
from hauberk.privacy.dp.mechanisms.tree import tree_variance as tree_variance
