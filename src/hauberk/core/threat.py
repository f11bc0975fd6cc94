"""Threat: the set of inputs an adversary may send, and what it wants of them."""

from __future__ import annotations

import dataclasses
import enum
import math
from fractions import Fraction

import torch
from torch import Tensor
from torch.nn import functional

from hauberk.core import geometry
from hauberk.core.ball import Ball as Ball
from hauberk.core.errors import UsageError, nearest
from hauberk.core.structure import Structure as Structure

Bounds = tuple[float | Tensor, float | Tensor]
NORMS = ("linf", "l2", "l1", "l0")
NO_LABEL, REFUSED = -1, -2  # what stands for a label where an answer holds NaN, and where the question was refused


class Goal(enum.Enum):
    """What the adversary wants: any other label, one label (then `y` names it), or less confidence in the true one."""

    UNTARGETED = "untargeted"
    TARGETED = "targeted"
    CONFIDENCE = "confidence"


@dataclasses.dataclass(frozen=True, eq=False)
class Threat:
    """The inputs an adversary may send: all within `eps` of the clean one in `norm`, inside `bounds`, changed only in `mask`.

    Arguments:
        norm: `linf`, `l2`, `l1` or `l0` (number of changed features).
        eps: radius in input units; a number, or one per sample, shape (n,). `math.inf` leaves only the bounds.
        bounds: lowest and highest input; numbers, or one per feature in the shape of a sample. None: those of the target,
            else (0, 1).
        mask: True where a feature may change; the shape of a sample, or of the batch (n, ...). None: everywhere.
        goal: what counts as success. For `Goal.TARGETED` an attack's `y` holds the labels to reach.
        confidence: for `Goal.CONFIDENCE`, the probability of the true label to fall below.
        structure: what inputs can be at all: whole numbers, one-hot groups, features that move one way. None: any value.

    Raises:
        UsageError: for an unknown norm, a negative radius, or bounds that cross.
    """

    norm: str
    eps: float | Tensor
    bounds: Bounds | None = None
    mask: Tensor | None = None
    goal: Goal = Goal.UNTARGETED
    confidence: float = 0.5
    structure: Structure | None = None

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise UsageError(f"norm is '{self.norm}'", want=" | ".join(NORMS), fix=nearest(self.norm, NORMS))
        try:
            sizes = torch.as_tensor(self.eps)
        except (TypeError, ValueError, RuntimeError):
            given: object = self.eps
            told = f"'{given}'" if isinstance(given, str) else f"a {type(given).__name__}"
            text = f", or Threat.parse('{self.norm}:{given}')" if isinstance(given, str) else ""
            fix = f"Write the number without quotes, e.g. 8/255{text}"
            raise UsageError(f"eps is {told}", want="a number, or a tensor of one per sample", fix=fix) from None
        if not bool((sizes >= 0).all()):
            raise UsageError(f"eps is {self.eps}", want="a radius of 0 or more", fix="Give eps in input units, e.g. 8/255")
        if self.bounds is not None:
            low, high = (torch.as_tensor(end) for end in self.bounds)
            if not bool((low <= high).all()):
                raise UsageError(f"bounds are {self.bounds}", want="(lowest, highest)", fix="Swap the two ends")
        if not 0 < self.confidence <= 1:
            raise UsageError(f"confidence is {self.confidence}", want="a probability in (0, 1]")

    @classmethod
    def parse(cls, text: str) -> Threat:
        """Return the threat written as `norm:eps`, such as `linf:8/255` or `l2:0.5`."""
        norm, _, size = text.partition(":")
        try:
            eps = math.inf if size.strip() == "inf" else float(Fraction(size.replace(" ", "")))
        except (ValueError, ZeroDivisionError):
            raise UsageError(f"threat is '{text}'", want="norm:eps, e.g. linf:8/255 or l2:0.5") from None
        return cls(norm.strip().lower(), eps)

    def within(self, bounds: Bounds) -> Threat:
        """Return the same threat with these bounds where it had none of its own."""
        return self if self.bounds is not None else dataclasses.replace(self, bounds=bounds)

    def with_eps(self, eps: float | Tensor) -> Threat:
        """Return the same threat at another radius."""
        return dataclasses.replace(self, eps=eps)

    def targeted(self) -> Threat:
        """Return the same threat with a targeted goal: the attack's `y` then holds the labels to reach."""
        return dataclasses.replace(self, goal=Goal.TARGETED)

    def structured(self, structure: Structure) -> Threat:
        """Return the same threat among the inputs that can be at all, as the structure tells."""
        return dataclasses.replace(self, structure=structure)

    def subset(self, index: Tensor, x: Tensor) -> Threat:
        """Return the threat for the samples at `index` of the batch x: per-sample parts are cut, shared parts kept."""
        eps, mask = self.eps, self.mask
        if isinstance(eps, Tensor) and eps.ndim == 1:
            eps = eps[index.to(eps.device)]
        if mask is not None and mask.ndim == x.ndim and len(mask) == len(x):
            mask = mask[index.to(mask.device)]
        return dataclasses.replace(self, eps=eps, mask=mask)

    def around(self, x: Tensor) -> Ball:
        """Return the ball of this threat around the samples x, shape (n, ...)."""
        return Ball(self, x)

    def project(self, z: Tensor, x: Tensor) -> Tensor:
        """Return the points nearest to z, shape (n, ...), that this threat allows around x."""
        return self.around(x).project(z)

    def random_start(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return one random allowed point per sample, uniform in the ball and then clamped to the bounds."""
        return self.around(x).random_start(generator)

    def distance(self, z: Tensor, x: Tensor) -> Tensor:
        """Return the distance of each z from its x in this threat's norm, shape (n,), float64."""
        return geometry.norms((z.double() - x.double()).flatten(1), self.norm)

    def contains(self, z: Tensor, x: Tensor) -> Tensor:
        """Return which z are allowed around their x, shape (n,), bool; no tolerance."""
        return self.around(x).contains(z)

    def margin(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return how far each sample is from the goal, shape (n,), differentiable: below zero means reached.

        Untargeted: z_y - max other. Targeted: max other - z_target. Confidence: log p_y - log threshold. Of a multi-label model,
        whose y is (n, labels): the logit of the label that is easiest to turn for an untargeted goal, hardest for a targeted one;
        for confidence the probability of the least sure label counts. Never NaN: where the logits hold NaN it is a very large
        number of the sign that `success` gives, and 0 where two of them are infinite alike.
        """
        if y.ndim == 2:
            value = self._margin_of_labels(logits, y)
        elif self.goal is Goal.CONFIDENCE:
            value = logits.log_softmax(1).gather(1, y[:, None])[:, 0] - math.log(self.confidence)
        else:
            own = logits.gather(1, y[:, None])[:, 0]
            # scatter and not a subtraction of one-hot rows: exact for any logits, two classes included.
            other = logits.scatter(1, y[:, None], -torch.inf).amax(1)
            value = other - own if self.goal is Goal.TARGETED else own - other
        if _all_finite(logits):
            return value
        # A quarter, so that the difference of two margins stays finite.
        far = torch.finfo(value.dtype).max / 4
        top = logits.detach().amax(1)  # NaN where any logit is
        refused = top == -torch.inf
        lost = top.isnan().to(value.dtype) * (far if self.goal is Goal.TARGETED else -far) + refused.to(value.dtype) * far
        return torch.where(value.isnan() | refused, lost, value)

    def _margin_of_labels(self, logits: Tensor, y: Tensor) -> Tensor:
        """The margin of independent yes-or-no labels; those marked -1 are nobody's concern."""
        own = logits * (2 * y.clamp(min=0) - 1)  # above zero: the answer is the one in y
        far = torch.finfo(logits.dtype).max / 4
        if self.goal is Goal.TARGETED:
            return -own.masked_fill(y < 0, far).amin(1)
        least = own.masked_fill(y < 0, far).amin(1)
        return least if self.goal is Goal.UNTARGETED else functional.logsigmoid(least) - math.log(self.confidence)

    def success(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return which samples reach the goal, shape (n,), bool; agrees with the arg-max label on ties.

        A model that answers NaN has failed: it does not give the right answer, so that an untargeted and a confidence goal are
        reached, and it does not give the wanted one, so that a targeted goal is not. A row of minus infinity is a question
        that was refused: it reaches no goal.
        """
        if self.goal is Goal.CONFIDENCE:
            return self.margin(logits, y) < 0
        return self.reached(labels_of(logits, several=y.ndim == 2), y)

    def reached(self, labels: Tensor, y: Tensor) -> Tensor:
        """Return which predicted labels reach the goal, shape (n,), bool. For LABEL access; not for confidence goals.

        Of a multi-label model, both (n, labels): untargeted is any label that differs from y, targeted all as in y.
        """
        if self.goal is Goal.CONFIDENCE:
            raise UsageError(
                "a label-only method was given a confidence goal", want="an untargeted or targeted goal",
                fix="Grant SCORE access, or change the goal",
            )
        if y.ndim == 2:
            same = (labels == y) | (y < 0)
            return same.all(1) if self.goal is Goal.TARGETED else ~(same.all(1) | (labels == REFUSED).any(1))
        return labels == y if self.goal is Goal.TARGETED else (labels != y) & (labels != REFUSED)

    def describe(self) -> str:
        """Return the threat in one line of plain words."""
        name = {"linf": "Linf", "l2": "L2", "l1": "L1", "l0": "L0"}[self.norm]
        if isinstance(self.eps, Tensor) and self.eps.ndim:
            size = f"ε per sample in [{float(self.eps.min()):.4g}, {float(self.eps.max()):.4g}]"
        else:
            size = f"ε = {float(self.eps):.4g}"
        mask = "" if self.mask is None else f", {float(self.mask.double().mean()):.0%} of the features changeable"
        form = self.structure.describe() if self.structure is not None else ""
        return f"{name}, {size}, {self.goal.value}{_range(self.bounds)}{mask}{f', {form}' if form else ''}"


def _all_finite(values: Tensor) -> bool:
    """Return whether all are finite, where that is cheap to know: an accelerator would have to be waited for."""
    return values.device.type == "cpu" and math.isfinite(float(values.detach().sum()))


def labels_of(logits: Tensor, *, several: bool = False) -> Tensor:
    """Return the label of each row of logits, shape (n,), int64: the arg-max, or a number that is no label.

    That is -1 (NO_LABEL) where a row holds NaN, and -2 (REFUSED) where all of it is minus infinity: a question not answered. With
    `several`, every column is a yes-or-no label of its own: shape (n, labels), one where its logit is above zero.
    """
    if several:
        labels = (logits > 0).long().masked_fill(logits.isnan(), NO_LABEL)
        return labels.masked_fill((logits == -torch.inf).all(1, keepdim=True), REFUSED)
    top, labels = logits.max(1)  # NaN where any logit is
    if _all_finite(top):
        return labels
    return labels.masked_fill(top.isnan(), NO_LABEL).masked_fill(top == -torch.inf, REFUSED)


def Linf(
    eps: float | Tensor, *, bounds: Bounds | None = None, mask: Tensor | None = None, goal: Goal = Goal.UNTARGETED
) -> Threat:
    """Return the threat of changing every feature by at most eps; see `Threat` for the options."""
    return Threat("linf", eps, bounds, mask, goal)


def L2(
    eps: float | Tensor, *, bounds: Bounds | None = None, mask: Tensor | None = None, goal: Goal = Goal.UNTARGETED
) -> Threat:
    """Return the threat of a change of Euclidean length at most eps; see `Threat` for the options."""
    return Threat("l2", eps, bounds, mask, goal)


def L1(
    eps: float | Tensor, *, bounds: Bounds | None = None, mask: Tensor | None = None, goal: Goal = Goal.UNTARGETED
) -> Threat:
    """Return the threat of changes that add up to at most eps in absolute value; see `Threat` for the options."""
    return Threat("l1", eps, bounds, mask, goal)


def L0(
    eps: float | Tensor, *, bounds: Bounds | None = None, mask: Tensor | None = None, goal: Goal = Goal.UNTARGETED
) -> Threat:
    """Return the threat of changing at most eps features, each as far as the bounds allow; see `Threat` for the options."""
    return Threat("l0", eps, bounds, mask, goal)


def Patch(mask: Tensor, *, bounds: Bounds | None = None, goal: Goal = Goal.UNTARGETED) -> Threat:
    """Return the threat of changing the features in `mask` freely within the bounds, and no others."""
    return Threat("linf", math.inf, bounds, mask, goal)


def _range(bounds: Bounds | None) -> str:
    if bounds is None:
        return ""
    low, high = bounds
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        return ", bounds per feature"
    return f", inputs in [{low:g}, {high:g}]"
