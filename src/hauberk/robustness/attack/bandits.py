"""Bandits: gradients from two scores a step, with what was learnt of them before and of their smoothness as a prior."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.attacks import attack
from hauberk.core.errors import UsageError
from hauberk.core.rng import generator, normal
from hauberk.core.target import Target
from hauberk.core.threat import Threat
from hauberk.robustness.attack.pgd import ascent
from hauberk.robustness.attack.searching import Search


@attack(
    question="Can an adversary change the answer that sees scores and knows that gradients of images are smooth?",
    access=Access.SCORE,
    paper="Ilyas et al. 2019, arXiv:1807.07978",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.001", "owasp:ML01", "nist:NISTAML.025"),
    preset="thorough",
    norms=("linf", "l2"),
    fine_steps=True,
)
def bandits(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, queries: int = 2000, tile: int = 1, explore: float = 1.0,
    learning_rate: float = 0.01, step_size: float = 0.2, seed: int = 0,
) -> Tensor:
    """Walk along a guess of the gradient that is mended at every step by two scores around it.

    Arguments:
        target: with SCORE access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: Linf or L2, any goal.
        queries: queries per sample at most; the one for the clean input and one for each iterate are among them.
        tile: side in pixels of the squares in which the gradient of an image is taken as equal; 1: none. The paper has 6 pixels
            for ImageNet.
        explore: size of the random part of a guess.
        learning_rate: how fast the guess is mended.
        step_size: length of a step, as a share of the radius.
        seed: of the random parts.

    Returns:
        Points in the ball, shape (n, ...): of the lowest margin seen.
    """
    if tile < 1:
        raise UsageError(f"tile is {tile}", want="1 or more pixels")
    noise = generator(seed, "bandits", device=x.device)
    run = Search(target, x, y, threat, queries)
    work = torch.float64 if x.dtype is torch.float64 else torch.float32
    prior = _coarse(torch.zeros_like(run.ball.x, dtype=work), tile)
    run.state.update(z=run.ball.x, prior=prior, scale=torch.zeros_like(run.left, dtype=torch.float64))
    while run.settle(run.left > 2):  # two scores, and a look at where they lead
        z, prior = run.state["z"], run.state["prior"]
        step = normal(prior, noise)
        size = explore * step.flatten(1).shape[1] ** -0.5
        ends = [_probed(run, z, _fine(prior + way * size * step, z, tile)) for way in (1, -1)]
        scores = run.ask(torch.cat(ends), run.rows.repeat(2)).view(2, -1)
        change = scores[1] - scores[0]
        change = torch.where(change.abs() < 1e300, change, torch.zeros_like(change))
        # In units of the changes seen, so that no scale of the scores alters how the guess is mended.
        run.state["scale"] = scale = torch.maximum(0.9 * run.state["scale"], change.abs())
        share = (change / scale.clamp(min=1e-300)).to(work).reshape((-1,) + (1,) * (prior.ndim - 1))
        run.state["prior"] = prior = _mended(prior, learning_rate * share * step, run.ball.norm)
        way = _fine(prior, z, tile)
        length = (step_size * run.ball.size).to(work)
        run.state["z"] = z = run.ball.project((z + ascent(run.ball, z, way, length)).to(x.dtype))
        going = (~run.won[run.alive]).nonzero()[:, 0]
        run.ask(z[going], going)
    return run.best


def _coarse(x: Tensor, tile: int) -> Tensor:
    """Return x with one feature where a tile of them is taken as equal: pixels of images, runs of anything else."""
    return x[..., ::tile, ::tile] if x.ndim == 4 else x[..., ::tile]


def _fine(prior: Tensor, like: Tensor, tile: int) -> Tensor:
    """Return the prior in the shape of the samples."""
    wide = prior.repeat_interleave(tile, -1)[..., : like.shape[-1]]
    return wide.repeat_interleave(tile, -2)[..., : like.shape[-2], :] if like.ndim == 4 else wide


def _probed(run: Search, z: Tensor, guess: Tensor) -> Tensor:
    """Return z moved a tenth of the radius along a guess, inside what is allowed."""
    guess = guess * run.free
    size = guess.flatten(1).square().sum(1) / run.free.flatten(1).sum(1).clamp(min=1)
    unit = guess / run.column(size.sqrt().clamp(min=1e-12))
    return (z + unit * run.spread(0.1)).to(z.dtype).clamp(run.room.low, run.room.high)


def _mended(prior: Tensor, gain: Tensor, norm: str) -> Tensor:
    """Return the prior after a reward: by exponentiated gradients in the cube for Linf, else by gradients in the unit ball."""
    if norm == "linf":
        return (prior.clamp(-1 + 1e-6, 1 - 1e-6).atanh() + gain).tanh()
    moved = prior + gain
    return moved / moved.flatten(1).norm(dim=1).clamp(min=1).reshape((-1,) + (1,) * (prior.ndim - 1))
