"""The worst case of each sample over many attacks: who breaks what, at which price, and what still holds."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hauberk.core import progress, rng
from hauberk.core.access import Access
from hauberk.core.card import registry
from hauberk.core.errors import UsageError
from hauberk.core.files import write_whole
from hauberk.core.target import Target, as_target
from hauberk.core.threat import Goal, Threat
from hauberk.robustness.evaluate.figure import Figure, share

Plan = str | tuple[str, Mapping[str, Any]]
_REPEATS = ("steps", "restarts", "classes", "copies", "neighbours", "rounds", "queries")


@dataclasses.dataclass(frozen=True)
class Turn:
    """One attack's turn: the samples it met, those it broke, and what it spent."""

    name: str
    met: int
    broke: int
    queries: int
    gradients: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class WorstCase:
    """What is left after all attacks.

    Arguments:
        held: which samples are right undisturbed and hold against every attack, shape (n,), bool.
        clean: which are right undisturbed, shape (n,), bool.
        by: which turn broke each sample, shape (n,), int64; -1 where none did, or where it was wrong already.
        x_adv: the examples found, shape (n, ...); x itself where there is none.
        turns: in the order they were run.
    """

    held: Tensor
    clean: Tensor
    by: Tensor
    x_adv: Tensor
    turns: tuple[Turn, ...]

    @property
    def accuracy(self) -> Figure:
        """The share of samples that hold, clean mistakes counting as mistakes."""
        return share(self.held)

    def rows(self) -> list[tuple[str, int, int, float, float, float]]:
        """Return attack, samples met, samples broken, queries and gradients per sample met, and seconds."""
        return [
            (one.name, one.met, one.broke, one.queries / max(one.met, 1), one.gradients / max(one.met, 1), one.seconds)
            for one in self.turns
        ]


def worst_case(
    target: Target | nn.Module, x: Tensor, y: Tensor, threat: Threat, attacks: Sequence[Plan], *, seed: int = 0,
    file: Path | None = None,
) -> WorstCase:
    """Run attacks in turn, the cheapest first, each on the samples that still hold.

    Arguments:
        target: with the access that the attacks need.
        x: inputs, shape (n, ...).
        y: true labels, shape (n,), or (n, labels) of a multi-label model.
        threat: untargeted; any norm that all the attacks know.
        attacks: names, or pairs of a name and its options, such as `["fgm", ("pgd", {"loss": "margin"}), "square"]`.
        seed: of the attacks; each derives its own by name.
        file: where finished turns are kept. With the same model, samples, threat, attacks and seed a later call goes on from
            there; anything else is refused.

    Raises:
        UsageError: for another goal, labels of another kind than the model's, no attacks, an attack listed twice, or a
            file that belongs to another run.
    """
    if threat.goal is not Goal.UNTARGETED:
        raise UsageError(f"the goal is {threat.goal.value}", want="an untargeted threat: accuracy is about the true label")
    plans = sorted((_read(one) for one in attacks), key=lambda one: price(*one))
    if not plans:
        raise UsageError("no attacks were given", want="one or more names", fix="See them: hauberk list attack")
    names = [_called(*one) for one in plans]
    if len(set(names)) < len(names):
        raise UsageError(f"the attacks are {', '.join(names)}", want="each of them once")
    target = as_target(target)
    if target.multi_label != (y.ndim == 2):
        kind = "several labels per sample" if target.multi_label else "one class per sample"
        raise UsageError(f"y has shape {tuple(y.shape)} and the model answers {kind}", want="labels of the same kind")
    # What the attacks would take for the bounds themselves: a run is known by it.
    threat = threat.within(target.bounds if target.bounds is not None else (0.0, 1.0))
    key = _key(target, x, y, threat, plans, seed) if file is not None else ""
    state = _load(file, key, target, x) if file is not None and file.exists() else _begin(target, x, y)
    for name, (attack, options) in list(zip(names, plans, strict=True))[len(state.turns) :]:
        progress.update(f"worst case: {name}", len(state.turns), len(plans))
        state = _turn(state, target, x, y, threat, attack, {**options}, name, seed)
        if file is not None:
            _save(file, key, target, state)
    return state


def price(name: str, options: Mapping[str, Any]) -> float:
    """Return about how many passes through the model an attack may spend on a sample, from its options."""
    card = registry.get(name, "attack")
    values = {key: one.default for key, one in card.options.items()} | dict(options)
    counts = [values[key] for key in _REPEATS if isinstance(values.get(key), int) and not isinstance(values.get(key), bool)]
    passes = 1.0 + (card.access is not None and card.access >= Access.GRADIENT)
    for count in counts:
        passes *= max(count, 1)
    return passes


def _turn(
    state: WorstCase, target: Target, x: Tensor, y: Tensor, threat: Threat, attack: str, options: dict[str, Any], name: str,
    seed: int,
) -> WorstCase:
    card, going = registry.get(attack, "attack"), state.held.nonzero()[:, 0]
    view, began = target.fresh(), time.perf_counter()
    held, by, x_adv, broke = state.held.clone(), state.by.clone(), state.x_adv.clone(), 0
    if len(going):
        if "seed" in card.options:
            options.setdefault("seed", rng.derive_seed(seed, "worst case", name))
        z = card.function(view, x[going], y[going], threat.subset(going, x), **options)
        broken = threat.reached(target.labels(z), y[going])
        hit = going[broken]
        held[hit], by[hit], x_adv[hit], broke = False, len(state.turns), z[broken], len(hit)
    turn = Turn(name, len(going), broke, view.ledger.queries, view.ledger.gradients, time.perf_counter() - began)
    return WorstCase(held, state.clean, by, x_adv, (*state.turns, turn))


def _begin(target: Target, x: Tensor, y: Tensor) -> WorstCase:
    same = target.labels(x) == y
    # Of a multi-label model all labels count but those marked -1. An answer that was refused is not right either.
    clean = (same | (y < 0)).all(1) if y.ndim == 2 else same
    by = torch.full((len(x),), -1, dtype=torch.int64, device=clean.device)
    return WorstCase(clean.clone(), clean, by, x.detach().clone(), ())


def _read(plan: Plan) -> tuple[str, Mapping[str, Any]]:
    return (plan, {}) if isinstance(plan, str) else (plan[0], plan[1])


def _called(name: str, options: Mapping[str, Any]) -> str:
    told = ", ".join(f"{key}={options[key]}" for key in sorted(options))
    return f"{name} ({told})" if told else name


def _key(target: Target, x: Tensor, y: Tensor, threat: Threat, plans: Sequence[tuple[str, Mapping[str, Any]]], seed: int) -> str:
    """Return what a run is known by: all that its result depends on, as far as it can be read."""
    digest = hashlib.sha256()
    for part in (x, y, threat, plans, seed, target.access.name, getattr(target.predictor, "module", None)):
        _feed(digest, part)
    return digest.hexdigest()


def _feed(digest: hashlib._Hash, value: object) -> None:
    """Add a value to the digest: tensors, modules and dataclasses by what they hold, and by no address or shortened print."""
    digest.update(type(value).__qualname__.encode())
    if isinstance(value, np.ndarray) and value.dtype != object:
        value = torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, Tensor):
        digest.update(repr((tuple(value.shape), str(value.dtype))).encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(value, nn.Module):
        # Buffers one by one: those that are not persistent, such as the constants of a normalisation, are in no state_dict.
        kinds = [(name, type(part).__qualname__) for name, part in value.named_modules()]
        _feed(digest, (kinds, dict(value.named_parameters()), dict(value.named_buffers())))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        _feed(digest, {one.name: getattr(value, one.name) for one in dataclasses.fields(value)})
    elif isinstance(value, Mapping):
        _feed(digest, [(str(key), value[key]) for key in sorted(value, key=str)])
    elif isinstance(value, list | tuple):
        digest.update(str(len(value)).encode())
        for one in value:
            _feed(digest, one)
    else:
        digest.update(repr(value).encode())


def _save(file: Path, key: str, target: Target, state: WorstCase) -> None:
    buffer = io.BytesIO()
    about = {"key": key, "outputs": target.outputs, "turns": [dataclasses.asdict(one) for one in state.turns]}
    arrays = {name: getattr(state, name).detach().cpu().numpy() for name in ("held", "clean", "by")}
    # In float64, which holds every other type exactly and which NumPy knows.
    np.savez(buffer, about=np.array(json.dumps(about)), x_adv=state.x_adv.detach().cpu().double().numpy(), **arrays)
    write_whole(file, buffer.getvalue())


def _load(file: Path, key: str, target: Target, x: Tensor) -> WorstCase:
    try:
        with np.load(file, allow_pickle=False) as kept:
            about = json.loads(str(kept["about"]))
            held, clean, by, x_adv = (torch.from_numpy(kept[name]).to(x.device) for name in ("held", "clean", "by", "x_adv"))
            turns = tuple(Turn(**one) for one in about["turns"])
            found, outputs = str(about["key"]), str(about.get("outputs", "auto"))
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise UsageError(f"{file} cannot be read ({error})", want="a file that worst_case wrote", fix="Delete it") from error
    # How outputs are read is learnt from the first answer: until then it is `auto`, and no other reading than the one kept.
    if found != key or ("auto" not in (outputs, target.outputs) and outputs != target.outputs):
        raise UsageError(
            f"{file} holds another run", want="the same model, samples, threat, attacks and seed",
            fix="Delete it, or name another file",
        )
    return WorstCase(held, clean, by, x_adv.to(x.dtype), turns)
