"""Hauberk assesses, hardens, protects and watches machine-learning models over their whole life.

The names below are loaded when first used, so that the command line answers without waiting for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Access": "hauberk.core.access", "Budget": "hauberk.core.access", "Target": "hauberk.core.target",
    "Threat": "hauberk.core.threat", "Goal": "hauberk.core.threat", "Linf": "hauberk.core.threat", "L2": "hauberk.core.threat",
    "L1": "hauberk.core.threat", "L0": "hauberk.core.threat", "Patch": "hauberk.core.threat",
    "Structure": "hauberk.core.structure",
    "Data": "hauberk.core.data", "Split": "hauberk.core.data", "Finding": "hauberk.core.finding",
    "fit": "hauberk.core.train", "Schedule": "hauberk.core.train", "tap": "hauberk.core.taps",
    "load_model": "hauberk.io.models", "load_data": "hauberk.io.datasets",
    "assess": "hauberk.assessment", "load_plan": "hauberk.planned", "Report": "hauberk.report.report",
}

if TYPE_CHECKING:
    from hauberk.assessment import assess as assess
    from hauberk.core.access import Access as Access
    from hauberk.core.access import Budget as Budget
    from hauberk.core.data import Data as Data
    from hauberk.core.data import Split as Split
    from hauberk.core.finding import Finding as Finding
    from hauberk.core.structure import Structure as Structure
    from hauberk.core.taps import tap as tap
    from hauberk.core.target import Target as Target
    from hauberk.core.threat import L0 as L0
    from hauberk.core.threat import L1 as L1
    from hauberk.core.threat import L2 as L2
    from hauberk.core.threat import Goal as Goal
    from hauberk.core.threat import Linf as Linf
    from hauberk.core.threat import Patch as Patch
    from hauberk.core.threat import Threat as Threat
    from hauberk.core.train import Schedule as Schedule
    from hauberk.core.train import fit as fit
    from hauberk.io.datasets import load_data as load_data
    from hauberk.io.models import load_model as load_model
    from hauberk.planned import load_plan as load_plan
    from hauberk.report.report import Report as Report

__all__ = [*sorted(_HOMES), "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hauberk' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return list(__all__)
