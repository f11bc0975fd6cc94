"""The public surface is written down: a name or parameter that goes away, or a new one, is seen in review."""

from __future__ import annotations

import inspect
import json
import os
import re
from pathlib import Path

import hauberk
from hauberk.methods import load_methods

GOLDEN = Path(__file__).parent / "golden" / "api_surface.json"


def surface() -> dict[str, object]:
    """Every public name with its parameters, and every registered method with its options."""
    names = {}
    for name in hauberk.__all__:
        value = getattr(hauberk, name)
        shown = str(inspect.signature(value)) if callable(value) and not inspect.isclass(value) else type(value).__name__
        names[name] = re.sub(r" at 0x[0-9a-f]+", "", shown)
        if inspect.isclass(value):
            members = [member for member in vars(value) if not member.startswith("_")]
            names[name] = "class: " + ", ".join(sorted(members))
    methods = {
        f"{card.kind}:{card.name}": {
            "parameters": list(inspect.signature(card.function).parameters),
            "access": card.access.name if card.access is not None else None, "preset": card.preset,
        }
        for card in load_methods().cards()
    }
    return {"names": names, "methods": dict(sorted(methods.items()))}


def test_the_public_surface_is_the_one_written_down() -> None:
    found = json.dumps(surface(), indent=1, sort_keys=True) + "\n"
    if os.environ.get("HAUBERK_UPDATE_GOLDEN"):
        GOLDEN.write_text(found, encoding="utf-8")
    written = GOLDEN.read_text(encoding="utf-8")
    assert found == written, "run with HAUBERK_UPDATE_GOLDEN=1 if the change of the surface is meant"
