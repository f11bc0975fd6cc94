"""One pixel, and few pixels: differential evolution of places and values, by scores."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.attacks import attack
from hauberk.core.errors import UsageError
from hauberk.core.rng import generator, normal, uniform
from hauberk.core.target import Target
from hauberk.core.threat import Threat
from hauberk.robustness.attack.searching import Search, portions


@attack(
    question="Can an adversary that sees scores change the answer with one pixel, or a few?",
    access=Access.SCORE,
    paper="Su et al. 2019, arXiv:1710.08864",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.001", "owasp:ML01", "nist:NISTAML.025"),
    preset="thorough",
    norms=("l0",),
)
def one_pixel(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, queries: int = 2000, population: int = 20, weight: float = 0.5,
    seed: int = 0,
) -> Tensor:
    """Evolve places and values of as many pixels as the radius allows: a child is a parent plus the difference of two others.

    Arguments:
        target: with SCORE access.
        x: clean inputs: images (n, channels, height, width), where a pixel is all its channels as long as eps has room for them;
            or of any other shape, whose features are taken as one row of pixels.
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: L0, any goal; `eps` counts features, so that 3 is one pixel of a colour image.
        queries: queries per sample at most, the one for the clean input included.
        population: candidates of a generation.
        weight: of the difference, F in the paper.
        seed: of all draws.

    Returns:
        Points in the ball, shape (n, ...): of the lowest margin seen.
    """
    if population < 4:
        raise UsageError(f"population is {population}", want="4 or more: a parent and three others")
    noise = generator(seed, "one pixel", device=x.device)
    sides = tuple(x.shape[1:]) if x.ndim == 4 else (1, 1, x[:1].numel())
    pixels = (threat.around(x).size / sides[0]).floor().clamp(1, sides[1] * sides[2]) if len(x) else torch.zeros(0)
    most = int(pixels.max()) if len(x) else 0

    def evolve(x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        run = Search(target, x, y, threat, queries)
        genes = _first(run, population, most, sides[0], noise)  # (alive, population, most, 2 + channels), each within [0, 1]
        run.state.update(genes=genes, score=_scores(run, genes, sides))
        while run.settle():
            genes, score = run.state["genes"], run.state["score"]
            key = uniform(genes.new_empty(len(run), population, population), noise)
            key = key + 2 * torch.eye(population, device=x.device)  # of the others, not of itself
            others = key.argsort(2)[:, :, :3]
            parts = [genes[run.rows[:, None], others[:, :, i]] for i in range(3)]
            child = parts[0] + weight * (parts[1] - parts[2])
            # A place beyond the border comes in at the other side, a value stays at the end of its range.
            child = torch.cat([child[..., :2] % 1, child[..., 2:].clamp(0, 1)], 3)
            found = _scores(run, child, sides)
            better = found <= score
            run.state["genes"] = torch.where(better[:, :, None, None], child, genes)
            run.state["score"] = torch.where(better, found, score)
        return run.best

    return portions(population, x, y, threat, evolve)


def _first(run: Search, population: int, most: int, channels: int, noise: torch.Generator) -> Tensor:
    """Return random places, and values that lie at the ends of their range as often as in between."""
    like = torch.empty(len(run), population, most, 2 + channels, device=run.best.device)
    values = (0.5 + 0.5 * normal(like[..., 2:], noise)).clamp(0, 1)
    return torch.cat([uniform(like[..., :2], noise), values], 3)


def _scores(run: Search, genes: Tensor, sides: tuple[int, ...]) -> Tensor:
    """Return the scores of the candidates of these genes, infinite where a sample cannot pay."""
    count = genes.shape[1]
    return run.ask_all(lambda first, last: _painted(run, genes[:, first:last], sides), torch.full_like(run.left, count), count)


def _painted(run: Search, genes: Tensor, sides: tuple[int, ...]) -> Tensor:
    """Return the candidates, shape (alive, k, ...), of genes (alive, k, pixels, 2 + channels)."""
    channels, height, width = sides
    ball, count = run.ball, genes.shape[1]
    free = run.free.view(len(run), *sides).any(1)
    top, tall = _extent(free.any(2))
    left, wide = _extent(free.any(1))
    row = top[:, None, None] + (genes[..., 0] * tall[:, None, None]).floor().minimum(tall[:, None, None] - 1)
    column = left[:, None, None] + (genes[..., 1] * wide[:, None, None]).floor().minimum(wide[:, None, None] - 1)
    place = (row * width + column).long()  # (alive, k, pixels)
    low, high, clean = (one.reshape(len(run), 1, channels, height * width).expand(-1, count, -1, -1) for one in (
        ball.low, ball.high, ball.x,
    ))
    index = place[:, :, None].expand(-1, -1, channels, -1)
    share = genes[..., 2:].transpose(2, 3).to(clean.dtype)  # (alive, k, channels, pixels)
    ends = low.gather(3, index), high.gather(3, index)
    colour = (ends[0] + (ends[1] - ends[0]) * share).clamp(*ends)
    # Slots beyond what the radius of this sample has room for paint what the first one does.
    room = (ball.size / channels).floor().clamp(min=1)[:, None, None, None]
    used = torch.arange(genes.shape[2], device=place.device) < room
    index, colour = torch.where(used, index, index[..., :1]), torch.where(used, colour, colour[..., :1])
    painted = clean.clone().scatter_(3, index, colour).view(len(run), count, *ball.x.shape[1:])
    if bool((ball.size >= channels).all()):
        return painted
    return torch.stack([ball.project(painted[:, i]) for i in range(count)], 1)  # the radius has no room for a whole pixel


def _extent(used: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first index in use and the length of the run to the last, each (alive,), float."""
    first = used.float().argmax(1)
    last = used.shape[1] - 1 - used.flip(1).float().argmax(1)
    return first.float(), (last - first + 1).clamp(min=1).float()
