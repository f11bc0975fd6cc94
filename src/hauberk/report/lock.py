"""plan.lock.toml: all that is needed to run the assessment again."""

from __future__ import annotations

import ast
import datetime
import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from hauberk.report.report import Report
from hauberk.report.scope import versions
from hauberk.report.words import line

LOCK = "plan.lock.toml"
_PROGRAMS = ("hauberk", "pip", "python")
_PLANNED = ("assess", "diagnose", "fuzz", "invert", "membership")  # commands whose first argument is a plan


def lock_toml(report: Report) -> str:
    """Return the plan that was followed, with the versions and the seed of the run, as TOML that `hauberk assess` reads.

    What the plan does not hold (a model that came as a Python object) is said in a comment at the top. The hashes of model and
    data go into a table, by which a later run notices that one of them has changed.
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
    table.pop("hashes", None)  # of an earlier run, where the plan itself was a lock
    parts = {key: report.scope[key] for key in ("model", "data") if isinstance(report.scope.get(key), Mapping)}
    hashes = {key: part["sha256"] for key, part in parts.items() if isinstance(part.get("sha256"), str) and part["sha256"]}
    if hashes:
        table["hashes"] = hashes
    # Plain keys stand before tables in TOML, and read best at the top.
    ordered = dict(sorted(table.items(), key=lambda item: isinstance(item[1], (dict, list))))
    return "".join(f"# {one}\n" for one in _remarks(report)) + "\n" + tomli_w.dumps(ordered)


def runs_again(report: Report) -> bool:
    """Whether the locked plan names a model and data, so that `hauberk assess plan.lock.toml` repeats the run."""
    return bool(report.plan.get("model")) and bool(report.plan.get("data"))


def own_command(report: Report) -> str:
    """Return the command that the run itself names, as a study does; empty where it names none."""
    named = report.scope.get("command")
    return line(named, 1200) if isinstance(named, str) else ""


def command(report: Report, place: str = LOCK) -> str:
    """Return what runs the assessment again.

    Arguments:
        report: what was assessed.
        place: the locked plan, seen from where the command is to be run.
    """
    if runs_again(report):
        return f"hauberk assess {shlex.quote(place)}{_elsewhere(place)}"
    if own_command(report):
        return own_command(report)
    said = [f"{key}={report.scope[key]!r}" for key in ("preset", "seed") if isinstance(report.scope.get(key), (str, int))]
    return f"hauberk.assess({', '.join(['model', 'data', 'threat', *(line(one, 80) for one in said)])})"


def steps(command: str, report: Report | None = None, place: str = LOCK) -> list[tuple[str, str]]:
    """Return a command as the lines to type: each with its prompt, `$` for the shell and `>>>` for Python.

    A command that needs a plan gets the locked one where it can be run again; where not, `hauberk assess --…` becomes a call in
    Python, and another is left with PLAN to fill in.

    Arguments:
        command: one command of the shell, or Python statements with `; ` between them.
        report: the report that gives the command.
        place: the locked plan, seen from where the command is to be run.
    """
    if not command:
        return []
    known = report is not None and runs_again(report)
    if command.startswith("hauberk assess --") and not known:
        command = _call(command)
    else:
        command = with_plan(command, place if known else "PLAN")
    if command.split(" ")[0] in _PROGRAMS:
        return [("$", command)]
    parts = command.split("; ")
    return [(">>>", part) for part in (parts if all(map(_is_python, parts)) else [command])]


def with_plan(command: str, place: str) -> str:
    """Return a command that takes a plan and names none, or PLAN, with the plan that it needs; any other as it is."""
    program, _, rest = command.partition(" ")
    name, _, rest = rest.partition(" ")
    given = rest.partition(" ")[0]
    if program != "hauberk" or name not in _PLANNED or not (given in ("", "PLAN") or given.startswith("--")):
        return command
    rest = rest.removeprefix("PLAN").strip()
    return " ".join(filter(None, ("hauberk", name, shlex.quote(place), rest))) + (_elsewhere(place) if name == "assess" else "")


def preamble(commands: Sequence[str], report: Report | None = None, place: str = LOCK) -> list[tuple[str, str]]:
    """Return the lines of Python, each with its prompt, that give the names which commands use and do not make themselves.

    Arguments:
        commands: what `steps` is given, one after the other.
        report: the report that gives them; without one, the plan is taken to be at `place`.
        place: the locked plan, seen from where the commands are to be run.
    """
    every = (one for command in commands for one in steps(command, report, place))
    typed = [step for prompt, step in every if prompt == ">>>" and _is_python(step)]
    free = _free(typed)
    own = report is not None and not runs_again(report)  # model, data and threat are objects of the reader's
    rows = [row for name, row in (("torch", "import torch"),) if name in free]
    got = [name for name in ("model", "data", "threat") if name in free or (name == "data" and free & {"x", "y", "groups"})]
    if got or "hauberk" in free:
        rows.insert(0, "import hauberk")
    if got and not own:
        rows += [f"plan = hauberk.load_plan({place!r})", *(f"{name} = plan.{name}" for name in got)]
    rows += ["x, y = data.test.first(1000)"] if free & {"x", "y"} else []
    rows += ["groups = next(iter(data.test.groups.values()))"] if "groups" in free else []
    return [(">>>", row) for row in rows]


def _free(code: Sequence[str]) -> set[str]:
    """Return the names that lines of code use and do not make."""
    nodes = [node for one in code for node in ast.walk(ast.parse(one))]
    names = [node for node in nodes if isinstance(node, ast.Name)]
    made = {one.id for one in names if isinstance(one.ctx, ast.Store)}
    made |= {alias.asname or alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    return {one.id for one in names} - made


def _elsewhere(place: str) -> str:
    """Return the option that keeps a run, started in the folder of its lock, from writing a report inside the report."""
    return " --output ../again" if place == LOCK else ""


def _call(command: str) -> str:
    """Return `hauberk assess --key value …` as a call, for a model and data that are Python objects."""
    words = shlex.split(command)[2:]
    keys, values = [word.removeprefix("--") for word in words[::2]], words[1::2]
    if len(keys) != len(values) or any(not word.startswith("--") for word in words[::2]):
        return command
    told = [f"{key}={[value] if key in ('select', 'ignore') else value!r}" for key, value in zip(keys, values, strict=True)]
    return f"hauberk.assess(model, data, threat, {', '.join(told)})"


def _is_python(text: str) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _remarks(report: Report) -> list[str]:
    told = [f"Written by hauberk: what was run. In this folder, run it again with: {command(report)}"]
    if not runs_again(report) and own_command(report):
        told = [f"Written by hauberk: what was run. Run it again with: {own_command(report)}"]
    elif not runs_again(report):
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
