"""Plans: read from plan.toml or pyproject.toml, refused in plain words, written down again so that a run can be repeated."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hauberk.core.errors import UsageError
from hauberk.io.plan_schema import Plan as Plan
from hauberk.io.plan_schema import number as number
from hauberk.io.refused import refused

LARGEST = 1_000_000
LIBRARIES = ("torch", "numpy", "scipy", "scikit-learn")


def read_plan(path: str | Path) -> Plan:
    """Read a plan.

    Arguments:
        path: a plan.toml, a pyproject.toml with a table [tool.hauberk], or a folder that holds one of them.

    Raises:
        UsageError: when there is none, or it is not a plan; the key, the value and what was expected are named.
    """
    place = find_plan(Path(path))
    table = read_table(place)
    if place.name == "pyproject.toml":
        tools = table.get("tool", {})
        if not isinstance(tools, dict) or "hauberk" not in tools:
            raise UsageError(f"{place} has no table [tool.hauberk]", fix="Write one, or make a plan: hauberk init MODEL DATA")
        table = tools["hauberk"]
    return parse_plan(table, source=place)


def find_plan(place: Path) -> Path:
    """Return the plan file that `place`, a file or a folder, stands for. Raises UsageError when there is none."""
    if not place.is_dir():
        if not place.exists():
            raise UsageError(f"{place} does not exist", want="a plan.toml", fix="Make one: hauberk init MODEL DATA")
        return place
    plan, project = place / "plan.toml", place / "pyproject.toml"
    if plan.exists():
        return plan
    if project.exists() and "hauberk" in read_table(project).get("tool", {}):
        return project
    raise UsageError(
        f"{place if str(place) != '.' else 'this folder'} holds no plan",
        want="a plan.toml, or a pyproject.toml with a table [tool.hauberk]",
        fix="Make one with: hauberk init MODEL DATA. Or name --model and --data",
    )


def read_table(place: Path) -> dict[str, Any]:
    """Return the TOML of a file. Raises UsageError when it cannot be read, is too large, or is not TOML."""
    try:
        if place.stat().st_size > LARGEST:
            raise UsageError(f"{place} has {place.stat().st_size} bytes", want=f"a plan of at most {LARGEST} bytes")
        return tomllib.loads(place.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{place} cannot be read ({error.strerror})", want="a plan.toml") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{place} is not TOML ({error})", want="a plan such as hauberk init writes") from error


def parse_plan(table: Mapping[str, Any], *, source: Path = Path("plan.toml"), name: str = "") -> Plan:
    """Return the plan that a table holds.

    Arguments:
        table: plain values, as TOML gives them.
        source: the file the table comes from; relative paths start from its folder.
        name: how errors call the table; the name of the file when left out.

    Raises:
        UsageError: for the first key that is wrong; the others are listed.
    """
    try:
        return Plan.model_validate(dict(table)).placed(source)
    except ValidationError as error:
        refusal = refused(error, Plan, name or source.name, fix="hauberk init MODEL DATA writes a plan that works")
    if not isinstance(table.get("threat"), list):  # one table was written, and is called by its own name
        refusal = UsageError(refusal.problem.replace("threat[0]", "threat"), want=refusal.want, fix=refusal.fix)
    raise refusal


def changed(plan: Plan, changes: Mapping[str, Any], *, name: str) -> Plan:
    """Return the plan with some values replaced: tables are merged key by key, all else is taken from `changes`.

    Arguments:
        changes: tables of plain values; what is None is left as it is.
        name: who wants the changes, for errors.
    """
    table = plan_table(plan)
    for key, value in changes.items():
        if isinstance(value, Mapping):
            table[key] = {**table.get(key, {}), **{inner: one for inner, one in value.items() if one is not None}}
        elif value is not None:
            table[key] = value
    return parse_plan(table, source=plan.source, name=name)


def plan_table(plan: Plan) -> dict[str, Any]:
    """Return the plan as plain values that `parse_plan` reads again; what was left out stays out."""
    plain = plan.model_dump(exclude_unset=True, exclude_none=True)
    threats = [_threat(one) for one in plain.pop("threat", [])]
    if threats:
        plain["threat"] = threats[0] if len(threats) == 1 else threats
    return plain


def resolved(plan: Plan, *, output: Path | None = None) -> dict[str, Any]:
    """Return all that is needed to run the plan again, as plain values for plan.lock.toml.

    Paths stay as they were given; `folder` says where they start from, seen from the `output` folder that holds the lock.
    """
    table = plan_table(plan)
    table["run"] = {**plan.run.model_dump(exclude_none=True), **table.get("run", {})}
    if output is not None:
        table["folder"] = _relative(plan.base, output)
    versions = {library: importlib.metadata.version(library) for library in LIBRARIES}
    return {**table, "versions": {"python": platform.python_version(), **versions}}


def plan_schema() -> dict[str, Any]:
    """Return the JSON schema of a plan, for editors."""
    schema = Plan.model_json_schema()
    many = schema["properties"]["threat"]
    # One table is written [threat], several are written [[threat]].
    schema["properties"]["threat"] = {"anyOf": [many.pop("items"), {"type": "array", "items": {"$ref": "#/$defs/ThreatTable"}}]}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "Hauberk plan"}


def parse_threat(text: str) -> dict[str, Any]:
    """Return the [threat] table of `norm:eps`, such as `linf:8/255` or `l2:0.5,1,2`."""
    norm, colon, sizes = text.partition(":")
    try:
        radii = [number(size) for size in sizes.split(",")]
    except ValueError:
        radii = []
    if not colon or not radii:
        raise UsageError(f"the threat is '{text}'", want="norm:eps, e.g. linf:8/255 or l2:0.5,1,2")
    return {"norm": norm.strip().lower(), "eps": radii}


def located(source: str, folder: Path) -> str:
    """Return a model or data source seen from the current folder, where it was given seen from `folder`.

    Addresses, `sklearn:` names and `package.module:attr` are no paths and stay as they are.
    """
    head, colon, attribute = source.rpartition(":")
    if not source or "://" in source or source.startswith("sklearn:"):
        return source
    if colon and head and not os.path.isabs(source) and attribute.replace(".", "_").isidentifier():
        return f"{_joined(head, folder)}:{attribute}" if head.endswith(".py") else source
    if colon and head.endswith(".py"):
        return f"{_joined(head, folder)}:{attribute}"
    return _joined(source, folder)


def rebased(source: str, base: Path) -> str:
    """Return a source given on the command line, seen from the folder of a plan."""
    here = located(source, Path.cwd())
    if here == source or os.path.isabs(source):
        return source
    head, colon, attribute = here.rpartition(":") if ".py:" in here else (here, "", "")
    return f"{_relative(Path(head), base)}{colon}{attribute}"


def _joined(path: str, folder: Path) -> str:
    return os.path.normpath(folder / os.path.expanduser(path))


def _relative(path: Path, start: Path) -> str:
    try:
        return Path(os.path.relpath(path, start)).as_posix()
    except ValueError:  # another drive
        return path.as_posix()


def _threat(table: dict[str, Any]) -> dict[str, Any]:
    radii = table["eps"]
    return {**table, "eps": radii[0] if len(radii) == 1 else radii}
