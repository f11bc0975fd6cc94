"""Label flipping: the simplest poison."""

from __future__ import annotations

import dataclasses

import torch

from hauberk.core import rng
from hauberk.core.data import Data
from hauberk.core.errors import DataError
from hauberk.core.kinds import Poisoned, poison
from hauberk.integrity.poison.choose import choose, training


@poison(
    question="What do wrong training labels cost?",
    paper="Biggio et al. 2011, Support vector machines under adversarial label noise",
    tags=("aisec:data-poisoning", "atlas:AML.T0020", "owasp:ML02", "nist:NISTAML.013"),
)
def label_flip(
    data: Data, *, rate: float = 0.1, source: int | None = None, target_label: int | None = None, seed: int = 0
) -> Poisoned:
    """Give a share of the training samples a wrong label.

    Arguments:
        data: with a train split and classes.
        rate: share of the whole train split to flip.
        source: flip only samples of this class; None flips any.
        target_label: the label to give; None draws one of the wrong labels for each sample, all equally likely.
        seed: of the choice.

    Returns:
        The poisoned data and the mask of what was flipped. Inputs are shared with `data`, not copied.

    Raises:
        DataError: without a train split or classes, or with fewer samples to flip than the rate asks for.
        UsageError: for a rate outside 0 to 1 or a label that is not there.
    """
    split, classes = training(data, source, target_label)
    if classes < 2:
        raise DataError(f"there is {classes} class", want="two or more: there is no wrong label to give")
    free = torch.ones(len(split), dtype=torch.bool) if source is None else split.y == source
    if target_label is not None:
        free &= split.y != target_label
    chosen = choose(free, rate, rng.generator(seed, "label flip", "which"))
    labels = split.y.clone()
    if target_label is not None:
        labels[chosen] = target_label
    else:
        step = torch.randint(1, classes, (len(chosen),), generator=rng.generator(seed, "label flip", "label"))
        labels[chosen] = (labels[chosen] + step) % classes
    mask = torch.zeros(len(split), dtype=torch.bool)
    mask[chosen] = True
    return Poisoned(dataclasses.replace(data, train=dataclasses.replace(split, y=labels)), mask, None, target_label)
