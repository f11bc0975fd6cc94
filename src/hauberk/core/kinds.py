"""The decorators that put a method of each kind into the registry. Attacks, which need a contract kept, are in `attacks.py`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.attacks import refuse_outside
from hauberk.core.card import Card, registry
from hauberk.core.data import Data, Split
from hauberk.core.doors import two_sided
from hauberk.core.errors import DataError
from hauberk.core.finding import Advice, Interval
from hauberk.core.stats import wilson
from hauberk.core.threat import Threat

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclasses.dataclass
class Poisoned:
    """Training data after an attack on it.

    Arguments:
        data: the poisoned data; only its `train` split differs from what was given.
        mask: which training samples were changed or added, shape (n,), bool.
        trigger: for backdoors, puts the trigger on any inputs, (n, ...) -> (n, ...); None for other poisons.
        target_label: for backdoors, the label that the trigger should cause.
    """

    data: Data
    mask: Tensor
    trigger: Callable[[Tensor], Tensor] | None = None
    target_label: int | None = None

    @property
    def train(self) -> Split:
        """The poisoned training split."""
        assert self.data.train is not None
        return self.data.train


@dataclasses.dataclass
class Reconstruction:
    """Inputs won back from gradients, outputs or a model.

    Arguments:
        x: the reconstructed inputs, shape (n, ...).
        y: their labels, shape (n,), where the method finds them; else None.
        loss: how well each explains what was seen, shape (n,); None where there is no such figure.
    """

    x: Tensor
    y: Tensor | None = None
    loss: Tensor | None = None


@dataclasses.dataclass
class MembershipScores:
    """How much each record looks like one the model was trained on: higher for members.

    Arguments:
        members: scores of the records that were trained on, shape (m,), float64.
        non_members: scores of the records that were not, shape (k,), float64.
    """

    members: Tensor
    non_members: Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class Universal:
    """One change for all inputs: a perturbation that is added, or a patch that covers a part.

    Arguments:
        pattern: the perturbation, in the shape of a sample, or the patch's own pixels, (channels, height, width).
        threat: the inputs it may make, with bounds; all that `apply` returns lies strictly inside.
        mask: where it may change an input, bool, the shape of a sample.
        fooled: for which of the inputs it was made on `apply` reaches the threat's goal, shape (n,), bool.
        put: puts the pattern on inputs: `(pattern, x, generator) -> x`; the generator draws placements, None stands for the
            draws behind `fooled`.
    """

    pattern: Tensor
    threat: Threat
    mask: Tensor
    fooled: Tensor
    put: Callable[[Tensor, Tensor, torch.Generator | None], Tensor]

    def apply(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Return the inputs with the pattern on them, (n, ...), for any x of that shape; inputs never seen before too.

        Arguments:
            x: inputs in the shape of those it was made on, (n, ...).
            generator: of the placements, where the method draws any; None draws the same at every call.

        Raises:
            DataError: for inputs of another shape, not finite, or outside the bounds.
        """
        if x.shape[1:] != self.mask.shape or not x.is_floating_point():
            wanted = ", ".join(map(str, self.mask.shape))
            raise DataError(f"x has shape {tuple(x.shape)} and dtype {x.dtype}", want=f"floating point inputs (n, {wanted})")
        if not bool(x.isfinite().all()):
            raise DataError(f"x holds {int((~x.isfinite()).sum())} values that are NaN or infinite", want="finite inputs")
        refuse_outside(x, self.threat)
        if not len(x):
            return x.detach().clone()
        exact = x.detach() if x.dtype in (torch.float32, torch.float64) else x.detach().float()
        z = self.put(self.pattern.to(exact), exact, generator)
        return self.threat.around(x.detach()).seal(z.to(x.dtype))

    @property
    def rate(self) -> float:
        """Share of the inputs it was made on that reach the goal."""
        return float(self.fooled.double().mean()) if len(self.fooled) else 0.0

    @property
    def interval(self) -> Interval:
        """Wilson's interval of the rate. On unseen inputs the rate may be lower: measure it there."""
        return wilson(int(self.fooled.sum()), len(self.fooled))


def method(
    kind: str, *, question: str, name: str = "", access: Access | None = None, paper: str = "",
    tags: Sequence[str] = (), preset: str = "standard", **facts: Any,
) -> Callable[[Function], Function]:
    """Return a decorator that records a function or class of that kind, under its own name with dashes unless `name` is given."""

    def record(function: Function) -> Function:
        called = name or function.__name__.replace("_", "-")
        registry.add(Card(called, kind, function, question, access, paper, tuple(tags), preset, facts))
        return function

    return record


def corruption(*, question: str, paper: str = "", tags: Sequence[str] = (), **facts: Any) -> Callable[[Function], Function]:
    """Record a corruption `(x, severity, *, generator) -> x`: severity 0 is the identity, 1 to 5 grow."""
    return method("corruption", question=question, paper=paper, tags=tags, **facts)


def detector(*, question: str, paper: str = "", tags: Sequence[str] = (), **facts: Any) -> Callable[[Function], Function]:
    """Record a detector class with `fit(data)`, `score(x)` and `flag(x)` at a stated false-positive rate."""
    return method("detector", question=question, paper=paper, tags=tags, **facts)


def recipe(*, question: str, paper: str = "", tags: Sequence[str] = (), **facts: Any) -> Callable[[Function], Function]:
    """Record a factory of training losses `(model, x, y) -> loss`."""
    return method("recipe", question=question, paper=paper, tags=tags, **facts)


def poison(*, question: str, paper: str = "", tags: Sequence[str] = (), **facts: Any) -> Callable[[Function], Function]:
    """Record a poison or backdoor `(data, *, rate, ...) -> Poisoned`."""
    return method("poison", question=question, paper=paper, tags=tags, **facts)


def audit(*, question: str, paper: str = "", tags: Sequence[str] = (), **facts: Any) -> Callable[[Function], Function]:
    """Record a filter or audit `(data, model?, *, ...) -> scores`, one per training sample, higher is more suspect."""
    return method("audit", question=question, paper=paper, tags=tags, **facts)


def bound(*, question: str, paper: str = "", tags: Sequence[str] = (), **facts: Any) -> Callable[[Function], Function]:
    """Record a verifier `(module, x, threat) -> lower margins`, shape (n, classes)."""
    return method("bound", question=question, access=Access.GRADIENT, paper=paper, tags=tags, **facts)


def inference(
    *, question: str, access: Access, paper: str = "", tags: Sequence[str] = (), **facts: Any
) -> Callable[[Function], Function]:
    """Record an inference attack `(target, members, non_members, *, ...) -> MembershipScores`; both sides are pairs (x, y).

    The scores are of one rule that knows neither side: which record is a member never enters the score of a record.
    """
    record = method("inference", question=question, access=access, paper=paper, tags=tags, **facts)
    return lambda function: record(two_sided(function))


def reconstruction(*, question: str, paper: str = "", tags: Sequence[str] = (), **facts: Any) -> Callable[[Function], Function]:
    """Record a reconstruction `(module, gradients or outputs, *, ...) -> Reconstruction`."""
    return method("reconstruction", question=question, paper=paper, tags=tags, **facts)


def check(
    name: str, *, pillar: str, question: str, unit: str = "", better: str = "higher", warn: float | None = None,
    fail: float | None = None, preset: str = "quick", access: Access | None = None, paper: str = "",
    tags: Sequence[str] = (), advice: Sequence[Advice] = (), unnarrowed: bool = False,
) -> Callable[[Function], Function]:
    """Record a check `(context) -> Finding`.

    Arguments:
        name: stable id, `pillar/what`.
        pillar: robustness, integrity, privacy, assets or trust.
        question: what the finding answers.
        unit: of the value: `rate`, `accuracy`, ...; empty for a count or a plain number.
        better: whether a `higher` or a `lower` value is good.
        warn, fail: default limits of the value; None where the check sets the status itself. A plan's [gate] overrides them.
        preset: the smallest preset that runs it.
        access: the least access it needs.
        advice: what to do when it does not pass.
        unnarrowed: it asks why no gradient gets through, so that it also runs where none does; what was granted still counts.
    """
    return method(
        "check", question=question, name=name, access=access, paper=paper, tags=tags, preset=preset,
        pillar=pillar, unit=unit, better=better, warn=warn, fail=fail, advice=tuple(advice), unnarrowed=unnarrowed,
    )
