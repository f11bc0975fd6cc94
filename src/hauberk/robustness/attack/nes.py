"""NES: the gradient from scores by antithetic Gaussian directions; with all scores, the top few, or the label alone."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.attacks import LABEL_GOALS, attack
from hauberk.core.errors import UsageError
from hauberk.core.rng import generator, uniform
from hauberk.core.target import Target
from hauberk.core.threat import Goal, Threat
from hauberk.robustness.attack.pgd import ascent
from hauberk.robustness.attack.searching import Search, shown

_PAPER = "Ilyas et al. 2018, arXiv:1804.08598"
_TAGS = ("aisec:digital-adversarial-attacks", "atlas:AML.T0043.001", "owasp:ML01", "nist:NISTAML.025")
_HALVINGS = 10  # of the way from a start to x
_RETRIES = 6  # halvings of a step that loses the goal


@attack(
    question="Can an adversary that estimates gradients from scores change the answer?", access=Access.SCORE, paper=_PAPER,
    tags=_TAGS, preset="thorough", norms=("linf", "l2"),
    fine_steps=True,
)
def nes(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, queries: int = 2000, pairs: int = 10, probe: float = 0.1,
    step_size: float = 0.25, momentum: float = 0.8, seed: int = 0,
) -> Tensor:
    """Walk down the margin by projected steps along gradients estimated from pairs of scores.

    Arguments:
        target: with SCORE access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: Linf or L2, any goal.
        queries: queries per sample at most, the one for the clean input and those for the iterates included.
        pairs: directions per step, two queries each.
        probe: size of a direction, as a share of the radius.
        step_size: length of a step, as a share of the radius; halved when the margin has stopped falling.
        momentum: weight of the gradients before.
        seed: of the directions.

    Returns:
        Points in the ball, shape (n, ...): of the lowest margin seen.
    """
    run = Search(target, x, y, threat, queries)
    return descend(run, pairs, probe, step_size, momentum, generator(seed, "nes", device=x.device))


@attack(
    question="Can an adversary that sees the scores of the top classes alone change the answer?", access=Access.SCORE,
    paper=_PAPER, tags=_TAGS, preset="thorough", norms=("linf", "l2"),
    fine_steps=True,
)
def nes_partial(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, queries: int = 2000, top: int = 1, pairs: int = 10,
    start: Tensor | None = None, seed: int = 0,
) -> Tensor:
    """Walk by gradients estimated from the probabilities of the top classes; what those leave is shared among the others.

    An untargeted walk starts at x, where the true class is the top one. A targeted one starts at an input of the wanted label
    and comes nearer to x as long as that label stays the top one.

    Arguments:
        target: with SCORE access; all but the `top` highest scores of an answer are thrown away unread.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: Linf or L2, any goal.
        queries: queries per sample at most, those for x and for starts included.
        top: classes whose scores are shown.
        pairs: directions per step, two queries each.
        start: inputs the adversary owns, shape (m, ...), tried first when a label has to be reached, one query each. None, or
            none of the label: random points.
        seed: of starts and directions.

    Returns:
        Points in the ball, shape (n, ...): those that reach the goal, else of the lowest score seen.
    """
    if top < 1:
        raise UsageError(f"top is {top}", want="1 or more classes")
    noise = generator(seed, "nes partial", device=x.device)

    def score(run: Search, logits: Tensor, rows: Tensor) -> Tensor:
        return run.threat.margin(shown(logits, top), run.y[rows])

    run = Search(target, x, y, threat, queries, score=score, wide=threat.goal is Goal.TARGETED)
    if threat.goal is not Goal.TARGETED:
        return descend(run, pairs, 0.1, 0.25, 0.8, noise)
    return come_nearer(run, start, pairs, 1, noise)


@attack(
    question="Can an adversary that sees labels alone, and estimates gradients from how they vary, change the answer?",
    access=Access.LABEL, paper=_PAPER, tags=_TAGS, preset="thorough", norms=("linf", "l2"), goals=LABEL_GOALS,
    fine_steps=True,
)
def nes_label(
    target: Target, x: Tensor, y: Tensor, threat: Threat, *, queries: int = 2000, pairs: int = 15, answers: int = 1,
    start: Tensor | None = None, seed: int = 0,
) -> Tensor:
    """Start at an input that reaches the goal and come nearer to x, by gradients of how often labels beside it still do.

    Arguments:
        target: with LABEL access.
        x: clean inputs, shape (n, ...).
        y: true labels, or for a targeted threat the labels to reach, shape (n,).
        threat: Linf or L2, untargeted or targeted.
        queries: queries per sample at most, those for x and for starts included.
        pairs: directions per step.
        answers: labels asked for around each of the two ends of a direction.
        start: inputs the adversary owns, shape (m, ...), tried first, one query each. None, or none that will do: random points.
        seed: of starts and directions.

    Returns:
        Points in the ball, shape (n, ...): those that reach the goal; x itself where none was found.
    """
    if answers < 1:
        raise UsageError(f"answers is {answers}", want="1 or more")
    run = Search(target, x, y, threat, queries, by_label=True, wide=True)
    return come_nearer(run, start, pairs, answers, generator(seed, "nes label", device=x.device))


def descend(run: Search, pairs: int, probe: float, step_size: float, momentum: float, noise: torch.Generator) -> Tensor:
    """Return the best points seen on a walk of projected steps down the score from x, each of its own length."""
    z = run.ball.x
    run.state.update(
        z=z, mean=torch.zeros_like(z, dtype=torch.float64), length=step_size * run.ball.size,
        lowest=run.state.pop("clean"), waited=torch.zeros_like(run.alive),
    )
    while run.settle(run.left > 2):  # a pair, and a look at where it leads
        z, state = run.state["z"], run.state
        slope = run.slope(z, run.spread(probe), pairs, noise)
        state["mean"] = momentum * state["mean"] + (1 - momentum) * slope
        going = (~run.won[run.alive]).nonzero()[:, 0]  # a direction that reached the goal ends the walk
        way = -state["mean"].to(z.dtype if z.dtype is torch.float64 else torch.float32)
        state["z"] = run.ball.project((z + ascent(run.ball, z, way, state["length"].to(way.dtype))).to(z.dtype))
        score = run.ask(state["z"][going], going)
        fell = torch.zeros_like(run.rows, dtype=torch.bool)
        fell[going] = score < state["lowest"][going]
        state["lowest"][going] = score.minimum(state["lowest"][going])
        state["waited"] = torch.where(fell, 0, state["waited"] + 1)
        stuck = state["waited"] >= 5
        shorter = (state["length"] / 2).maximum(run.ball.size / 64)
        state["length"] = torch.where(stuck, shorter, state["length"])
        state["waited"] = state["waited"].masked_fill(stuck, 0)
    return run.best


def come_nearer(run: Search, pool: Tensor | None, pairs: int, answers: int, noise: torch.Generator) -> Tensor:
    """Return the best points seen on a walk that keeps the goal while the ball around x it stays in shrinks to the radius."""
    run.state["z"] = run.ball.x
    run.settle(_start(run, pool, noise))
    _draw_in(run, run.state["z"], run.ball.distance(run.state["z"]), ~run.won[run.alive], _HALVINGS)
    run.state.update(rate=torch.ones_like(run.left, dtype=torch.float64))
    run.state.update(mean=torch.zeros_like(run.ball.x, dtype=torch.float64))
    while run.settle(run.left > 2 * answers):
        z, state = run.state["z"], run.state
        radius = run.ball.distance(z)
        state["mean"] = 0.5 * state["mean"] + run.slope(z, run.spread(0.1, radius), pairs, noise, answers=answers)
        way = -state["mean"].to(z.dtype if z.dtype is torch.float64 else torch.float32)
        waiting = ~run.won[run.alive] & (run.left > 0)
        ahead = z
        for _ in range(_RETRIES):
            rows = waiting.nonzero()[:, 0]
            if not len(rows):
                break
            rate = state["rate"][rows]
            step = ascent(run.ball.subset(rows), z[rows], way[rows], (rate * radius[rows]).to(way.dtype))
            far = (z[rows] + step).to(z.dtype)
            tried = _at(run, far, radius[rows] * (1 - 0.1 * rate), rows)
            hit = run.answers(tried, rows)[1]
            ahead = ahead.index_copy(0, rows[hit], far[hit])
            state["z"] = state["z"].index_copy(0, rows[hit], tried[hit])
            state["rate"][rows] = torch.where(hit, (rate * 1.5).clamp(max=1), (rate / 2).clamp(min=2.0**-_RETRIES))
            waiting[rows[hit]] = False
            waiting &= run.left > 0
        moved = (ahead != z).flatten(1).any(1) & ~run.won[run.alive]
        _draw_in(run, ahead, run.ball.distance(state["z"]), moved, _HALVINGS // 2)
    return run.best


def _at(run: Search, z: Tensor, radius: Tensor, rows: Tensor) -> Tensor:
    """Return z, shape (rows, ...), drawn into balls of that radius, or of the threat's where that is larger."""
    eps = torch.maximum(radius, run.ball.radius[rows])
    threat = run.threat.subset(run.alive[rows], run.best).with_eps(eps)
    return threat.around(run.ball.x[rows]).project(z)


def _start(run: Search, pool: Tensor | None, noise: torch.Generator) -> Tensor:
    """Put a point that reaches the goal into the state of each sample; return which samples got one."""
    found = torch.zeros_like(run.alive, dtype=torch.bool)
    given = 0 if pool is None else len(pool)
    keep = run.left.clamp(max=1) + (run.left - given).clamp(min=0) // 2  # half of the rest is for the walk
    for number in range(given + int(run.left.max()) if len(run) else 0):
        rows = (~found & (run.left > (keep if number >= given else 0))).nonzero()[:, 0]
        if not len(rows):
            if number < given:
                continue
            break
        # Behind a mask an input of the pool is no longer itself, so every sample asks about its own version of it.
        room = run.room.subset(rows)
        drawn = pool[number].to(room.x) if pool is not None and number < given else _drawn(run, rows, number, noise)
        tried = torch.minimum(torch.maximum(drawn, room.low), room.high)
        hit = run.answers(tried, rows)[1]
        run.state["z"] = run.state["z"].index_copy(0, rows[hit], tried[hit])
        found[rows[hit]] = True
    return found


def _drawn(run: Search, rows: Tensor, number: int, noise: torch.Generator) -> Tensor:
    """Return random points anywhere in the bounds; where those are infinite, within 2, 4, 8, ... radii in turn."""
    room, radius = run.room.subset(rows), run.ball.radius[rows] * 2.0 ** (1 + number % 10)
    reach = radius.to(room.x.dtype).reshape((-1,) + (1,) * (room.x.ndim - 1))
    low, high = room.low.isfinite(), room.high.isfinite()
    low, high = torch.where(low, room.low, room.x - reach), torch.where(high, room.high, room.x + reach)
    return low + (high - low) * uniform(low, noise)


def _draw_in(run: Search, z: Tensor, high: Tensor, waiting: Tensor, halvings: int) -> None:
    """Draw z into the smallest ball, found by bisection below the radius `high`, in which it still reaches the goal."""
    low, high, middle = run.ball.radius.clone(), high.clone(), run.ball.radius
    for _ in range(halvings):
        rows = (waiting & ~run.won[run.alive] & (run.left > 0)).nonzero()[:, 0]
        if not len(rows):
            break
        tried = _at(run, z[rows], middle[rows], rows)
        hit = run.answers(tried, rows)[1]
        run.state["z"] = run.state["z"].index_copy(0, rows[hit], tried[hit])
        high, low = high.index_copy(0, rows[hit], middle[rows[hit]]), low.index_copy(0, rows[~hit], middle[rows[~hit]])
        middle = (low + high) / 2
