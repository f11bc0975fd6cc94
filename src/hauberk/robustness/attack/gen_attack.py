"""GenAttack: a genetic search of the ball by scores."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.attacks import attack
from hauberk.core.errors import UsageError
from hauberk.core.rng import generator, uniform
from hauberk.core.target import Target
from hauberk.core.threat import Threat
from hauberk.robustness.attack.searching import Search, portions


@attack(
    question="Can an adversary that breeds inputs by their scores change the answer?",
    access=Access.SCORE,
    paper="Alzantot et al. 2019, arXiv:1805.11090",
    tags=("aisec:digital-adversarial-attacks", "atlas:AML.T0043.001", "owasp:ML01", "nist:NISTAML.025"),
    preset="thorough",
    norms=("linf",),
)
def gen_attack(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, queries: int = 2000, population: int = 10, mutation: float = 0.05,
    temperature: float = 0.1, seed: int = 0,
) -> Tensor:
    """Breed changes: the best one lives on, the others are mixed from two parents chosen by score, and mutate.

    Arguments:
        target: with SCORE access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: Linf, any goal.
        queries: queries per sample at most, the one for the clean input included.
        population: changes of a generation; the best is not asked about again.
        mutation: share of the features that mutate at first; it falls while the best does not get better.
        temperature: how little the score counts in the choice of parents; the scores of a generation are brought to a standard
            deviation of 1 first.
        seed: of all draws.

    Returns:
        Points in the ball, shape (n, ...): of the lowest margin seen.
    """
    if population < 2:
        raise UsageError(f"population is {population}", want="2 or more")
    noise = generator(seed, "gen attack", device=x.device)

    def breed(x: Tensor, y: Tensor, threat: Threat) -> Tensor:
        run = Search(target, x, y, threat, queries)
        low, high = run.ball.low[:, None], run.ball.high[:, None]
        like = run.ball.x[:, None].expand(-1, population, *x.shape[1:])
        crowd = (low + (high - low) * uniform(like, noise)).to(x.dtype).clamp(low, high)  # (alive, population, ...)
        run.state.update(crowd=crowd, score=_scores(run, crowd, 0))
        run.state.update(plateau=torch.zeros_like(run.left), waited=torch.zeros_like(run.left))
        while run.settle():
            state = run.state
            crowd, score = state["crowd"], state["score"]
            elite = score.argmin(1)
            before = score.amin(1)
            weight = _weights(score, temperature)  # (alive, population)
            parents = [weight.multinomial(population - 1, replacement=True, generator=noise) for _ in range(2)]
            mother, father = (_picked(crowd, one) for one in parents)
            chance = weight.gather(1, parents[0]) / (weight.gather(1, parents[0]) + weight.gather(1, parents[1]))
            child = torch.where(uniform(mother, noise) < _wide(chance, mother), mother, father)
            # Both fall by the paper's rule: by a tenth for every plateau, to a tenth and to 0.15.
            fade = 0.9 ** state["plateau"].double()
            rate, reach = (mutation * fade).clamp(min=min(0.1 * mutation, 1.0)), fade.clamp(min=0.15)
            low, high = run.ball.low[:, None], run.ball.high[:, None]
            size = (high - low) / 2 * _wide(reach[:, None], mother)
            moved = child + size * (2 * uniform(child, noise) - 1)
            child = torch.where(uniform(child, noise) < _wide(rate[:, None], mother), moved.to(x.dtype), child)
            crowd = torch.cat([_picked(crowd, elite[:, None]), child.clamp(low, high)], 1)
            state["crowd"], state["score"] = crowd, torch.cat([before[:, None], _scores(run, crowd, 1)], 1)
            stuck = state["score"].amin(1) >= before
            state["waited"] = torch.where(stuck, state["waited"] + 1, 0)
            full = state["waited"] >= 10
            state["plateau"] = state["plateau"] + full
            state["waited"] = state["waited"].masked_fill(full, 0)
        return run.best

    return portions(3 * population, x, y, threat, breed)


def _scores(run: Search, crowd: Tensor, first: int) -> Tensor:
    """Return the scores of all of a generation but the `first`, infinite where a sample cannot pay."""
    count = crowd.shape[1] - first
    return run.ask_all(lambda begin, end: crowd[:, first + begin : first + end], torch.full_like(run.left, count), count)


def _weights(score: Tensor, temperature: float) -> Tensor:
    """Return how likely each is a parent, shape (alive, population), float64."""
    score = score.clamp(-1e100, 1e100)  # squares stay finite
    centred = score - score.amin(1, keepdim=True)
    spread = centred.std(1, keepdim=True)
    return (-centred / (temperature * spread.clamp(min=1e-300))).softmax(1) + 1e-12


def _picked(crowd: Tensor, index: Tensor) -> Tensor:
    """Return the members of each population at `index`, shape (alive, k), as (alive, k, ...)."""
    return crowd[torch.arange(len(crowd), device=crowd.device)[:, None], index]


def _wide(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.dtype).reshape(*values.shape, *[1] * (like.ndim - 2))
