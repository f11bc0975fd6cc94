"""The contract of attacks: what every attack promises is enforced here once, so that an attack is only its idea."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hauberk.core import progress, rng
from hauberk.core.access import Access
from hauberk.core.card import Card, registry
from hauberk.core.errors import BudgetExceeded, DataError, ModelError, UsageError, nearest
from hauberk.core.sofar import SoFar, limited
from hauberk.core.target import Target, as_target
from hauberk.core.threat import NORMS, Goal, Threat

ANY_GOAL = (Goal.UNTARGETED, Goal.TARGETED, Goal.CONFIDENCE)
LABEL_GOALS = (Goal.UNTARGETED, Goal.TARGETED)
_OF_SHAPES = re.compile(r"shape|size|dimension|channels|expected .*input", re.IGNORECASE)  # what torch says of a wrong sample
_FACTS = ("minimum_norm", "undivided", "baseline", "classes_alone", "fine_steps")


class Attack(Protocol):
    """What `@attack` returns."""

    __name__: str

    def __call__(self, target: Target | nn.Module, x: Tensor, y: Tensor, threat: Threat, **options: Any) -> Tensor:
        """Return adversarial examples for x, shape (n, ...)."""
        ...


def attack(
    *, question: str, access: Access, paper: str = "", tags: Sequence[str] = (), preset: str = "standard",
    norms: Sequence[str] = NORMS, goals: Sequence[Goal] = ANY_GOAL, **facts: bool,
) -> Callable[[Callable[..., Tensor]], Attack]:
    """Return a decorator that records an attack, under its own name with dashes, and keeps its contract.

    The function written is `(target, x, y, threat, *, seed, ...) -> x_adv` for one batch. What it becomes also takes a bare
    module, refuses bad input at the door, grants the declared access and no more, splits large inputs, fills in the target's
    bounds, leaves the global random state alone, and returns points strictly inside the ball, in x's dtype and on its device.

    Arguments:
        question: what running it answers.
        access: the least access it needs, and all that it gets.
        norms, goals: those it supports.
        facts: `minimum_norm=True`: it seeks the nearest adversarial example, and takes `eps` as the farthest that counts.
            `undivided=True`: it learns from all samples together, so large inputs are not split. `baseline=True`: it does not
            look at the model's answers to steer. `classes_alone=True`: it steers by classes that exclude each other, so that
            multi-label models are refused. `fine_steps=True`: it learns from small changes, of which a grid shows little: a
            notice says so under a threat with a structure.
    """
    unknown = set(facts) - set(_FACTS)
    if unknown:
        raise ValueError(f"an attack has no facts {sorted(unknown)}")

    def record(function: Callable[..., Tensor]) -> Attack:
        called = function.__name__.replace("_", "-")
        known = [
            one.name for one in inspect.signature(function).parameters.values() if one.kind is inspect.Parameter.KEYWORD_ONLY
        ]

        @functools.wraps(function)
        def run(target: Target | nn.Module, x: Tensor, y: Tensor, threat: Threat, **options: Any) -> Tensor:
            whole = as_target(target)
            whole.need(access, called)
            refuse_options(called, options, known)
            refuse_bad_input(called, x, y, threat, norms, goals, several=whole.multi_label)
            if whole.multi_label and facts.get("classes_alone"):
                raise UsageError(
                    f"{called} was given a multi-label model", want="a model of classes that exclude each other",
                    fix="Choose another attack, such as pgd, square or fmn",
                )
            threat = threat.within(whole.bounds if whole.bounds is not None else (0.0, 1.0))
            refuse_outside(x, threat)
            # Labels beyond the model's classes are refused at its first answer: nothing is asked for that alone.
            view, found, y = whole.seen_at(access, highest=int(y.max()) if y.numel() else -1), [], y.to(x.device).long()
            if threat.structure is not None:
                threat.structure.refuse(x)
                view = view.behind(threat.structure.snap)
                if facts.get("fine_steps"):
                    whole.notice(f"{called} learns from small changes: of features that move in whole steps it sees little")
            seed = int(options.get("seed", 0))
            bounded = limited(whole)
            portion = len(x) if facts.get("undivided") else whole.batch_size
            parts = range(0, len(x), max(portion, 1))
            for number, start in enumerate(progress.track(parts, called)):
                index = torch.arange(start, min(start + portion, len(x)), device=x.device)
                if "seed" in known and number:
                    options["seed"] = rng.derive_seed(seed, "part", number)
                part, part_threat = x[index].detach(), threat.subset(index, x)
                # A caller's `torch.no_grad()` block must not switch the attack's own gradients off.
                quiet = rng.isolated(rng.derive_seed(seed, called, number), x.device)
                ball, spent = part_threat.around(part), None
                sofar = SoFar(view, part, y[index], part_threat, whole._watch) if bounded else None
                with torch.inference_mode(False), torch.enable_grad(), quiet:
                    try:
                        z = function(view, part, y[index], part_threat, **options).detach()
                    except BudgetExceeded as error:
                        z, spent = part if sofar is None else sofar.best, error
                    except RuntimeError as error:
                        if view.ledger.calls or not _OF_SHAPES.search(str(error)):
                            raise
                        raise _refused(part, error) from error  # it has not answered once
                z = torch.where(z.isfinite(), z, part)
                found.append(ball.seal(z.to(x.dtype)) if threat.structure is None else threat.structure.settle(z, ball))
                if spent is not None:
                    raise spent.keeping(torch.cat([*found, x[start + portion:].detach()])) from spent
            return torch.cat(found) if found else x.detach().clone()

        known_facts = {"norms": tuple(norms), "goals": tuple(goals), **{name: bool(facts.get(name)) for name in _FACTS}}
        registry.add(Card(called, "attack", run, question, access, paper, tuple(tags), preset, known_facts))
        return run

    return record


def _refused(x: Tensor, error: Exception) -> ModelError:
    """Return the error for a model that does not take the samples x."""
    cause = " ".join(str(error).split())[:300]
    return ModelError(
        f"the model refused samples of shape {tuple(x.shape[1:])} ({type(error).__name__}: {cause})",
        want="a model that takes such a batch", fix="Check that model and data belong together, and that axes are in its order",
    )


def refuse_no_tensor(value: object, name: str) -> None:
    """Raise DataError for anything but a tensor."""
    if not isinstance(value, Tensor):
        make = "from_numpy" if type(value).__module__ == "numpy" else "tensor"
        raise DataError(f"{name} is a {type(value).__name__}", want="a tensor", fix=f"Convert it: torch.{make}({name})")


def refuse_options(name: str, options: Iterable[str], known: list[str]) -> None:
    """Raise UsageError for an option that the method does not have."""
    for option in options:
        if option not in known:
            raise UsageError(f"{name} has no option '{option}'", fix=nearest(option, known))


def refuse_bad_input(
    name: str, x: Tensor, y: Tensor, threat: Threat, norms: Sequence[str], goals: Sequence[Goal], *, several: bool = False
) -> None:
    """Raise for a threat of another norm or goal, and for samples and labels that `refuse_samples` refuses."""
    if not isinstance(threat, Threat):
        raise UsageError(f"{name} was given a {type(threat).__name__}", want="a Threat such as Linf(8/255)")
    if threat.norm not in norms:
        other = ", ".join(card.name for card in registry.cards("attack") if threat.norm in card.facts["norms"])
        raise UsageError(
            f"{name} was given the norm '{threat.norm}'", want=" | ".join(norms),
            fix=f"Give another threat, or choose an attack for {threat.norm}, such as {', '.join(other.split(', ')[:4])}",
        )
    if threat.goal not in goals:
        known = " | ".join(goal.value for goal in goals)
        raise UsageError(f"{name} was given the goal '{threat.goal.value}'", want=known)
    refuse_samples(x, y, several=several)


def refuse_samples(x: Tensor, y: Tensor, *, several: bool = False) -> None:
    """Raise DataError for anything but finite floating samples (n, ...) with a class label each, or a row of several labels."""
    refuse_no_tensor(x, "x")
    refuse_no_tensor(y, "y")
    if x.ndim < 2:
        raise DataError(f"x has shape {tuple(x.shape)}", want="(n, ...): a batch of samples", fix="Add an axis: x[None]")
    if not x.is_floating_point():
        raise DataError(f"x has dtype {x.dtype}", want="floating point inputs", fix="Scale bytes first: x.float() / 255")
    _refuse_labels(y, len(x), several)
    if not bool(x.isfinite().all()):
        raise DataError(
            f"x holds {int((~x.isfinite()).sum())} values that are NaN or infinite", want="finite inputs",
            fix="Fill in or drop what is missing: x.nan_to_num(0), or x[x.flatten(1).isfinite().all(1)]",
        )


def _refuse_labels(y: Tensor, n: int, several: bool) -> None:
    if several and (y.ndim != 2 or len(y) != n or not y.shape[1]):
        raise DataError(
            f"y has shape {tuple(y.shape)} for {n} samples of a multi-label model", want=f"({n}, labels): a zero or one each",
            fix="Give one row of zeros and ones per sample; -1 marks a label that does not matter",
        )
    if not several and y.shape != (n,):
        hint = "For a multi-label model say so: Target(model, outputs='multilabel')" if y.ndim == 2 else ""
        raise DataError(f"y has shape {tuple(y.shape)} for {n} samples", want=f"({n},): one label each", fix=hint)
    if y.is_floating_point() or y.dtype is torch.bool:
        raise DataError(f"y has dtype {y.dtype}", want="integer labels", fix="Convert them: y.long()")
    if several and y.numel():
        if int(y.min()) < -1 or int(y.max()) > 1:
            raise DataError(f"y spans {int(y.min())} to {int(y.max())}", want="0 or 1 per label, -1 where it does not matter")
        if bool((y < 0).all(1).any()):
            raise DataError("a sample has no label that matters: its row of y is -1 throughout", want="a 0 or 1 in every row")
    elif y.numel() and int(y.min()) < 0:
        raise DataError(f"y holds the label {int(y.min())}", want="labels from 0 to classes - 1")


def refuse_outside(x: Tensor, threat: Threat) -> None:
    """Raise for samples outside the threat's bounds, and for a radius, mask or bounds that do not fit them."""
    assert threat.bounds is not None
    low, high = (torch.as_tensor(end, dtype=torch.float64, device=x.device) for end in threat.bounds)
    free = threat.norm == "l0" or bool(torch.as_tensor(threat.eps).isinf().any())
    if free and not bool((low.isfinite() & high.isfinite()).all()):
        raise UsageError(
            f"the bounds are infinite under {threat.describe()}", want="finite bounds where nothing else holds the change",
            fix="State them: Threat(..., bounds=(low, high))",
        )
    # Data scaled by its owner may overshoot by rounding.
    slack = max(1e-5, float(torch.finfo(x.dtype).eps)) * float((high - low).max().clamp(max=1e6)) if len(x) else 0.0
    outside = (x < low - slack) | (x > high + slack)
    if bool(outside.any()):
        raise DataError(
            f"{int(outside.sum())} inputs lie outside the bounds: x spans [{float(x.min()):.4g}, {float(x.max()):.4g}]",
            want=f"all inputs in [{float(low.min()):.4g}, {float(high.max()):.4g}]",
            fix="Give unnormalised inputs, or state the bounds: Threat(..., bounds=(low, high))",
        )
    if isinstance(threat.eps, Tensor) and threat.eps.ndim and threat.eps.shape != x.shape[:1]:
        raise UsageError(f"eps has shape {tuple(threat.eps.shape)}", want=f"a number, or ({len(x)},): one per sample")
    if threat.mask is not None and threat.mask.shape not in (x.shape, x.shape[1:]):
        raise UsageError(f"mask has shape {tuple(threat.mask.shape)}", want=f"{tuple(x.shape[1:])} or {tuple(x.shape)}")
