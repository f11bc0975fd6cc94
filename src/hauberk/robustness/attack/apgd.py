"""Auto-PGD: projected gradient descent that sets its own step size, and its targeted form for untargeted goals."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.attacks import attack
from hauberk.core.errors import UsageError, nearest
from hauberk.core.rng import generator
from hauberk.core.target import Target
from hauberk.core.threat import Goal, Threat
from hauberk.robustness.attack.auto_step import auto_ascend
from hauberk.robustness.attack.climb import Climb, Loss
from hauberk.robustness.attack.linear import likeliest_rivals, side_of

_PAPER = "Croce and Hein 2020, arXiv:2003.01690; for L1 2021, arXiv:2103.01208"
_TAGS = ("aisec:digital-adversarial-attacks", "atlas:AML.T0043.000", "owasp:ML01", "nist:NISTAML.022")
_NORMS = ("linf", "l2", "l1")
_LOSSES = ("ce", "dlr", "margin")


@attack(
    question="Does gradient descent that tunes its own steps change the answer?", access=Access.GRADIENT, paper=_PAPER,
    tags=_TAGS, preset="thorough", norms=_NORMS,
)
def apgd(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, steps: int = 100, restarts: int = 1, loss: str = "ce",
    answers: int = 1, early_stop: bool = True, seed: int = 0,
) -> Tensor:
    """Climb the loss with momentum; steps begin long and are halved, from the best point, whenever progress stalls.

    Arguments:
        target: with GRADIENT access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: Linf, L2 or L1, any goal. In L1 steps are sparse, and their sparsity follows that of the best point.
        steps: gradient steps of each restart.
        restarts: random starts; later ones for the samples that hold.
        loss: `ce` (cross-entropy), `dlr` (difference of logits ratio: no scale or shift of the logits changes it; below four
            classes, and for goals other than any wrong label, it is the margin) or `margin` (difference of logits).
        answers: asked for at each point and averaged, for models that answer at random; a point then counts as broken when
            every answer reaches the goal.
        early_stop: samples that are broken leave the batch at once; False spends all steps on all, for the highest loss.
        seed: of the starts.

    Returns:
        Points in the ball, shape (n, ...): adversarial where one was seen, else of the highest loss seen.
    """
    if loss not in _LOSSES:
        raise UsageError(f"loss is '{loss}'", want=" | ".join(_LOSSES), fix=nearest(loss, _LOSSES))
    if answers < 1:
        raise UsageError(f"answers is {answers}", want="1 or more")
    chosen: str | Loss = _ratio if loss == "dlr" else loss
    run = Climb(target, x, y, threat, loss=chosen, steps=steps, step_size=None, early_stop=early_stop)
    noise = generator(seed, "apgd", device=x.device)
    for restart in range(max(restarts, 1)):
        if restart:
            run.restart()
        if len(run.alive):
            auto_ascend(run, run.ball.random_start(noise), answers)
    return run.best


@attack(
    question="Does a search towards each of the likeliest other classes change the answer?", access=Access.GRADIENT,
    paper=_PAPER, tags=_TAGS, preset="thorough", norms=_NORMS, goals=(Goal.UNTARGETED, Goal.CONFIDENCE),
)
def apgd_t(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, steps: int = 100, classes: int = 9, early_stop: bool = True,
    seed: int = 0,
) -> Tensor:
    """Run APGD towards each of the likeliest other classes in turn, on the samples that still hold (APGD-T).

    Climbs the targeted difference of logits ratio; below four classes, where that is not defined, the difference of logits. Of
    a multi-label model the labels are tried from the least sure up.

    Arguments:
        target: with GRADIENT access.
        x: clean inputs, shape (n, ...).
        y: true labels, shape (n,).
        threat: Linf, L2 or L1; untargeted or a loss of confidence, for the attack chooses the classes to go for.
        steps: gradient steps towards each class.
        classes: classes tried at most, from the highest logit at x down, the true one left out.
        early_stop: samples that are broken leave the batch at once; False spends all steps on all, for the highest loss.
        seed: of the starts.

    Returns:
        Points in the ball, shape (n, ...): adversarial where one was seen, else of the highest loss seen.
    """
    noise = generator(seed, "apgd-t", device=x.device)
    clean = target.logits(x)
    order = likeliest_rivals(clean, y, classes)

    def towards(rank: int) -> Loss:
        return lambda run, logits: _targeted_ratio(logits, run.y, order[run.alive, rank])

    run = Climb(target, x, y, threat, loss=towards(0), steps=steps, step_size=None, early_stop=early_stop)
    run.note(x, torch.full_like(clean[:, 0], -torch.inf), threat.success(clean, y))
    for rank in range(order.shape[1]):
        run.loss = towards(rank)
        run.restart()
        if len(run.alive):
            auto_ascend(run, run.ball.random_start(noise))
    return run.best


def _ratio(run: Climb, logits: Tensor) -> Tensor:
    """Return the difference of logits ratio, shape (n,): the margin over the distance from the first to the third logit."""
    gain = -run.threat.margin(logits, run.y)
    # Towards one label the ratio has poor maxima: it grows as well where the leaders draw apart from the third.
    if logits.shape[1] < 4 or run.y.ndim == 2 or run.threat.goal is not Goal.UNTARGETED:
        return gain
    top = logits.topk(3, dim=1).values
    return gain / (top[:, 0] - top[:, 2] + 1e-12)


def _targeted_ratio(logits: Tensor, y: Tensor, wanted: Tensor) -> Tensor:
    """Return z_wanted - z_y over the distance from the first logit to the mean of the third and fourth, shape (n,)."""
    gain = -side_of(logits, y, wanted)
    if logits.shape[1] < 4 or y.ndim == 2:
        return gain
    top = logits.topk(4, dim=1).values
    return gain / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)
