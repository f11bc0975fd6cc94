"""Audits of a claimed ε: canaries go into training by coins of the auditor, and how well an attack calls the coins bounds ε."""

from hauberk.privacy.dp.audit.canaries import BlackBox as BlackBox
from hauberk.privacy.dp.audit.canaries import WhiteBox as WhiteBox
from hauberk.privacy.dp.audit.clopper_pearson import epsilon_clopper_pearson as epsilon_clopper_pearson
from hauberk.privacy.dp.audit.clopper_pearson import epsilon_from_counts as epsilon_from_counts
from hauberk.privacy.dp.audit.fdp import epsilon_fdp as epsilon_fdp
from hauberk.privacy.dp.audit.gdp import epsilon_gdp as epsilon_gdp
from hauberk.privacy.dp.audit.one_run import epsilon_one_run as epsilon_one_run
from hauberk.privacy.dp.audit.one_run import epsilon_one_run_scores as epsilon_one_run_scores
from hauberk.privacy.dp.audit.thresholds import Scores as Scores
from hauberk.privacy.dp.audit.training import Audit as Audit
from hauberk.privacy.dp.audit.training import audit_training as audit_training
