"""Sources of randomness and noise mechanisms, one file each."""

from hauberk.privacy.dp.noise.discrete import sample_gaussian as sample_gaussian
from hauberk.privacy.dp.noise.discrete import sample_laplace as sample_laplace
from hauberk.privacy.dp.noise.discrete_gaussian import DiscreteGaussian as DiscreteGaussian
from hauberk.privacy.dp.noise.discrete_laplace import DiscreteLaplace as DiscreteLaplace
from hauberk.privacy.dp.noise.exact import discrete_gaussian as discrete_gaussian
from hauberk.privacy.dp.noise.exact import discrete_laplace as discrete_laplace
from hauberk.privacy.dp.noise.gaussian import AdaptiveGaussian as AdaptiveGaussian
from hauberk.privacy.dp.noise.gaussian import Gaussian as Gaussian
from hauberk.privacy.dp.noise.laplace import Laplace as Laplace
from hauberk.privacy.dp.noise.mechanism import Mechanism as Mechanism
from hauberk.privacy.dp.noise.schedules import Constant as Constant
from hauberk.privacy.dp.noise.schedules import ExpDecay as ExpDecay
from hauberk.privacy.dp.noise.schedules import StepDecay as StepDecay
from hauberk.privacy.dp.noise.schedules import TimeDecay as TimeDecay
from hauberk.privacy.dp.noise.secure import SecureSource as SecureSource
from hauberk.privacy.dp.noise.seeded import SeededSource as SeededSource
from hauberk.privacy.dp.noise.source import Source as Source
