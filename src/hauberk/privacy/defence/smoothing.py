"""Label smoothing: training targets that are not quite sure."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from hauberk.core.errors import UsageError
from hauberk.core.kinds import recipe
from hauberk.core.train import Loss, class_logits

TAGS = ("aisec:information-leakage", "atlas:AML.M0003", "owasp:ML04", "nist:NISTAML.033")


@recipe(
    question="How does a model learn to be less sure of what it was trained on?", tags=TAGS,
    paper="Szegedy et al. 2016, arXiv:1512.00567; negative amounts: Struppek et al. 2024, arXiv:2310.06549",
)
def label_smoothing(*, amount: float = 0.1) -> Loss:
    """Return the cross-entropy against targets of which a share is spread evenly over all classes.

    Arguments:
        amount: the share. A positive one calibrates, and was found to make inversions *better*; a negative one, which pushes the
            other classes below chance, makes them worse. Neither is a defence until `judge_defence` says so.

    Returns:
        `(model, x, y) -> loss`.

    Raises:
        UsageError: for an amount not between -1 and 1.
    """
    if not -1 < amount < 1:
        raise UsageError(f"amount is {amount}", want="a share between -1 and 1")

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        log_p = class_logits(model(x)).log_softmax(1)
        return (1 - amount) * functional.nll_loss(log_p, y) - amount * log_p.mean()

    return loss
