"""What differential privacy costs: ε from releases, by several accountants, never under-reported."""

from hauberk.privacy.dp.accounting.account import delta_for as delta_for
from hauberk.privacy.dp.accounting.account import epsilon as epsilon
from hauberk.privacy.dp.accounting.account import group_epsilon as group_epsilon
from hauberk.privacy.dp.accounting.calibrate import epochs_for as epochs_for
from hauberk.privacy.dp.accounting.calibrate import noise_for as noise_for
from hauberk.privacy.dp.accounting.calibrate import steps_for as steps_for
from hauberk.privacy.dp.accounting.gaussian import gaussian_delta as gaussian_delta
from hauberk.privacy.dp.accounting.gaussian import gaussian_epsilon as gaussian_epsilon
from hauberk.privacy.dp.accounting.gaussian import gaussian_noise as gaussian_noise
from hauberk.privacy.dp.accounting.ledger import PrivacyLedger as PrivacyLedger
from hauberk.privacy.dp.accounting.monitor import PrivacyMonitor as PrivacyMonitor
from hauberk.privacy.dp.accounting.release import Release as Release
from hauberk.privacy.dp.accounting.release import Spent as Spent
from hauberk.privacy.dp.accounting.renyi import advanced_composition as advanced_composition
from hauberk.privacy.dp.accounting.statement import PrivacyStatement as PrivacyStatement
from hauberk.privacy.dp.accounting.statement import read_statement as read_statement
