"""SI-NI-FGSM: gradients over darker copies of the input, with Nesterov's momentum."""

from __future__ import annotations

from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.attacks import attack
from hauberk.core.target import Target
from hauberk.core.threat import Threat
from hauberk.robustness.attack.climb import Climb, View, ahead, lowest, with_momentum


@attack(
    question="Do gradients over scaled copies of the input change the answer, and transfer?",
    access=Access.GRADIENT,
    paper="Lin et al. 2020, arXiv:1908.06281",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.002", "owasp:ML01", "nist:NISTAML.022"),
    preset="thorough",
)
def si_ni_fgsm(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, steps: int = 10, step_size: float | None = None,
    copies: int = 5, decay: float = 1.0, loss: str = "ce", early_stop: bool = True,
) -> Tensor:
    """Take steps with Nesterov's momentum along the mean gradient over copies at 1, 1/2, 1/4, ... of the intensity.

    Copies are darkened towards the lower bound of the inputs, towards zero where there is none. Every iterate is looked at as
    well: a query more per step, without a gradient.

    Arguments:
        target: with GRADIENT access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: any norm and goal.
        steps: gradient steps.
        step_size: length of a step in the threat's norm; None: eps / steps in Linf, 2.5 eps / steps in other norms.
        copies: copies per step, one query and one gradient each; 1 is NI-FGSM.
        decay: weight of the earlier gradients at each step.
        loss: `ce` (cross-entropy) or `margin` (difference of logits; not blinded by their scale).
        early_stop: samples that are broken leave the batch at once; False spends all steps on all, for transfer.

    Returns:
        Points in the ball, shape (n, ...): adversarial where one was seen, else of the highest loss seen.
    """
    run = Climb(target, x, y, threat, loss=loss, steps=steps, step_size=step_size, early_stop=early_stop)
    low = lowest(run)

    def darker(power: int) -> View:
        return lambda z: z if power == 0 else low + (z - low) / 2**power

    views = [darker(power) for power in range(max(copies, 1))]
    run.ascend(x, lambda run, z: with_momentum(run, run.gradient(ahead(run, z, decay), views), decay), sees=False)
    return run.best
