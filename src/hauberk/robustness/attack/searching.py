"""What searches by scores or labels share: who is still under way, what each may still ask, and the best point seen."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hauberk.core.rng import normal, uniform
from hauberk.core.target import Target
from hauberk.core.threat import Threat

_ELEMENTS = 2**22  # of the candidates held at once: 16 MiB in float32
_FAR = 1e300  # margins beyond are answers that were no numbers


class Search:
    """One search on one batch, cut to the samples still under way; the clean samples are asked about first.

    Points asked about belong to `rows`, places among the samples under way; several may belong to one. Each is paid for by its
    sample, of which `left`, shape (alive,), queries remain. A point counts as found when it lies in the ball.

    Arguments:
        target, x, y, threat: as an attack gets them.
        queries: queries per sample at most, the one for the clean input included.
        score: what goes down towards the goal: a function of this search, the logits (m, classes) and the rows (m,) that returns
            (m,); None: the margin of the threat.
        by_label: labels alone are asked for: the score is 0 where the goal is reached and 1 elsewhere.
        wide: candidates may lie anywhere inside bounds and mask; else they are kept in the ball as far as a box can.
    """

    def __init__(
        self, target: Target, x: Tensor, y: Tensor, threat: Threat, queries: int, *,
        score: Callable[[Search, Tensor, Tensor], Tensor] | None = None, by_label: bool = False, wide: bool = False,
    ) -> None:
        self.target, self.threat, self.score, self.by_label = target, threat, score, by_label
        self._whole = threat.around(x)
        self._room = threat.with_eps(torch.inf).around(x) if wide else self._whole
        self._labels = y
        self.best = x.clone()  # of every sample, (n, ...)
        self.lowest = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
        self.won = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.left = torch.full((len(x),), queries, device=x.device)
        self.state: dict[str, Tensor] = {}  # what the attack keeps of each sample under way, (alive, ...)
        self._take(torch.arange(len(x), device=x.device))
        if queries > 0:
            self.state["clean"] = self.ask(x, self.rows)  # (alive,)
        # Where nothing else is allowed there is nothing to look for.
        self.settle((self._whole.size > 0) & self.free.flatten(1).any(1))

    def __len__(self) -> int:
        return len(self.alive)

    def _take(self, samples: Tensor) -> None:
        self.alive, self.y, self.ball = samples, self._labels[samples], self._whole.subset(samples)
        self.room = self._room.subset(samples)
        self.rows = torch.arange(len(samples), device=samples.device)
        self.free = self.room.low < self.room.high  # which features may change, (alive, ...)

    def column(self, values: Tensor) -> Tensor:
        """Return values, shape (alive,), with as many axes as a batch of samples, in the samples' dtype."""
        return values.to(self.best.dtype).reshape((-1,) + (1,) * (self.best.ndim - 1))

    def spread(self, share: float, radius: Tensor | None = None) -> Tensor:
        """Return the step per feature of a change of about that share of the radius, shaped for the samples."""
        size = share * (self.ball.size if radius is None else radius)
        if self.ball.norm == "l2":
            size = size / self.free.flatten(1).sum(1).clamp(min=1).sqrt()
        return self.column(size)

    def together(self) -> int:
        """Return how many candidates per sample may be held at once."""
        return max(1, _ELEMENTS // max(self.best[0].numel() * len(self), 1))

    def ask(self, z: Tensor, rows: Tensor) -> Tensor:
        """Return the scores of the points z, shape (m, ...), one for each of `rows`, and take note of them; float64."""
        return self.answers(z, rows)[0]

    def answers(self, z: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `ask` does, and which points reach the goal, in the ball or not."""
        if not len(z):
            return torch.zeros(0, dtype=torch.float64, device=z.device), torch.zeros(0, dtype=torch.bool, device=z.device)
        self.left -= torch.bincount(rows, minlength=len(self.left))
        if self.threat.structure is not None:
            z = self.ball.subset(rows).possible(z)
        if self.by_label:
            hit = self.threat.reached(self.target.labels(z), self.y[rows])
            score = (~hit).double()
        else:
            logits = self.target.logits(z).double()
            hit = self.threat.success(logits, self.y[rows])
            score = self.threat.margin(logits, self.y[rows]) if self.score is None else self.score(self, logits, rows)
        self._note(z, score, hit, rows)
        return score, hit

    def _note(self, z: Tensor, score: Tensor, hit: Tensor, rows: Tensor) -> None:
        # What reaches the goal comes before all that does not, whatever the score says of a tie.
        height = torch.where(hit, torch.full_like(score, -2 * _FAR), score.clamp(min=-_FAR)).nan_to_num(nan=torch.inf)
        samples = self.alive[rows]
        new = (height < self.lowest[samples]).nonzero()[:, 0]
        new = new[self.ball.subset(rows[new]).contains(z[new])]
        lowest = self.lowest.scatter_reduce(0, samples[new], height[new], "amin")
        first = new[height[new] == lowest[samples[new]]]
        if len(first):  # of equals the one asked about first
            place = samples.new_full((len(self.best),), len(z)).scatter_reduce(0, samples[first], first, "amin")
            first = first[place[samples[first]] == first]
        self.best[samples[first]], self.lowest = z[first], lowest
        self.won[samples[new[hit[new]]]] = True

    def ask_all(self, make: Callable[[int, int], Tensor], count: Tensor, most: int) -> Tensor:
        """Return the scores of candidates, shape (alive, most): infinite beyond `count`, shape (alive,), and what is left.

        Arguments:
            make: returns candidates number `first` to `last`, shape (alive, last - first, ...).
        """
        count = count.minimum(self.left)
        scores = torch.full((len(self), most), torch.inf, dtype=torch.float64, device=count.device)
        block = self.together()
        for first in range(0, most, block):
            last = min(first + block, most)
            wanted = torch.arange(first, last, device=count.device) < count[:, None]
            rows, places = wanted.nonzero(as_tuple=True)
            scores[rows, first + places] = self.ask(make(first, last)[rows, places], rows)
        return scores

    def settle(self, keep: Tensor | None = None) -> bool:
        """Let samples leave that have won, have no query left, or are not in `keep`; return whether any are under way."""
        going = ~self.won[self.alive] & (self.left > 0)
        if keep is not None:
            going &= keep
        if not bool(going.all()):
            self.state = {name: value[going] for name, value in self.state.items()}
            self.left = self.left[going]
            self._take(self.alive[going])
        return bool(len(self.alive))

    def slope(
        self, z: Tensor, spread: Tensor, pairs: int, noise: torch.Generator, *, signs: bool = False, answers: int = 1
    ) -> Tensor:
        """Return an estimate of the direction in which the score grows from z, shape (alive, ...), by antithetic pairs.

        Every pair is z + u and z - u, drawn into what is allowed; two queries. What a candidate really moved by counts, so that
        one cut by the bounds misleads nobody. A sample asks as many pairs as it can pay for and
        still look at where they lead.

        Arguments:
            z: shape (alive, ...).
            spread: size of u per feature, shaped for the samples.
            pairs: pairs per sample at most.
            signs: u is +spread or -spread in every feature (SPSA); else it is normal (NES).
            answers: queries per candidate, each a little beside it, whose scores are averaged.
        """
        afford = ((self.left - 1).clamp(min=0) // (2 * answers)).clamp(max=pairs)
        low, high = self.room.low[:, None], self.room.high[:, None]
        spread, free = spread[:, None], self.free[:, None]
        total = torch.zeros_like(z, dtype=torch.float64)
        block = max(1, self.together() // (2 * answers))
        for first in range(0, int(afford.max()) if len(z) else 0, block):
            number = min(block, int(afford.max()) - first)
            like = z[:, None].expand(-1, number, *z.shape[1:])
            step = (2 * (uniform(like, noise) < 0.5).to(z) - 1 if signs else normal(like, noise)) * free * spread
            wanted = first + torch.arange(number, device=z.device) < afford[:, None]  # (alive, number)
            rows = wanted.nonzero()[:, 0]
            ends = [(z[:, None] + way * step).clamp(low, high)[wanted] for way in (1, -1)]
            scores = []
            for end in ends:
                candidates, owner = end, rows
                if answers > 1:
                    near = end.repeat_interleave(answers, 0)
                    owner = rows.repeat_interleave(answers)
                    beside = (uniform(near, noise) - 0.5) * spread[owner, 0] * free[owner, 0]
                    candidates = (near + beside).clamp(self.room.low[owner], self.room.high[owner])
                scores.append(self.ask(candidates, owner).view(-1, answers).mean(1))
            change = scores[0] - scores[1]
            change = torch.where(change.abs() < _FAR, change, torch.zeros_like(change))
            moved = (ends[0] - ends[1]).double() * change.reshape((-1,) + (1,) * (z.ndim - 1))
            total.index_add_(0, rows, moved)
        return total


def portions(
    held: int, x: Tensor, y: Tensor, threat: Threat, search: Callable[[Tensor, Tensor, Threat], Tensor]
) -> Tensor:
    """Return what a search finds that keeps `held` points per sample, run on so many samples at once as memory is meant for."""
    size = max(1, 4 * _ELEMENTS // max(held * x[:1].numel(), 1))
    found = []
    for first in range(0, len(x), size):
        index = torch.arange(first, min(first + size, len(x)), device=x.device)
        found.append(search(x[index], y[index], threat.subset(index, x)))
    return torch.cat(found) if found else x.clone()


def shown(logits: Tensor, top: int) -> Tensor:
    """Return log-probabilities, shape (n, classes), of which the `top` highest are known: the others share what is left."""
    classes = logits.shape[1]
    known, place = logits.log_softmax(1).topk(min(top, classes), 1)
    rest = (1 - known.exp().sum(1, keepdim=True)).clamp(min=1e-300).log() - math.log(max(classes - top, 1))
    return rest.expand_as(logits).scatter(1, place, known)
