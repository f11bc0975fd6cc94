"""The options of private training that have a right default, and the checks of all of them at the door."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from hauberk.core.errors import UsageError
from hauberk.privacy.dp.noise import Gaussian, Mechanism

LEAST_SCALE = 1e-6
ONCE = "each-once-per-pass"
Multiplier = float | Callable[[int], float]


@dataclasses.dataclass(frozen=True)
class PrivateOptions:
    """What seldom has to be changed.

    Arguments:
        sampling: `poisson`, each example by itself; `without-replacement`, a fresh draw of exactly the batch size.
        loader: what is vouched for of batches that are not drawn here: `each-once-per-pass`, every example in exactly one batch
            of each pass over all, as a shuffled loader deals them out, and no pass cut short. A pass is counted for every
            floor(n / batch size) steps begun: where a last batch is smaller, a little more than was spent, never less. None
            vouches for nothing: each step is counted for every example.
        mechanism: makes the noise of a multiplier: `Gaussian`, `Laplace` or another of `hauberk.privacy.dp.noise`.
        seed: None draws noise and batches from a cryptographically secure source; a number makes runs repeatable, for tests:
            whoever knows it can take the noise off again.
        micro_batch: examples held in memory at once; None takes a batch whole.
        reduction: how the loss comes from the examples' losses: their `mean` or their `sum`.
        loss_scale: what losses are multiplied by before the backward pass, and gradients divided by after it, for float16;
            a number, or a `torch.amp.GradScaler` whose scale is read (do not call its `step` or `update`: a scale that
            reacts to one example's overflow would tell of it).
    """

    sampling: Literal["poisson", "without-replacement"] = "poisson"
    mechanism: Callable[[float], Mechanism] = Gaussian
    seed: int | None = None
    micro_batch: int | None = None
    reduction: Literal["mean", "sum"] = "mean"
    loss_scale: float | torch.amp.GradScaler = 1.0
    loader: Literal["each-once-per-pass"] | None = None

    def __post_init__(self) -> None:
        for name, known in (
            ("sampling", ("poisson", "without-replacement")), ("reduction", ("mean", "sum")), ("loader", (None, ONCE)),
        ):
            if getattr(self, name) not in known:
                raise UsageError(f"{name} is {getattr(self, name)!r}", want=" or ".join(map(repr, known)))
        for name, least in (("micro_batch", 1), ("seed", -math.inf)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, numbers.Integral) or value < least):
                raise UsageError(f"{name} is {value!r}", want="a whole number" + (", at least 1, or None" if least == 1 else ""))
        if not isinstance(self.loss_scale, torch.amp.GradScaler):
            _checked_scale(float(self.loss_scale))

    @property
    def scale(self) -> float:
        """The scale of the losses, now."""
        return _checked_scale(
            float(self.loss_scale.get_scale() if isinstance(self.loss_scale, torch.amp.GradScaler) else self.loss_scale)
        )


def _checked_scale(value: float) -> float:
    # Far below, the squares of scaled gradients are zero in float32, and nothing would be clipped.
    if not LEAST_SCALE <= value < math.inf:
        raise UsageError(f"loss_scale is {value}", want=f"a finite number above 0, at least {LEAST_SCALE:g}")
    return value


def population(data: Any) -> int:
    """Return how many examples there are.

    Raises:
        UsageError: when it is not a number above 0 or something with a length.
    """
    if isinstance(data, torch.utils.data.DataLoader):
        raise UsageError("the data is a DataLoader, which draws batches of its own",
                         want="its dataset, or the number of examples",
                         fix="Pass loader.dataset and train on private.batches(...)")
    if isinstance(data, Tensor) or (isinstance(data, list) and not all(isinstance(one, tuple) for one in data[:1])):
        found = f"one tensor of shape {tuple(data.shape)}" if isinstance(data, Tensor) else f"a list of {len(data)}"
        raise UsageError(f"the data is {found}", want="examples with their labels, or the number of examples",
                         fix="Pass a tuple (x, y) of tensors, a Split or a dataset; for batches of your own, the number: len(x)")
    if isinstance(data, tuple) and len({len(part) for part in data}) > 1:
        raise UsageError(f"the parts of the data hold {' and '.join(str(len(part)) for part in data)} examples",
                         want="as many labels as examples")
    try:
        n = data if isinstance(data, int) else len(data[0] if isinstance(data, tuple) else data)
    except TypeError:
        n = 0
    if n < 1:
        raise UsageError(f"the data is {type(data).__name__} with {n} examples",
                         want="a split, a tuple of tensors, a dataset with a length, or the number of examples")
    return n


def multiplier_at(multiplier: Multiplier, step: int) -> float:
    """Return the noise multiplier of a step.

    Raises:
        UsageError: when it is negative or not finite.
    """
    value = float(multiplier(step) if callable(multiplier) else multiplier)
    if not 0 <= value < math.inf:
        raise UsageError(f"the noise multiplier of step {step} is {value}", want="a finite number, at least 0")
    return value


def noise_of(options: PrivateOptions, multiplier: float, norm: str | None = None) -> Mechanism:
    """Return the noise of a step.

    Raises:
        UsageError: when it has less than the account is told of, or is for another norm than the clip's.
    """
    made = options.mechanism(multiplier)
    if not made.noise_multiplier >= multiplier:
        raise UsageError(
            f"{made.name} noise has a multiplier of {made.noise_multiplier:.6g}", want=f"at least {multiplier:.6g}, as asked",
            fix="Pass a mechanism that takes the multiplier it is given, such as Gaussian itself",
        )
    if norm is not None and norm != f"l{made.norm}":
        raise UsageError(f"{made.name} noise in a step that is clipped in the {norm.upper()} norm", want="noise for that norm")
    return made


def trained(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Parameter]:
    """Return by name the parameters that the optimizer changes.

    Raises:
        UsageError: when there is none, or the optimizer has others, whose gradients nobody would make private.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UsageError(f"the optimizer is {type(optimizer).__name__}", want="a torch.optim.Optimizer of the model's parameters")
    held = {id(one) for group in optimizer.param_groups for one in group["params"] if one.requires_grad}
    found = {name: one for name, one in model.named_parameters() if id(one) in held}
    if len(found) != len(held):
        raise UsageError(f"{len(held) - len(found)} of the optimizer's {len(held)} parameters are not the model's",
                         want="an optimizer over parameters of this model")
    if not found:
        raise UsageError("the optimizer has no parameter that is trained", want="at least one that requires a gradient")
    return found


def same_trained(optimizer: torch.optim.Optimizer, tracked: dict[str, Parameter]) -> None:
    """Refuse an optimizer that would now step other parameters than those whose gradients are made private.

    Raises:
        UsageError: for a parameter that was unfrozen or added later, one with a gradient left over, or one no longer trained.
    """
    known = {id(one) for one in tracked.values()}
    held = [one for group in optimizer.param_groups for one in group["params"]]
    # An optimizer steps whatever has a gradient, also where none is required any more.
    late = sum(id(one) not in known and (one.requires_grad or one.grad is not None) for one in held)
    gone = len(known - {id(one) for one in held if one.requires_grad})
    if late or gone:
        what = f"would step {late} parameters whose gradients are not private" if late else f"no longer trains {gone} parameters"
        raise UsageError(
            f"the optimizer {what}", want="the parameters that it trained when make_private was called",
            fix="After freezing or unfreezing set stale gradients to None, and give a new make_private the old state_dict",
        )
