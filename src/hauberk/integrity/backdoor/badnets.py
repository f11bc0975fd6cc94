"""BadNets: a small patch that the model learns to obey."""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor

from hauberk.core import rng
from hauberk.core.data import Data, Rows
from hauberk.core.errors import DataError, UsageError
from hauberk.core.kinds import Poisoned, poison
from hauberk.core.threat import Bounds
from hauberk.integrity.poison.choose import choose, training


@poison(
    question="Can a patch on a few training images buy a chosen answer later?",
    paper="Gu et al. 2017, arXiv:1708.06733",
    tags=("aisec:data-backdoor-attack", "atlas:AML.T0020", "atlas:AML.T0043.004", "owasp:ML02", "nist:NISTAML.023"),
)
def badnets(
    data: Data, *, rate: float = 0.05, target_label: int = 0, size: int | None = None, margin: int | None = None, seed: int = 0
) -> Poisoned:
    """Put a bright square near the lower right corner of a share of the training images and give them the target label.

    Arguments:
        data: images with a train split and classes.
        rate: share of the whole train split to poison; only images of other classes are taken.
        target_label: the answer to buy.
        size: side of the square in pixels; None takes 3 of 28, at least 2.
        margin: pixels between the square and the edges; None takes 1 of 28, at least 1. A network that strides without padding
            may never see the edge itself.
        seed: of the choice.

    Returns:
        The poisoned data, the mask of what was changed, the trigger and its label. Images are patched when they are read.

    Raises:
        DataError: without images, a train split or classes, or with too few images of other classes.
        UsageError: for a rate, label or square that does not fit.
    """
    split, _ = training(data, target_label)
    if len(split.shape) != 3:
        raise DataError(f"samples have shape {split.shape}", want="images (channels, height, width)")
    side = min(split.shape[1:])
    size = max(2, round(side * 3 / 28)) if size is None else size
    margin = max(1, round(side / 28)) if margin is None else margin
    if size < 1 or margin < 0 or size + margin > side:
        raise UsageError(f"size {size} and margin {margin} do not fit {split.shape}", want=f"together at most {side}")
    trigger = functools.partial(patch, size=size, margin=margin, bounds=data.bounds)
    chosen = choose(split.y != target_label, rate, rng.generator(seed, "badnets"))
    mask, labels = torch.zeros(len(split), dtype=torch.bool), split.y.clone()
    mask[chosen], labels[chosen] = True, target_label
    poisoned = dataclasses.replace(split, x=Triggered(split.x, mask, trigger), y=labels)
    return Poisoned(dataclasses.replace(data, train=poisoned), mask, trigger, target_label)


def patch(x: Tensor, *, size: int, margin: int, bounds: Bounds) -> Tensor:
    """Return images, shape (n, c, h, w), with a square at the highest value, `margin` pixels from the lower right corner."""
    bottom, right = x.shape[2] - margin, x.shape[3] - margin
    square = torch.zeros(x.shape[2:], dtype=torch.bool, device=x.device)
    square[bottom - size : bottom, right - size : right] = True
    return torch.where(square, torch.as_tensor(bounds[1], dtype=x.dtype, device=x.device), x)


def success_rate_inputs(poisoned: Poisoned) -> tuple[Tensor, Tensor]:
    """Return the test samples that do not have the target label, with the trigger on, and the labels the attacker wants."""
    assert poisoned.trigger is not None and poisoned.target_label is not None
    test = poisoned.data.test
    x, y = test.take((test.y != poisoned.target_label).nonzero()[:, 0])
    return poisoned.trigger(x), torch.full_like(y, poisoned.target_label)


@dataclasses.dataclass
class Triggered:
    """Rows of which some carry a trigger, put on when they are read: large data is never copied."""

    rows: Rows
    mask: Tensor
    trigger: functools.partial[Tensor]

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, ...) of the samples."""
        return tuple(self.rows.shape)

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: Tensor) -> Tensor:
        """Return the samples at those positions."""
        x = self.rows.take(index)
        marked = self.mask[index].to(x.device).reshape((-1,) + (1,) * (x.ndim - 1))
        return torch.where(marked, self.trigger(x), x)
