"""Attacks on detectors by boxes and scores alone: particle swarm and genetic search, which stop at a reserve of true boxes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from hauberk.core import progress
from hauberk.core.access import Access
from hauberk.core.rng import generator, normal, uniform
from hauberk.core.threat import Ball, Threat
from hauberk.robustness.attack.detection.boxes import Boxes, found, overlap
from hauberk.robustness.attack.detection.contract import detection_attack, known_reserve
from hauberk.robustness.attack.detection.target import DetectorTarget
from hauberk.robustness.attack.physical.pattern import at_least_one

TAGS = ("aisec:digital-adversarial-attacks", "atlas:AML.T0043.001", "owasp:ML01", "nist:NISTAML.025")
Move = Callable[["Swarm"], None]


@detection_attack(
    question="Can a swarm of changes, steered by boxes and scores alone, hide the objects in an image?", access=Access.SCORE,
    paper="after Mosli et al. 2019, arXiv:1909.07490", norms=("linf",), tags=TAGS,
)
def pso_detection(
    target: DetectorTarget, x: Tensor, truth: Sequence[Boxes], threat: Threat, *, reserve: float = 0.3, rounds: int = 50,
    population: int = 10, tiles: int = 8, iou: float = 0.5, seed: int = 0,
) -> Tensor:
    """Move a swarm of tiled changes towards the best each has seen and the best of all.

    Arguments:
        target: with SCORE access.
        x: clean images, shape (n, channels, height, width).
        truth: what is in each image.
        threat: Linf, untargeted.
        reserve: an image leaves when at most this share of its true boxes is still found.
        rounds: moves; rounds x population queries per image at most, and one for the clean image.
        population: changes in the swarm.
        tiles: squares along each side that a change is made of: fewer are easier to search.
        iou: overlap from which a true box counts as found.
        seed: of all draws.

    Returns:
        Images in the ball: of the fewest true boxes found, then of the least confidence and overlap.
    """
    def move(swarm: Swarm) -> None:
        pull, draw = [uniform(swarm.place, swarm.noise) for _ in range(2)]
        best = swarm.best[:, None]
        swarm.speed = 0.7 * swarm.speed + 1.5 * pull * (swarm.own - swarm.place) + 1.5 * draw * (best - swarm.place)
        swarm.place = (swarm.place + swarm.speed).clamp(-1, 1)

    return _search(target, x, truth, threat, move, (reserve, rounds, population, tiles, iou, seed), "pso-detection")


@detection_attack(
    question="Can changes that are bred, steered by boxes and scores alone, hide the objects in an image?", access=Access.SCORE,
    paper="after Alzantot et al. 2019, arXiv:1805.11090", norms=("linf",), tags=TAGS,
)
def genetic_detection(
    target: DetectorTarget, x: Tensor, truth: Sequence[Boxes], threat: Threat, *, reserve: float = 0.3, rounds: int = 50,
    population: int = 10, tiles: int = 8, iou: float = 0.5, seed: int = 0,
) -> Tensor:
    """Breed tiled changes: the better the likelier a parent, a few tiles mutate, the best lives on.

    Arguments:
        target: with SCORE access.
        x: clean images, shape (n, channels, height, width).
        truth: what is in each image.
        threat: Linf, untargeted.
        reserve: an image leaves when at most this share of its true boxes is still found.
        rounds: generations; rounds x population queries per image at most, and one for the clean image.
        population: changes in a generation.
        tiles: squares along each side that a change is made of: fewer are easier to search.
        iou: overlap from which a true box counts as found.
        seed: of all draws.

    Returns:
        Images in the ball: of the fewest true boxes found, then of the least confidence and overlap.
    """
    def move(swarm: Swarm) -> None:
        rank = swarm.now.argsort(1).argsort(1).to(swarm.place.dtype)  # 0 is the best: (alive, population)
        chance = (-rank / max(population / 4, 1)).softmax(1)
        parents = [torch.multinomial(chance, population, replacement=True, generator=swarm.noise) for _ in range(2)]
        shape = (-1, -1, *swarm.place.shape[2:])
        first, second = (
            swarm.place.gather(1, one.view(*one.shape, 1, 1, 1).expand(shape)) for one in parents
        )
        child = torch.where(uniform(first, swarm.noise) < 0.5, first, second)
        mutates = uniform(child, swarm.noise) < 0.05
        child = torch.where(mutates, child + normal(child, swarm.noise), child).clamp(-1, 1)
        # The best lives on with a few tiles drawn anew: asking about it once more would tell nothing.
        anew = uniform(swarm.best, swarm.noise) < 0.1
        child[:, 0] = torch.where(anew, uniform(swarm.best, swarm.noise) * 2 - 1, swarm.best)
        swarm.place = child

    return _search(target, x, truth, threat, move, (reserve, rounds, population, tiles, iou, seed), "genetic-detection")


class Swarm:
    """The changes under way for the images that are still to be broken, each in [-1, 1] as a share of the room there is.

    `place` and `speed` have the shape (alive, population, channels, tiles, tiles), `now` and `own_cost` (alive, population);
    `own` is the best each member has seen, `best` the best of all, (alive, channels, tiles, tiles).
    """

    def __init__(self, place: Tensor, noise: torch.Generator) -> None:
        self.place, self.noise = place, noise
        self.speed, self.own, self.best = torch.zeros_like(place), place.clone(), torch.zeros_like(place[:, 0])
        self.now = place.new_full(place.shape[:2], torch.inf)
        self.own_cost, self.best_cost = self.now.clone(), place.new_full(place.shape[:1], torch.inf)

    def learn(self, cost: Tensor) -> None:
        """Take note of what the places cost, shape (alive, population)."""
        self.now = cost
        better = cost < self.own_cost
        self.own[better], self.own_cost[better] = self.place[better], cost[better]
        lowest, at = cost.min(1)
        new = lowest < self.best_cost
        rows = new.nonzero()[:, 0]
        self.best[rows], self.best_cost[rows] = self.place[rows, at[rows]], lowest[rows]

    def keep(self, going: Tensor) -> None:
        """Drop the images that are done."""
        for name in ("place", "speed", "own", "best", "now", "own_cost", "best_cost"):
            setattr(self, name, getattr(self, name)[going])


def _search(
    target: DetectorTarget, x: Tensor, truth: Sequence[Boxes], threat: Threat, move: Move,
    effort: tuple[float, int, int, int, float, int], name: str,
) -> Tensor:
    """Run a population for every image, and return the best point seen of each."""
    reserve, rounds, population, tiles, iou, seed = effort
    known_reserve(reserve)
    at_least_one(population=population, tiles=tiles)
    ball, best = threat.around(x), x.clone()
    clean = [cost(true, said, iou) for true, said in zip(truth, target.detect(x), strict=True)]
    lowest = x.new_tensor(clean)
    # Done as soon as no more boxes are found than the reserve.
    limit = x.new_tensor([PER_BOX * (int(reserve * len(true) + 1e-9) + 1) for true in truth])
    alive = (lowest >= limit).nonzero()[:, 0]
    noise = generator(seed, name, device=x.device)
    across = min(tiles, x.shape[2], x.shape[3])
    start = uniform(x.new_empty(len(alive), population, x.shape[1], across, across), noise).sub_(0.5).sign_()
    swarm = Swarm(start, noise)
    for round_ in progress.track(range(rounds), name):
        if not len(alive):
            break
        if round_:
            move(swarm)
        part = ball.subset(alive)
        costs = x.new_empty(len(alive), population)
        together = max(target.batch_size // len(alive), 1)  # members asked about at once: few images still fill a batch
        for members in torch.arange(population).split(together):
            tried = [_drawn(part, swarm.place[:, member]) for member in members.tolist()]
            answers = target.detect(torch.cat(tried))
            for at, (member, z) in enumerate(zip(members.tolist(), tried, strict=True)):
                said = answers[at * len(alive) : (at + 1) * len(alive)]
                price = x.new_tensor([cost(truth[row], one, iou) for row, one in zip(alive.tolist(), said, strict=True)])
                better = price < lowest[alive]
                best[alive[better]], lowest[alive[better]], costs[:, member] = z[better], price[better], price
        swarm.learn(costs)
        going = lowest[alive] >= limit[alive]
        swarm.keep(going)
        alive = alive[going]
    return best


PER_BOX = 100.0  # what a box found costs: mean confidence and overlap, at most 2, only decide among equals


def cost(truth: Boxes, seen: Boxes, iou: float) -> float:
    """Return what the adversary wants low: true boxes found, and then confidence plus overlap of what lies on them.

    Confidence counts from half the overlap on, so that there is something to descend before a box is lost.
    """
    value = PER_BOX * float(found(truth, seen, iou).sum())
    if len(seen):
        shared = overlap(truth.boxes, seen.boxes)
        shared[truth.labels[:, None] != seen.labels[None]] = 0
        worth = torch.where(shared >= iou / 2, shared + seen.confidence[None], torch.zeros_like(shared))
        value += float(worth.amax(1).mean())
    return value


def _drawn(ball: Ball, change: Tensor) -> Tensor:
    """Return the images with tiled changes on them, each a share of the room to the upper or the lower end."""
    share = functional.interpolate(change, size=ball.x.shape[2:], mode="nearest")
    room = torch.where(share > 0, ball.high - ball.x, ball.x - ball.low)
    return ball.seal(ball.x + share * room)
