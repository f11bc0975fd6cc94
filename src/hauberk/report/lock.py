"""plan.lock.toml: all that is needed to run the assessment again."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from typing import Any

from hauberk.report.report import Report
from hauberk.report.scope import versions
from hauberk.report.words import line


def lock_toml(report: Report) -> str:
    """Return the plan that was followed, with the versions and the seed of the run, as TOML that `hauberk assess` reads.

    What the plan does not hold (a model that came as a Python object) is said in a comment at the top; hashes are comments too.
    """
    import tomli_w

    table = _table(report.plan)
    found = versions(report.scope)
    if found and "versions" not in table:
        table["versions"] = dict(found)
    seed = report.scope.get("seed")
    run = table.setdefault("run", {})
    if isinstance(run, dict):
        if isinstance(seed, int) and "seed" not in run:
            run["seed"] = seed
        if isinstance(report.scope.get("preset"), str) and "preset" not in run:
            run["preset"] = report.scope["preset"]
    if not run:
        del table["run"]
    # Plain keys stand before tables in TOML, and read best at the top.
    ordered = dict(sorted(table.items(), key=lambda item: isinstance(item[1], (dict, list))))
    return "".join(f"# {one}\n" for one in _remarks(report)) + "\n" + tomli_w.dumps(ordered)


def runs_again(report: Report) -> bool:
    """Whether the locked plan names a model and data, so that `hauberk assess plan.lock.toml` repeats the run."""
    return bool(report.plan.get("model")) and bool(report.plan.get("data"))


def command(report: Report) -> str:
    """Return what runs the assessment again."""
    if runs_again(report):
        return "hauberk assess plan.lock.toml"
    said = [f"{key}={report.scope[key]!r}" for key in ("preset", "seed") if isinstance(report.scope.get(key), (str, int))]
    return f"hauberk.assess({', '.join(['model', 'data', 'threat', *(line(one, 80) for one in said)])})"


def _remarks(report: Report) -> list[str]:
    told = ["Written by hauberk: what was run. Run it again with: hauberk assess plan.lock.toml"]
    if not runs_again(report):
        told = ["Written by hauberk: what was run. Model and data came as Python objects: give them to hauberk.assess again."]
    for key in ("model", "data"):
        part = report.scope.get(key)
        if isinstance(part, Mapping):
            told += [f"{key} {name}: {line(value, 200)}" for name, value in _hashes(part)]
    return told


def _hashes(part: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found = []
    for key, value in part.items():
        name = f"{prefix}{line(key, 40)}"
        if isinstance(value, Mapping):
            found += _hashes(value, f"{name} ")
        elif isinstance(value, str) and ("sha256" in str(key) or "hash" in str(key)):
            found.append((name, value))
    return found


def _table(value: Mapping[str, Any]) -> dict[str, Any]:
    return {str(key): _plain(one) for key, one in value.items() if one is not None}


def _plain(value: Any) -> Any:
    """Return a value as TOML knows it: it has no null, and text must be Unicode that can be encoded."""
    if isinstance(value, Mapping):
        return _table(value)
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value if one is not None]
    if isinstance(value, (bool, int, datetime.date, datetime.time)):
        return value
    if isinstance(value, float):
        return value if not math.isnan(value) else "nan"
    return str(value).encode("utf-8", "replace").decode("utf-8")
