"""Checks: each asks one question of a model and answers with a finding. One file per section of the report."""

from hauberk.checks import accuracy as accuracy
from hauberk.checks import assets as assets
from hauberk.checks import attack_metrics as attack_metrics
from hauberk.checks import auto_attack as auto_attack
from hauberk.checks import blackbox as blackbox
from hauberk.checks import calibration as calibration
from hauberk.checks import clever as clever
from hauberk.checks import drift as drift
from hauberk.checks import evasion as evasion
from hauberk.checks import extraction as extraction
from hauberk.checks import fairness as fairness
from hauberk.checks import faults as faults
from hauberk.checks import fuzzing as fuzzing
from hauberk.checks import gradients as gradients
from hauberk.checks import integrity as integrity
from hauberk.checks import masking as masking
from hauberk.checks import mistakes as mistakes
from hauberk.checks import natural as natural
from hauberk.checks import privacy as privacy
from hauberk.checks import reliability as reliability
from hauberk.checks import robust_curve as robust_curve
from hauberk.checks import sandwich as sandwich
from hauberk.checks import spatial as spatial
from hauberk.checks import tables as tables
from hauberk.checks import verification as verification
from hauberk.checks import worst_case as worst_case
