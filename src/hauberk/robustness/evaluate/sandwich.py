"""The sandwich: true robust accuracy lies between what is proven and what attacks leave."""

from __future__ import annotations

import dataclasses

from torch import Tensor, nn

from hauberk.core.errors import DataError, ModelError
from hauberk.core.threat import Threat
from hauberk.robustness.evaluate.figure import Figure, share
from hauberk.robustness.verify import certified, ibp


@dataclasses.dataclass(frozen=True)
class Sandwich:
    """Two bounds on the accuracy against the best adversary there can be.

    Arguments:
        lower: the share of samples that are proven.
        upper: the share of samples that held against every attack tried.
        proven, held: which, shape (n,), bool each.
    """

    lower: Figure
    upper: Figure
    proven: Tensor
    held: Tensor

    @property
    def open(self) -> int:
        """How many samples are neither proven nor broken."""
        return int((self.held & ~self.proven).sum())


def sandwich(module: nn.Module, x: Tensor, y: Tensor, threat: Threat, held: Tensor) -> Sandwich:
    """Bound the true robust accuracy from below by interval bounds and from above by attacks.

    Arguments:
        module: that `ibp` can read.
        x: inputs, shape (n, ...).
        y: true labels, shape (n,).
        threat: that the attacks were run under.
        held: which samples are right undisturbed and hold against every attack, shape (n,), bool: `worst_case(...).held`.

    Raises:
        ModelError: where the module has a layer without a rule, or where a sample is both proven and broken.
    """
    return between(certified(ibp(module, x, threat, labels=y), y), held)


def between(proven: Tensor, held: Tensor) -> Sandwich:
    """Return the sandwich of a proof and of attacks on the same samples, shape (n,), bool each.

    Raises:
        ModelError: where a sample is both proven and broken: one of the two is wrong, and no figure can be believed.
    """
    if proven.shape != held.shape:
        raise DataError(f"{len(proven)} samples were proven or not and {len(held)} attacked", want="the same samples")
    both = (proven & ~held.to(proven.device)).nonzero()[:, 0].tolist()
    if both:
        places = ", ".join(map(str, both[:5])) + (", …" if len(both) > 5 else "")
        raise ModelError(
            f"{len(both)} samples are proven robust and were broken all the same (places {places})",
            want="no example where there is a proof: the bound, the attack or the threat of one of them is wrong",
            fix="Check that both saw the same model, bounds and threat; if so, report the model: this is a defect",
        )
    return Sandwich(share(proven), share(held), proven, held)
