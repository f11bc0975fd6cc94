"""The contract of universal and semantic attacks: what each promises is enforced here once, so that a method is only its idea."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hauberk.core import rng
from hauberk.core.access import Access
from hauberk.core.attacks import ANY_GOAL, refuse_bad_input, refuse_options, refuse_outside, refuse_samples
from hauberk.core.errors import DataError, UsageError
from hauberk.core.kinds import Universal, method
from hauberk.core.target import Target, as_target
from hauberk.core.threat import Bounds, Goal, Threat


class UniversalAttack(Protocol):
    """What `@universal` returns."""

    __name__: str

    def __call__(self, target: Target | nn.Module, x: Tensor, y: Tensor, threat: Threat, **options: Any) -> Universal:
        """Return one change for all inputs, made on x, shape (n, ...)."""
        ...


class SemanticAttack(Protocol):
    """What `@semantic` returns."""

    __name__: str

    def __call__(self, target: Target | nn.Module, x: Tensor, y: Tensor, **options: Any) -> Tensor:
        """Return adversarial examples for x, shape (n, ...)."""
        ...


def universal(
    *, question: str, access: Access, paper: str, norms: Sequence[str] = ("linf",), goals: Sequence[Goal] = ANY_GOAL,
    images: bool = False, masked: bool = False, tags: Sequence[str] = (),
) -> Callable[[Callable[..., Universal]], UniversalAttack]:
    """Return a decorator that records a universal attack and keeps its contract.

    The function written is `(target, x, y, threat, *, seed, ...) -> Universal`. What it becomes also takes a bare module, refuses
    bad input at the door, grants the declared access and no more, fills in the target's bounds, and leaves the global random
    state alone. `Universal.apply` keeps to the threat by itself.

    Arguments:
        question: what running it answers.
        access: the least access it needs, and all that it gets.
        norms, goals: those it supports.
        images: it takes images (n, channels, height, width) alone.
        masked: the threat must have a mask.
    """

    def record(function: Callable[..., Universal]) -> UniversalAttack:
        called, known = function.__name__.replace("_", "-"), _options(function)

        @functools.wraps(function)
        def run(target: Target | nn.Module, x: Tensor, y: Tensor, threat: Threat, **options: Any) -> Universal:
            whole = as_target(target)
            whole.need(access, called)
            refuse_options(called, options, known)
            refuse_bad_input(called, x, y, threat, norms, goals, several=whole.multi_label)
            threat = threat.within(whole.bounds if whole.bounds is not None else (0.0, 1.0))
            refuse_outside(x, threat)
            _refuse_per_sample(called, x, threat, masked)
            if images:
                refuse_flat(called, x)
            view, y = whole.seen_at(access, highest=int(y.max()) if y.numel() else -1), y.to(x.device).long()
            quiet = rng.isolated(rng.derive_seed(int(options.get("seed", 0)), called), x.device)
            with torch.inference_mode(False), torch.enable_grad(), quiet:
                exact = x if x.dtype in (torch.float32, torch.float64) else x.float()
                return function(view, exact.detach().clone(), y, threat, **options)

        facts = {"norms": tuple(norms), "goals": tuple(goals), "images": images, "masked": masked}
        return method(
            "universal", question=question, name=called, access=access, paper=paper, tags=tags, preset="thorough", **facts
        )(run)

    return record


def semantic(
    *, question: str, access: Access, paper: str, preset: str = "thorough", tags: Sequence[str] = ()
) -> Callable[[Callable[..., Tensor]], SemanticAttack]:
    """Return a decorator that records a semantic attack and keeps its contract.

    The function written is `(target, x, y, bounds, *, ...) -> x_adv` for one batch of images in float32 or float64; `bounds` are
    two tensors that broadcast with x. What it becomes is `(target, x, y, *, ...) -> x_adv`: it takes a bare module, refuses bad
    input at the door, grants the declared access and no more, splits large inputs, leaves the global random state alone, and
    returns images strictly inside the target's bounds, in x's dtype and on its device.

    Arguments:
        question: what running it answers.
        access: the least access it needs, and all that it gets.
    """

    def record(function: Callable[..., Tensor]) -> SemanticAttack:
        called, known = function.__name__.replace("_", "-"), _options(function)

        @functools.wraps(function)
        def run(target: Target | nn.Module, x: Tensor, y: Tensor, **options: Any) -> Tensor:
            whole = as_target(target)
            whole.need(access, called)
            refuse_options(called, options, known)
            refuse_samples(x, y, several=whole.multi_label)
            refuse_flat(called, x)
            room = Threat("linf", torch.inf, whole.bounds if whole.bounds is not None else (0.0, 1.0))
            refuse_outside(x, room)
            view, y = whole.seen_at(access, highest=int(y.max()) if y.numel() else -1), y.to(x.device).long()
            found, seed = [], int(options.get("seed", 0))
            for number, start in enumerate(range(0, len(x), whole.batch_size)):
                part = x[start : start + whole.batch_size].detach()
                if "seed" in known and number:
                    options["seed"] = rng.derive_seed(seed, "part", number)
                quiet = rng.isolated(rng.derive_seed(seed, called, number), x.device)
                with torch.inference_mode(False), torch.enable_grad(), quiet:
                    exact = part.clone() if part.dtype in (torch.float32, torch.float64) else part.float()
                    z = function(view, exact, y[start : start + len(part)], _ends(exact, room.bounds), **options).detach()
                    found.append(room.around(part).seal(torch.where(z.isfinite(), z, exact).to(x.dtype)))
            return torch.cat(found) if found else x.detach().clone()

        shown = inspect.signature(function)
        kept = [one for one in shown.parameters.values() if one.name != "bounds"]
        run.__signature__ = shown.replace(parameters=kept)  # type: ignore[attr-defined]
        return method("semantic", question=question, name=called, access=access, paper=paper, tags=tags, preset=preset)(run)

    return record


def refuse_flat(name: str, x: Tensor) -> None:
    """Raise DataError for anything but images."""
    if x.ndim != 4:
        raise DataError(
            f"{name} was given inputs of shape {tuple(x.shape)}", want="images (n, channels, height, width)",
            fix="Reshape the inputs, or choose a method for any input: hauberk list --kind attack",
        )


def _refuse_per_sample(name: str, x: Tensor, threat: Threat, masked: bool) -> None:
    if isinstance(threat.eps, Tensor) and threat.eps.ndim:
        raise UsageError(
            f"{name} was given a radius per sample", want="one number: one change for all inputs has one radius",
            fix="Give it: threat.with_eps(...)",
        )
    if threat.mask is not None and threat.mask.shape != x.shape[1:]:
        raise UsageError(
            f"{name} was given a mask of shape {tuple(threat.mask.shape)}", want=f"{tuple(x.shape[1:])}: one for all inputs"
        )
    if threat.structure is not None:
        raise UsageError(f"{name} was given a threat with a structure", want="a norm, bounds and a mask alone")
    if masked and (threat.mask is None or not bool(threat.mask.any())):
        raise UsageError(
            f"{name} was given no feature to change", want="a mask that is True where the sticker goes",
            fix="Give one: Patch(mask)",
        )


def _ends(x: Tensor, bounds: Bounds | None) -> tuple[Tensor, Tensor]:
    assert bounds is not None
    return torch.as_tensor(bounds[0]).to(x), torch.as_tensor(bounds[1]).to(x)


def _options(function: Callable[..., Any]) -> list[str]:
    return [one.name for one in inspect.signature(function).parameters.values() if one.kind is inspect.Parameter.KEYWORD_ONLY]
