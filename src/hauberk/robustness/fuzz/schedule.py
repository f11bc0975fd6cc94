"""What a search tries next: which seeds, changed by which mutators at which levels."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hauberk.robustness.fuzz.corpus import Entry

GROUP = 16  # mutants that one call of a mutator makes, at most, and calls in a round, at least
FOLLOW = 12  # mutators are chosen so many times as often by what they led to as evenly
LEAST = 0.02  # the chance that is left to a seed from whose border a mutator is thought to be far
Choice = tuple[str, int]
Group = tuple[Choice, list[Entry]]


@dataclasses.dataclass
class Tally:
    """What one mutator did at one level, or over all: counts and sums over its mutants."""

    made: int = 0
    valid: int = 0
    failing: int = 0
    fresh: int = 0  # failures that were new faults
    gain: float = 0.0
    rms: float = 0.0
    linf: float = 0.0
    drop: float = 0.0  # of the margin, against that of the clean seed
    fall: float = 0.0  # of the margin, against that of the seed that was mutated
    fall_squared: float = 0.0


@dataclasses.dataclass
class Scheduler:
    """Chooses groups of seeds and a mutator for each.

    Arguments:
        affine: which mutators move pixels; what has moved already takes none of these.
        per_seed: about how many mutants are made in a round of a seed that was chosen.
        batch: mutants in a round.
        coverage: whether new coverage is aimed at, in place of new faults.
        scale: the median margin of the clean seeds.
    """

    affine: Mapping[str, bool]
    per_seed: int
    batch: int
    coverage: bool
    scale: float

    def evenly(self, queue: Sequence[Entry], tallies: Mapping[Choice, Tally], count: int, draw: torch.Generator) -> list[Group]:
        """Return groups of seeds, mutators and levels drawn evenly: the random control."""
        places = torch.randint(len(queue), (count,), generator=draw).tolist()
        sizes = self._sizes(count)
        chosen = self._choices(tallies, torch.ones(len(tallies), dtype=torch.float64), len(sizes), draw)
        rows = iter(places)
        return [(choice, [queue[next(rows)] for _ in range(size)]) for choice, size in zip(chosen, sizes, strict=True)]

    def guided(
        self, queue: Sequence[Entry], tallies: Mapping[Choice, Tally], rates: Tensor, count: int, draw: torch.Generator
    ) -> list[Group]:
        """Return groups of seeds that promise most, each with a mutator and a level.

        A seed is chosen often where it was seldom chosen before and where mutants of its clean sample keep leading to something
        new; and, where faults are aimed at, where the mutator is likely to take more from its margin than there is.

        Arguments:
            queue: the seeds.
            tallies: what mutators and levels did so far.
            rates: how much new a mutant of each clean sample leads to, shape (clean samples,).
            count: mutants to be made.
            draw: of all choices.
        """
        sizes, merit = self._sizes(count), self._merit(tallies)
        origins = torch.tensor([one.origin for one in queue])
        margins = torch.tensor([one.margin for one in queue], dtype=torch.float64)
        moved = torch.tensor([one.moved for one in queue])
        energy = rates[origins] / (1 + torch.tensor([one.picks for one in queue]))
        if self.per_seed > 1:
            pool = torch.zeros_like(energy, dtype=torch.bool)
            pool[_drawn(energy, math.ceil(count / self.per_seed), draw)] = True
            energy = torch.where(pool, energy.mean(), 0.0)  # each of the chosen alike
        groups = []
        still = torch.tensor([not self.affine[name] for name, _ in tallies])
        for (name, level), size in zip(self._choices(tallies, merit, len(sizes), draw), sizes, strict=True):
            own = torch.where(moved, 0.0, energy) if self.affine[name] else energy.clone()
            if not bool((own > 0).any()):
                (name, level), own = self._choices(tallies, merit * still, 1, draw)[0], energy.clone()
            if not self.coverage:
                own *= chance(tallies[name, level], margins, self.scale) + LEAST
            places = _drawn(own, size, draw)
            energy[places] /= 2  # the next groups go to others
            for place in places.tolist():
                queue[place].picks += 1
            groups.append(((name, level), [queue[place] for place in places.tolist()]))
        return groups

    def _sizes(self, count: int) -> list[int]:
        """Return the sizes of the groups: the more mutators in a round, the more varied are its mutants."""
        size = max(1, min(GROUP, self.batch // GROUP))
        return [min(size, count - start) for start in range(0, count, size)]

    def _merit(self, tallies: Mapping[Choice, Tally]) -> Tensor:
        """Return how often mutators and levels are to be chosen: mostly by how often they led to something new."""
        rows = list(tallies.values())
        if self.coverage:
            unit = max(sum(one.gain for one in rows) / max(sum(one.valid for one in rows), 1), 1e-12)
            found = [(one.gain / unit + 5) / (one.made + 5) for one in rows]
        else:
            found = [(one.fresh + 0.5) / (one.made + 10) for one in rows]
        rates = torch.tensor(found, dtype=torch.float64)
        valid = torch.tensor([(one.valid + 2) / (one.made + 2) for one in rows], dtype=torch.float64)
        return (1 / len(rows) + FOLLOW * rates / rates.sum()) * valid

    @staticmethod
    def _choices(tallies: Mapping[Choice, Tally], merit: Tensor, count: int, draw: torch.Generator) -> list[Choice]:
        keys = list(tallies)
        return [keys[place] for place in torch.multinomial(merit, count, replacement=True, generator=draw).tolist()]


def chance(tally: Tally, margins: Tensor, scale: float) -> Tensor:
    """Return how likely a mutator is to take more from a margin than there is, shape of `margins`.

    As if what it takes were normal, with the mean and deviation seen so far; before much is seen, half a median margin.

    Arguments:
        tally: of the mutator and level.
        margins: scores of true classes less those of the best others.
        scale: the median margin of the clean seeds.
    """
    mean = (tally.fall + scale / 2) / (tally.valid + 2)
    spread = max(tally.fall_squared / (tally.valid + 1) - mean**2, 0.0) + (scale / 4) ** 2
    return 0.5 * (1 + torch.erf((mean - margins) / math.sqrt(2 * spread)))


def _drawn(weights: Tensor, count: int, draw: torch.Generator) -> Tensor:
    """Return positions drawn by weight, each once where there are enough."""
    return torch.multinomial(weights, count, replacement=int((weights > 0).sum()) < count, generator=draw)
