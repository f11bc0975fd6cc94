"""Admix: gradients over copies of the input into which a little of another input is mixed."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.attacks import attack
from hauberk.core.errors import DataError
from hauberk.core.rng import generator
from hauberk.core.target import Target
from hauberk.core.threat import Threat
from hauberk.robustness.attack.climb import Climb, View, lowest, with_momentum
from hauberk.robustness.attack.pieces import pick


@attack(
    question="Do gradients over mixtures with other inputs change the answer, and transfer?",
    access=Access.GRADIENT,
    paper="Wang et al. 2021, arXiv:2102.00436",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.002", "owasp:ML01", "nist:NISTAML.022"),
    preset="thorough",
)
def admix(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, steps: int = 10, pool: Tensor | None = None, share: float = 0.2,
    neighbours: int = 3, copies: int = 5, loss: str = "ce", early_stop: bool = True, seed: int = 0,
) -> Tensor:
    """Take steps with momentum along the mean gradient over mixtures, each at 1, 1/2, 1/4, ... of the intensity.

    Mixtures are darkened towards the lower bound of the inputs, towards zero where there is none. Every iterate is looked at as
    well: a query more per step, without a gradient. Steps are as long as those of MI-FGSM, with a decay of 1.

    Arguments:
        target: with GRADIENT access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: any norm and goal.
        steps: gradient steps.
        pool: inputs to mix in, shape (m, ...), best of all classes. None: the image itself, mirrored and moved to another place
            at random; inputs that are not images are then mixed with nothing.
        share: weight of what is mixed in; 0 with one copy is MI-FGSM.
        neighbours: inputs mixed in per step, each drawn for the whole batch.
        copies: intensities per mixture, one query and one gradient each.
        loss: `ce` (cross-entropy) or `margin` (difference of logits; not blinded by their scale).
        early_stop: samples that are broken leave the batch at once; False spends all steps on all, for transfer.
        seed: of what is mixed in.

    Returns:
        Points in the ball, shape (n, ...): adversarial where one was seen, else of the highest loss seen.
    """
    if pool is not None and (not len(pool) or pool.shape[1:] != x.shape[1:]):
        raise DataError(f"pool has shape {tuple(pool.shape)}", want=f"(m, {', '.join(map(str, x.shape[1:]))}), m of 1 or more")
    if pool is None and x.ndim != 4:
        target.notice("inputs that are not images are mixed with nothing: give Admix a pool of inputs")
    run = Climb(target, x, y, threat, loss=loss, steps=steps, step_size=None, early_stop=early_stop)
    low, noise = lowest(run), generator(seed, "admix")

    def other(z: Tensor) -> Tensor:
        """Return what is mixed into z, as brightness above black, shape (1, ...) or (n, ...)."""
        if pool is not None:
            return pool[pick(len(pool), noise)][None].to(z) - low
        bright = z.detach() - low
        if z.ndim != 4:
            return torch.zeros_like(bright)
        moved = bright.roll((pick(z.shape[2], noise), pick(z.shape[3], noise)), (2, 3))
        return moved.flip(3) if pick(2, noise) else moved

    def mixed(added: Tensor, power: int) -> View:
        return lambda z: low + (z - low + share * added) / 2**power

    def way(run: Climb, z: Tensor) -> Tensor:
        mixtures = [other(z) for _ in range(max(neighbours, 1))]
        views = [mixed(added, power) for added in mixtures for power in range(max(copies, 1))]
        return with_momentum(run, run.gradient(z, views), 1.0)

    run.ascend(x, way, sees=False)
    return run.best
