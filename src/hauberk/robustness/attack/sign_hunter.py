"""SignHunter: the signs of the gradient by halving, one score a question."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.attacks import attack
from hauberk.core.target import Target
from hauberk.core.threat import Threat
from hauberk.robustness.attack.searching import Search

_TIE = 1e-9  # margins nearer to each other are equal: which one rounding puts first depends on the batch


@attack(
    question="Can an adversary that finds the signs of the gradient from scores, halves by halves, change the answer?",
    access=Access.SCORE,
    paper="Al-Dujaili and O'Reilly 2020, arXiv:1902.06894",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.001", "owasp:ML01", "nist:NISTAML.025"),
    preset="thorough",
    norms=("linf", "l2"),
)
def sign_hunter(target: Target, x: Tensor, y: Tensor, threat: Threat, *, queries: int = 2000) -> Tensor:
    """Flip the signs of a change of full radius: of all features, of halves, of quarters, ...; keep what brings the margin down.

    Nothing is drawn at random. After single features the flips begin anew with halves, until a whole round changes nothing.

    Arguments:
        target: with SCORE access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: Linf or L2, any goal.
        queries: queries per sample at most, the one for the clean input included.

    Returns:
        Points in the ball, shape (n, ...): of the lowest margin seen.
    """
    run = Search(target, x, y, threat, queries)
    free = run.free.flatten(1)
    run.state.update(
        sign=torch.ones_like(free, dtype=torch.int8), rank=free.cumsum(1) - 1, count=free.sum(1),
        part=torch.zeros_like(run.left), parts=torch.ones_like(run.left), idle=torch.zeros_like(run.left),
        lowest=torch.full_like(run.left, torch.inf, dtype=torch.float64),
    )
    if len(run):  # the start: all features up
        run.state["lowest"] = run.ask(_placed(run, run.state["sign"]), run.rows)
    while run.settle(run.state["idle"] <= 2 * run.state["count"] + 1):
        state = run.state
        chunk = state["rank"] * state["parts"][:, None] // state["count"][:, None].clamp(min=1)
        turned = (chunk == state["part"][:, None]) & run.free.flatten(1)
        sign = torch.where(turned, -state["sign"], state["sign"])
        score = run.ask(_placed(run, sign), run.rows)
        fell = score < state["lowest"] - _TIE * (1 + score.abs().clamp(max=1e300))
        state["sign"] = torch.where(fell[:, None], sign, state["sign"])
        state["lowest"] = torch.where(fell, score, state["lowest"])
        state["idle"] = torch.where(fell, 0, state["idle"] + 1)
        state["part"] = state["part"] + 1
        done = state["part"] >= state["parts"]
        state["part"] = state["part"].masked_fill(done, 0)
        finest = state["parts"] >= state["count"]
        finer = torch.where(finest, 2, (2 * state["parts"]).minimum(state["count"])).minimum(state["count"])
        state["parts"] = torch.where(done, finer, state["parts"])
    return run.best


def _placed(run: Search, sign: Tensor) -> Tensor:
    """Return the points whose change has these signs and the full radius, or what bounds and mask leave of it."""
    return run.ball.maximise(sign.to(run.best.dtype).view(run.ball.x.shape))
