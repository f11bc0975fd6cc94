"""Imports every area, which fills the registry. A new area is one line here."""

from __future__ import annotations

import hauberk.checks
import hauberk.integrity.backdoor
import hauberk.integrity.poison
import hauberk.privacy.defence
import hauberk.privacy.inference
import hauberk.privacy.inversion
import hauberk.privacy.membership
import hauberk.privacy.model_inversion
import hauberk.robustness.attack
import hauberk.robustness.attack.detection
import hauberk.robustness.attack.physical
import hauberk.robustness.defend
import hauberk.robustness.detect
import hauberk.robustness.inputs
import hauberk.robustness.natural
import hauberk.robustness.verify
from hauberk.core.card import Registry, registry

__all__ = ["hauberk", "load_methods"]


def load_methods() -> Registry:
    """Return the registry, full: importing this module has imported every area."""
    return registry
