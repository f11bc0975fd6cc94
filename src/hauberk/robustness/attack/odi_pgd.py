"""ODI-PGD: projected gradient descent from starts that are spread in the model's outputs, not in its inputs."""

from __future__ import annotations

from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.attacks import attack
from hauberk.core.rng import generator, uniform
from hauberk.core.target import Target
from hauberk.core.threat import Ball, Threat
from hauberk.robustness.attack.climb import Climb
from hauberk.robustness.attack.pgd import ascent


@attack(
    question="Do starts that differ in the outputs find what random starts miss?",
    access=Access.GRADIENT,
    paper="Tashiro et al. 2020, arXiv:2003.06878",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.000", "owasp:ML01", "nist:NISTAML.022"),
    preset="thorough",
)
def odi_pgd(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, steps: int = 20, restarts: int = 2, diversify: int = 2,
    step_size: float | None = None, loss: str = "margin", early_stop: bool = True, seed: int = 0,
) -> Tensor:
    """Climb a random combination of the logits for a few steps, then the loss; begin again with what holds.

    Arguments:
        target: with GRADIENT access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: any norm and goal.
        steps: gradient steps of each restart, those of the diversification not counted.
        restarts: starts, each with a random combination of its own per sample.
        diversify: steps of length eps along the random combination before each climb.
        step_size: length of every step in the threat's norm; None starts at 20 eps / steps and falls to zero by a half cosine.
        loss: `margin` (difference of logits, the paper's) or `ce` (cross-entropy).
        early_stop: samples that are broken leave the batch at once; False spends all steps on all, for the highest loss.
        seed: of starts and combinations.

    Returns:
        Points in the ball, shape (n, ...): adversarial where one was seen, else of the highest loss seen.
    """
    run = Climb(target, x, y, threat, loss=loss, steps=steps, step_size=step_size, early_stop=early_stop)
    if step_size is None:
        run.set_length(20 / max(steps, 1))
    noise = generator(seed, "odi-pgd", device=x.device)

    def scattered(run: Climb, z: Tensor) -> Tensor:
        def combination(logits: Tensor) -> Tensor:
            if "weights" not in run.memory:
                run.memory["weights"] = 2 * uniform(logits, noise) - 1  # (alive, classes)
            return (logits * run.memory["weights"]).sum(1)

        return run.gradient(z, aim=combination)

    for restart in range(max(restarts, 1)):
        if restart:
            run.restart()
        if not len(run.alive):
            break
        z = run.ball.random_start(noise)
        for _ in range(diversify):
            if len(z):
                z = run.step(z, scattered, _full)
        run.ascend(z, Climb.gradient, fall=step_size is None)
    return run.best


def _full(ball: Ball, z: Tensor, direction: Tensor, _: Tensor) -> Tensor:
    """Return a step as long as the radius."""
    return ascent(ball, z, direction, ball.size.to(z.dtype))
