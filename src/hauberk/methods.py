"""Imports every area, which fills the registry. A new area is one line here."""

import hauberk.checks
import hauberk.robustness.attack

__all__ = ["hauberk"]
