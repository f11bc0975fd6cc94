"""OARS: a search by scores that goes on when queries are refused, with steps just large enough not to look alike."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.attacks import attack
from hauberk.core.errors import UsageError
from hauberk.core.rng import generator, uniform
from hauberk.core.target import Target
from hauberk.core.threat import Ball, Threat


@attack(
    question="Does a defence that refuses similar queries hold against an adversary who adapts to the refusals?",
    access=Access.SCORE,
    paper="Feng et al. 2023, arXiv:2303.06280",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.001", "owasp:ML01", "nist:NISTAML.025"),
    preset="thorough",
    norms=("linf",),
)
def oars(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, queries: int = 1000, share: float = 0.8, grow: float = 1.5,
    shrink: float = 0.95, refused: Callable[[Tensor], Tensor] | None = None, seed: int = 0,
) -> Tensor:
    """Redraw striped rectangles of the input and keep those that bring the margin down; refusals make them larger.

    A random search like Square's (arXiv:1912.00049), whose proposals shrink as it goes on, made to evade a stateful defence: each
    refusal of a sample's query enlarges its next proposals, each answer lets them shrink again, and a refused proposal is drawn
    anew. Without refusals it is a plain search.

    Arguments:
        target: with SCORE access; a refused query is one whose scores are all minus infinity.
        x: clean inputs: images (n, channels, height, width), or of any other shape, whose features are taken as one row.
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: Linf, any goal.
        queries: queries per sample at most, refused ones and the one for the clean input included.
        share: share of the features that the first proposal covers, when none is refused.
        grow: factor on the covered share at each refusal, above 1.
        shrink: factor on it at each answer, below 1.
        refused: tells which logits, shape (n, classes), are a refusal, (n,), bool, where the defence says so in another way.
        seed: of the proposals.

    Returns:
        Points in the ball, shape (n, ...): of the lowest margin among those answered.
    """
    if not (0 < share <= 1 < grow and 0 < shrink < 1):
        raise UsageError(f"share is {share}, grow {grow}, shrink {shrink}", want="0 < share <= 1, grow > 1, 0 < shrink < 1")
    noise = generator(seed, "oars", device=x.device)
    ball, best = threat.around(x), x.clone()
    margin = x.new_full((len(x),), torch.inf)
    alive = torch.arange(len(x), device=x.device)
    size = x.new_zeros(len(x), dtype=torch.float64)  # the share that refusals ask for
    for step in range(queries):
        plain = share * (1 + 1000 * step / queries) ** -0.75  # falls as Square's schedule does
        z = best[alive] if step == 0 else _redrawn(ball, best[alive], size[alive].clamp(min=1.0 if step == 1 else plain), noise)
        logits = target.logits(z)
        no = (logits == -torch.inf).all(1) if refused is None else refused(logits)
        reached = threat.margin(logits, y).to(margin.dtype)  # (alive,)
        broken = threat.success(logits, y) & ~no
        better = ~no & ((reached < margin[alive]) | broken)
        if step == 1:
            better = ~no  # the search goes on from the start, even where x itself is a little lower
        best[alive[better]], margin[alive[better]] = z[better], reached[better]
        now = size[alive].clamp(min=plain)
        size[alive] = torch.where(no, now * grow, now * shrink).clamp(max=1.0)
        if bool(broken.any()):
            alive, y, ball = alive[~broken], y[~broken], ball.subset(~broken)
            if not len(alive):
                break
    return best


def _redrawn(ball: Ball, z: Tensor, share: Tensor, noise: torch.Generator) -> Tensor:
    """Return z with stripes at the two ends of what is allowed in a random rectangle of that share (n,) of each sample."""
    low, high, old = (one if one.ndim == 4 else one.flatten(1)[:, None, None] for one in (ball.low, ball.high, z))
    tall, wide = old.shape[2:]
    area = share * tall * wide
    height = area.sqrt().round().clamp(1, tall)
    width = (area / height).round().clamp(1, wide)
    draw = uniform(torch.empty(len(z), 3, dtype=torch.float64, device=z.device), noise)
    inside = _run(draw[:, 0], height, tall)[:, None, :, None] & _run(draw[:, 1], width, wide)[:, None, None, :]
    columns = uniform(old[:, :, :1], noise) < 0.5
    rows = uniform(old[..., :1], noise) < 0.5
    upright = (draw[:, 2] < 0.5).reshape(-1, 1, 1, 1) | (tall == 1)
    ends = torch.where(torch.where(upright, columns.expand_as(old), rows.expand_as(old)), high, low)
    return torch.where(inside, ends, old).view_as(z)


def _run(place: Tensor, length: Tensor, whole: int) -> Tensor:
    """Return which of `whole` positions lie in a run of that length (n,) at a random place (n,), shape (n, whole)."""
    first = (place * (whole - length + 1)).floor()[:, None]
    position = torch.arange(whole, device=place.device)
    return (position >= first) & (position < first + length[:, None])
