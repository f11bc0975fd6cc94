"""EOT-PGD: projected gradient descent on the expected loss of a model that answers at random."""

from __future__ import annotations

from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.attacks import attack
from hauberk.core.errors import UsageError
from hauberk.core.rng import generator
from hauberk.core.target import Target
from hauberk.core.threat import Threat
from hauberk.robustness.attack.auto_step import expected
from hauberk.robustness.attack.climb import Climb


@attack(
    question="Does a defence by randomness hold against an adversary who averages over it?",
    access=Access.GRADIENT,
    paper="Athalye et al. 2018, arXiv:1802.00420",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.000", "owasp:ML01", "nist:NISTAML.022"),
    preset="thorough",
)
def eot_pgd(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, steps: int = 40, answers: int = 10,
    step_size: float | None = None, loss: str = "ce", random_start: bool = True, early_stop: bool = True, seed: int = 0,
) -> Tensor:
    """Climb the mean loss over several answers of the model to the same point; return the best point seen.

    A point counts as broken when every one of its answers reaches the goal: a single lucky answer proves nothing.

    Arguments:
        target: with GRADIENT access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: any norm and goal.
        steps: gradient steps.
        answers: answers asked for at each point, one query and one gradient each, one call each.
        step_size: length of every step in the threat's norm; None starts at 20 eps / steps and falls to zero by a half cosine.
        loss: `ce` (cross-entropy) or `margin` (difference of logits; not blinded by their scale).
        random_start: begin at a random point of the ball, else at x.
        early_stop: samples that are broken leave the batch at once; False spends all steps on all, for the highest loss.
        seed: of the random start.

    Returns:
        Points in the ball, shape (n, ...): broken in every answer where one was seen, else of the highest mean loss seen.
    """
    if answers < 1:
        raise UsageError(f"answers is {answers}", want="1 or more")
    run = Climb(target, x, y, threat, loss=loss, steps=steps, step_size=step_size, early_stop=early_stop)
    if step_size is None:
        run.set_length(20 / max(steps, 1))
    start = run.ball.random_start(generator(seed, "eot-pgd", device=x.device)) if random_start else x
    run.ascend(
        start, lambda run, z: expected(run, z, answers, True)[1], fall=step_size is None,
        look=lambda run, z: expected(run, z, answers, False),
    )
    return run.best
