"""Imports every area, which fills the registry. A new area is one line here."""

import hauberk.checks
import hauberk.integrity.backdoor
import hauberk.integrity.poison
import hauberk.privacy.inversion
import hauberk.privacy.membership
import hauberk.robustness.attack
import hauberk.robustness.defend
import hauberk.robustness.detect
import hauberk.robustness.natural
import hauberk.robustness.verify

__all__ = ["hauberk"]
