"""Checks: each asks one question of a model and answers with a finding. One file per section of the report."""

from hauberk.checks import accuracy as accuracy
from hauberk.checks import evasion as evasion
from hauberk.checks import gradients as gradients
from hauberk.checks import privacy as privacy
