"""From a plan to what it names: target, data, threats, settings. Picklable, so that a worker process can do it again."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hauberk.assessment import Material, default_threats
from hauberk.assets.encryption.named import unsealed
from hauberk.checks.context import Settings, Trusted
from hauberk.checks.engine import select_checks
from hauberk.core import rng
from hauberk.core.access import Access
from hauberk.core.data import Data
from hauberk.core.errors import ModelError, UsageError, nearest
from hauberk.core.structure import Structure
from hauberk.core.target import Target
from hauberk.core.threat import Bounds, Threat
from hauberk.io.canaries import read_canaries
from hauberk.io.datasets import load_data
from hauberk.io.http import HttpModel
from hauberk.io.http_call import Limits
from hauberk.io.models import load_model
from hauberk.io.plan import located, read_plan
from hauberk.io.plan_schema import Plan, ThreatTable
from hauberk.methods import load_methods
from hauberk.privacy.dp.accounting.statement import read_statement

_LARGEST_CODE = 1_000_000


@dataclasses.dataclass(frozen=True)
class Planned:
    """What a plan names, loaded.

    Arguments:
        target: the model, seen at the access that the plan grants.
        data: with the bounds that the plan states.
        threats: with the bounds of the data; the first is the main one.
    """

    target: Target
    data: Data
    threats: tuple[Threat, ...]

    @property
    def model(self) -> nn.Module:
        """The module itself, for its owner: whatever access the plan grants to an adversary.

        Raises:
            ModelError: for a model that is no torch module.
        """
        module = getattr(self.target.predictor, "module", None)
        if not isinstance(module, nn.Module):
            raise ModelError("the model of the plan is no torch module", want="one", fix="Ask plan.target, e.g. target.scores(x)")
        return module

    @property
    def threat(self) -> Threat:
        """The main threat."""
        return self.threats[0]


def load_plan(path: str | Path = ".", *, trust: bool = False) -> Planned:
    """Load what a plan names, to go on with it in Python.

    Arguments:
        path: a plan.toml, the plan.lock.toml of a report, or a folder with a plan.
        trust: open files that can run code.

    Returns:
        `.target`, `.data` and `.threats`; `.model` is the module and `.threat` the first threat.

    Raises:
        UsageError, DataError, ModelError, UnsafeFile: for a plan, or what it names, that cannot be used.
    """
    target, data, settings = prepare(read_plan(path), trust)
    return Planned(target, data, tuple(threat.within(data.bounds) for threat in settings.threats))


def prepare(plan: Plan, trust: bool = False) -> Material:
    """Load what a plan names.

    Arguments:
        plan: from `read_plan`.
        trust: open files that can run code.

    Raises:
        UsageError, DataError, ModelError, UnsafeFile: before any check has started.
    """
    check_gates(plan)
    data = load_plan_data(plan)
    threats = tuple(planned_threat(one, data.test.shape) for one in plan.threat) or default_threats(data)
    radii = plan.threat[0].eps if plan.threat else []
    queries = next((one.queries for one in plan.threat if one.queries is not None), None)
    statement = located(plan.privacy.statement, plan.base) if plan.privacy else ""
    if statement:
        read_statement(statement)
    settings = Settings(
        preset=plan.run.preset, seed=plan.run.seed, threats=threats, radii=tuple(radii) if len(radii) > 1 else (),
        gates={name: limits.model_dump(exclude_none=True) for name, limits in plan.gate.items()}, queries=queries, trust=trust,
        statement=statement, trusted=_trusted(plan),
    )
    return load_plan_model(plan, data, trust=trust), data, settings


def _trusted(plan: Plan) -> Trusted:
    """Return whose signature the plan asks for; a key, policy or list that cannot be read is refused before any check starts."""
    if plan.assets is None:
        return Trusted()
    from hauberk.assets.advisories import read_advisories
    from hauberk.assets.signing import read_policy, read_public

    named = {key: located(getattr(plan.assets, key), plan.base) for key in ("policy", "signed", "signature", "unsafe")
             if getattr(plan.assets, key)}
    made = Trusted(tuple(located(one, plan.base) for one in plan.assets.keys), **named)
    for key in made.keys:
        read_public(key)
    if made.policy:
        read_policy(made.policy)
    if made.unsafe:
        read_advisories(made.unsafe)
    return made


def planned_threat(table: ThreatTable, shape: Sequence[int]) -> Threat:
    """Return the threat that a plan describes for samples of that shape.

    Raises:
        UsageError: for a feature that the samples do not have, or one named in two ways that exclude each other.
    """
    features = math.prod(shape)
    named = {"frozen": table.frozen, "whole": table.whole, "rising": table.rising, "falling": table.falling}
    for key, places in (*named.items(), *(("one_hot", group) for group in table.one_hot)):
        if any(place >= features for place in places):
            raise UsageError(f"[threat] {key} names the feature {max(places)}", want=f"positions from 0 to {features - 1}")
    both = sorted(set(table.rising) & set(table.falling))
    if both:
        raise UsageError(
            f"[threat] feature {both[0]} is named as rising and as falling", want="one of them",
            fix="Write it under frozen if it cannot change at all",
        )
    frozen, whole, rising, falling = (_marked(places, shape) for places in named.values())
    structure = None
    if table.whole or table.one_hot or table.rising or table.falling:
        structure = Structure(step=whole, one_hot=table.one_hot, direction=rising - falling)
    return Threat(table.norm, table.eps[-1], mask=frozen == 0 if table.frozen else None, structure=structure)


def _marked(places: Sequence[int], shape: Sequence[int]) -> Tensor:
    flags = torch.zeros(math.prod(shape))
    flags[list(places)] = 1.0
    return flags.reshape(tuple(shape))


def check_gates(plan: Plan) -> None:
    """Raise UsageError for a gate that no check answers to."""
    known = [card.name for card in load_methods().cards("check")]
    for name in plan.gate:
        if name not in known:
            raise UsageError(f'{plan.source.name}: gate."{name}" names no check. {nearest(name, known)}')


def selection(plan: Plan) -> list[str]:
    """Return the checks to run by name: those selected, else those of the preset and those that a gate waits for."""
    cards = select_checks(plan.run.preset, plan.run.select, plan.run.ignore)
    names = [card.name for card in cards]
    if plan.gate and not plan.run.select:
        # A gate must not pass because the preset leaves its check out.
        gated = select_checks(plan.run.preset, list(plan.gate), plan.run.ignore)
        names += [card.name for card in gated if card.name not in names]
    return names


def load_plan_data(plan: Plan) -> Data:
    """Return the data of a plan."""
    table, base = plan.data, plan.base
    data = load_data(
        located(table.test, base), train=located(table.train, base) or None, trusted=located(table.trusted, base) or None,
        bounds=_bounds(table.bounds), label=table.label or None, groups=tuple(table.groups), modality=table.modality or None,
        name=table.name or None,
    )
    if table.canaries:
        data = dataclasses.replace(data, canaries=read_canaries(located(table.canaries, base)))
    if table.classes is None:
        return data
    if not data.is_classification:
        raise UsageError(f"data.classes is {table.classes}, but the labels are numbers to predict", fix="Leave it out")
    return dataclasses.replace(data, classes=table.classes)


def load_plan_model(plan: Plan, data: Data, *, trust: bool = False) -> Target:
    """Return the model of a plan on its device, seen at the access that the plan grants."""
    table, base = plan.model, plan.base
    if table.path.endswith(".py"):
        raise UsageError(
            f"the model is '{table.path}'", want="file.py:attr, a module or a function that makes one",
            fix=f"Name it, such as {table.path}:{_maker(Path(located(table.path, base)))}",
        )
    source: Any = located(table.path, base)
    if table.url:
        source = HttpModel(
            table.url, headers=table.headers, outputs=table.outputs, classes=tuple(table.classes), batch=table.batch_size,
            limits=Limits(seconds=table.timeout),
        )
        source = source if table.template is None else dataclasses.replace(source, template=table.template)
        source = source if table.response is None else dataclasses.replace(source, response=table.response)
    # What a model of code draws for its first weights hangs on the plan alone, so that the run can be repeated.
    with _importing_from(base), rng.isolated(rng.derive_seed(plan.run.seed, "model")):
        weights: Any = located(table.weights, base) or None
        source, weights, sealed = unsealed(source, weights, _key(table.key, base), outputs=table.outputs)
        target = load_model(
            source, weights=weights, bounds=data.bounds, outputs=table.outputs,
            normalize=table.normalize.pair if table.normalize else None, batch_size=table.batch_size, trust=trust,
        )
        target.files += tuple(path.resolve() for path in sealed)
    if plan.run.device != "cpu":
        _move(target, plan.run.device)
    if table.access is None:
        return target
    granted = target.access.name.lower()
    if Access.parse(table.access) > target.access:
        raise UsageError(f"model.access is '{table.access}', but this model can give {granted} alone", want=f"at most {granted}")
    return target.seen_at(Access.parse(table.access))


@contextlib.contextmanager
def naming_the_call(plan: Plan) -> Iterator[None]:
    """Let an endpoint that refuses or is not understood say where a plan describes how it is asked."""
    try:
        yield
    except ModelError as error:
        if not plan.model.url:
            raise
        raise ModelError(
            error.problem, want=error.want,
            fix="Check model.url, model.headers, model.template (how it is asked) and model.response (where the answers are); "
            "hauberk init has --template and --response",
        ) from error


def _maker(file: Path) -> str:
    """Return what in a Python file most likely makes the model; the file is read, not run."""
    try:
        with open(file, "rb") as opened:
            body = ast.parse(opened.read(_LARGEST_CODE)).body
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return "build"
    functions = [one.name for one in body if isinstance(one, ast.FunctionDef) and not one.name.startswith("_")]
    classes = [one.name for one in body if isinstance(one, ast.ClassDef) and not one.name.startswith("_")]
    usual = [name for name in functions if name in ("build", "model", "make", "create") or name.endswith("_model")]
    return next(iter([*usual, *functions, *classes]), "build")


@contextlib.contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """Let `package.module:attr` be found beside the plan, whatever folder the command is run in."""
    place = str(folder.resolve())
    sys.path.insert(0, place)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(place)


def _key(name: str, base: Path) -> str:
    """Return the name of a key, with the path in it seen from the current folder."""
    kind, _, rest = name.partition(":")
    return f"file:{located(rest, base)}" if kind == "file" and rest else name


def _move(target: Target, device: str) -> None:
    if target.access < Access.GRADIENT:
        raise UsageError(f"run.device is '{device}', but this model runs where it is", want="cpu", fix="Leave the device out")
    try:
        target.module.to(device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        have = ", ".join(["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))])
        raise UsageError(f"the device '{device}' cannot be used ({error})", want=f"one of {have}") from error


def _bounds(ends: list[Any] | None) -> Bounds | None:
    if ends is None:
        return None
    low, high = (torch.tensor(end) if isinstance(end, list) else float(end) for end in ends)
    return low, high
