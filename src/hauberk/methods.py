"""Imports every area, which fills the registry. A new area is one line here."""

import hauberk.checks
import hauberk.robustness.attack
import hauberk.privacy.inversion
import hauberk.privacy.membership

__all__ = ["hauberk"]
