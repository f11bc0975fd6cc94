"""Adversarial training."""

from __future__ import annotations

import functools

from torch import Tensor, nn
from torch.nn import functional

from hauberk.core.kinds import recipe
from hauberk.core.threat import Threat
from hauberk.core.train import Loss, class_logits
from hauberk.robustness.defend.inner import climb, refuse_unfit


@recipe(
    question="How does a model learn to resist the worst change in a ball?",
    paper="Madry et al. 2018, arXiv:1706.06083",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.M0003", "owasp:ML01", "nist:NISTAML.022"),
)
def adversarial(threat: Threat, *, steps: int = 10, step_size: float | None = None) -> Loss:
    """Return a loss that trains on the worst inputs PGD finds: `fit(model, data.train, loss=adversarial(Linf(8 / 255)))`.

    Arguments:
        threat: what to resist; its bounds default to (0, 1).
        steps: PGD steps per batch: training costs 1 + steps times the usual.
        step_size: their length in the threat's norm; None takes 2.5 eps / steps.

    Returns:
        `(model, x, y) -> loss`: the mean cross-entropy at those inputs, with the model in the mode the caller left it in. The
        search itself sees it in evaluation mode.

    Raises:
        UsageError: for a targeted threat, a radius per sample, or no steps.
    """
    refuse_unfit(threat, steps)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        objective = functools.partial(functional.cross_entropy, target=y, reduction="none")
        z = climb(model, x, threat, objective, steps=steps, step_size=step_size)
        return functional.cross_entropy(class_logits(model(z)), y)

    return loss
