"""TRADES: accuracy traded for robustness by one number."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from hauberk.core.errors import UsageError
from hauberk.core.kinds import recipe
from hauberk.core.target import evaluating
from hauberk.core.threat import Threat
from hauberk.core.train import Loss, class_logits
from hauberk.robustness.defend.inner import climb, refuse_unfit


@recipe(
    question="How does a model learn to keep its answer in a ball, at a chosen price in accuracy?",
    paper="Zhang et al. 2019, arXiv:1901.08573",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.M0003", "owasp:ML01", "nist:NISTAML.022"),
)
def trades(threat: Threat, *, beta: float = 6.0, steps: int = 10, step_size: float | None = None) -> Loss:
    """Return a loss of clean error plus beta times the divergence between the answers at x and at the worst point near it.

    Arguments:
        threat: what to resist; its bounds default to (0, 1).
        beta: weight of the divergence: more is more robust and less accurate.
        steps: gradient steps per batch: training costs 2 + steps times the usual.
        step_size: their length in the threat's norm; None takes 2.5 eps / steps.

    Returns:
        `(model, x, y) -> loss`, with the model in the mode the caller left it in. The search sees it in evaluation mode; its
        clean answer is computed once. It starts at a random point of the ball, as PGD does, where the paper's code starts
        beside x.

    Raises:
        UsageError: for a targeted threat, a radius per sample, no steps, or a negative beta.
    """
    refuse_unfit(threat, steps)
    if not beta >= 0:
        raise UsageError(f"beta is {beta}", want="a weight of 0 or more")

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad(), evaluating(model):
            clean = class_logits(model(x)).log_softmax(1)  # (n, classes)
        z = climb(model, x, threat, lambda logits: divergence(clean, logits), steps=steps, step_size=step_size)
        logits = class_logits(model(x))
        return functional.cross_entropy(logits, y) + beta * divergence(logits.log_softmax(1), class_logits(model(z))).mean()

    return loss


def divergence(clean: Tensor, logits: Tensor) -> Tensor:
    """Return KL(clean ‖ softmax(logits)) per sample, shape (n,), from log-probabilities and logits, shapes (n, classes)."""
    return functional.kl_div(logits.log_softmax(1), clean, reduction="none", log_target=True).sum(1)
