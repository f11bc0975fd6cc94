"""The loop: choose seeds by their energy, mutate them in batches, look once, keep what is new."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hauberk.core import progress, rng
from hauberk.core.errors import DataError
from hauberk.core.target import Target
from hauberk.robustness.fuzz.cluster import Faults, radius_of
from hauberk.robustness.fuzz.corpus import Arrays, Entry, Failure, Journal, whole
from hauberk.robustness.fuzz.coverage import Criterion, Reader, Reading
from hauberk.robustness.fuzz.judge import ask, kinds_of, margins_of
from hauberk.robustness.fuzz.mutate import AFFINE, LEVELS, Job, Mutator, Step, mutated
from hauberk.robustness.fuzz.objectives import Case, Objective
from hauberk.robustness.fuzz.validity import Rule

GROUP = 16  # mutants that one call of a mutator makes
HOPELESS = 50  # mutants made for each one of the budget, after which a search gives up on finding valid ones
LONGEST = 8  # steps in a lineage
COUNTS = ("confusion", "broken", "tried", "fresh", "gained")  # what a search counts in tensors
FOLLOW = 12  # mutators are chosen so many times as often by what they led to as evenly


@dataclasses.dataclass(frozen=True)
class Options:
    """How a campaign goes about.

    Arguments:
        budget: valid mutants that are sent to the model; the control gets as many.
        per_seed: mutants made of a seed each time it is chosen.
        batch: mutants made in a round.
        steering: the criterion that decides which mutants become seeds.
        aim: what seeds and mutators are chosen for: `faults` or `coverage`.
        criteria: those reported beside it.
        rule: which mutants are valid.
        eps: Linf radius of gradient attacks at level 5, in input units.
        seed: of all draws.
    """

    budget: int = 2000
    per_seed: int = 5
    batch: int = 256
    steering: str = "kmnc"
    aim: str = "faults"
    criteria: tuple[str, ...] = ("nc", "tknc", "kmnc", "nbc", "snac")
    rule: Rule = dataclasses.field(default_factory=Rule)
    eps: float = 0.1
    seed: int = 0


@dataclasses.dataclass
class Tally:
    """What one mutator did at one level, or over all: counts and sums over its mutants."""

    made: float = 0
    valid: float = 0
    failing: float = 0
    fresh: float = 0  # failures that were new faults
    gain: float = 0
    rms: float = 0
    linf: float = 0
    drop: float = 0  # of the margin, against that of the clean seed


@dataclasses.dataclass
class Seeds:
    """Clean samples that the model handles.

    Arguments:
        x, y: samples, shape (n, ...), and labels or values, shape (n,).
        reading: what the model makes of them.
    """

    x: Tensor
    y: Tensor
    reading: Reading

    def __len__(self) -> int:
        return len(self.y)

    @property
    def classes(self) -> bool:
        """Whether labels are classes."""
        return not self.y.is_floating_point()


@dataclasses.dataclass
class Bench:
    """What both searches of a campaign share.

    Arguments:
        target, reader: the model.
        seeds: clean samples.
        mutators, objectives: by name, and in order.
        job: what mutators may need.
        options: of the campaign.
    """

    target: Target
    reader: Reader
    seeds: Seeds
    mutators: Mapping[str, Mutator]
    objectives: Sequence[Objective]
    job: Job
    options: Options


class Search:
    """One search: guided by coverage, or the random control.

    The control draws a clean seed, a mutator and a level evenly each time, keeps nothing, and has the same mutators, rule and
    budget.

    Arguments:
        bench: model, seeds, mutators and objectives.
        criteria: by name; the first steers.
        guided: whether anything seen changes what is tried.
        folder: where the rounds are kept; None keeps nothing.
    """

    def __init__(self, bench: Bench, criteria: Mapping[str, Criterion], *, guided: bool, folder: Path | None = None) -> None:
        self.bench, self.criteria, self.guided = bench, dict(criteria), guided
        self.name = "guided" if guided else "control"
        self.journal = None if folder is None else Journal(folder / self.name)
        seeds = bench.seeds
        self.margins = margins_of(seeds.reading.answers, seeds.y)
        self.scale = max(float(self.margins.abs().median()), 1e-6)
        # One tensor is image and reference of a clean seed: an affine mutation is then done once.
        self.queue = [Entry(row, (), one, one, margin=float(self.margins[row])) for row, one in enumerate(seeds.x.unbind(0))]
        self.pixel = any(one.kind != AFFINE for one in bench.mutators.values())
        self.failures: list[Failure] = []
        self.tallies = {(name, level): Tally() for name in bench.mutators for level in LEVELS}
        width = seeds.reading.answers.shape[1] if seeds.classes else 1
        self.confusion = torch.zeros(width, width + 1, dtype=torch.int64)  # true by answered; the last column is no answer
        self.faults = Faults(radius_of(seeds.reading.features))
        self.broken, self.tried, self.fresh = (torch.zeros(len(seeds), dtype=torch.int64) for _ in range(3))
        self.gained = torch.zeros(len(seeds), dtype=torch.float64)
        self.round = self.done = self.made = 0
        for name, one in self.criteria.items():
            if name != "scc":
                one.update(seeds.reading)
        self.before = {name: one.value for name, one in self.criteria.items()}
        self.curve: list[tuple[int, float]] = [(0, self.before[next(iter(self.criteria))])]

    @property
    def finished(self) -> bool:
        """Whether the budget is spent, or no valid mutants are to be found."""
        budget = self.bench.options.budget
        return self.done >= budget or self.made >= HOPELESS * max(budget, self.bench.options.batch)

    def run(self) -> None:
        """Go on until the budget is spent; every finished round is kept."""
        while not self.finished:
            entries, failures = self._round()
            self.queue += entries
            self.failures += failures
            self.round += 1
            if self.journal is not None:
                self.journal.write(self.round - 1, entries, failures, *self._state())
            progress.update(f"fuzzing, {self.name}", self.done, self.bench.options.budget)

    def _round(self) -> tuple[list[Entry], list[Failure]]:
        options = self.bench.options
        draw = rng.generator(options.seed, "fuzz", self.name, self.round)
        count = min(options.batch, max(GROUP, 2 * (options.budget - self.done)))
        parents, x, references, steps, moved = self._mutants(count, draw)
        valid = options.rule.holds(x, references, self.bench.job.bounds)
        valid &= valid.cumsum(0) <= options.budget - self.done  # no more than are left to spend
        made = len(x)
        for row, step in enumerate(steps):
            tally = self.tallies[step.mutator, step.level]
            tally.made += 1
            tally.valid += bool(valid[row])
        self.made += made
        index = valid.nonzero().flatten().tolist()
        self.done += len(index)
        if not index:
            return [], []
        x, references = x[valid], references[valid]
        kept = [parents[at] for at in index]
        return self._judge(x, references, kept, [steps[at] for at in index], [moved[at] for at in index])

    def _mutants(self, count: int, draw: torch.Generator) -> tuple[list[Entry], Tensor, Tensor, list[Step], list[bool]]:
        """Make mutants; return parents, mutants and their references, (n, ...) each, the steps, and whether they moved."""
        options, bench = self.bench.options, self.bench
        rows = self._parents(count, draw)
        groups = math.ceil(len(rows) / GROUP)
        chosen = self._choices(groups, draw)
        # What has moved already takes no affine mutation: rows that may move go to the affine groups, which come first.
        chosen.sort(key=lambda one: bench.mutators[one[0]].kind != AFFINE)
        rows.sort(key=lambda entry: entry.moved)
        calm = self._choices(groups, draw, calm=True) if self.pixel else []
        parents: list[Entry] = []
        steps: list[Step] = []
        parts: list[tuple[Tensor, Tensor]] = []
        for group, (name, level) in enumerate(chosen):
            batch = rows[group * GROUP : (group + 1) * GROUP]
            if bench.mutators[name].kind == AFFINE and any(entry.moved for entry in batch):
                name, level = calm[group]  # nothing that has moved is in the queue where there are none
            seed = rng.derive_seed(options.seed, self.name, self.round, group)
            y = bench.seeds.y[[entry.origin for entry in batch]]
            image, reference = torch.stack([one.image for one in batch]), torch.stack([one.reference for one in batch])
            changed = mutated(bench.mutators[name], image, y, (level, seed), bench.job)
            if bench.mutators[name].kind == AFFINE:
                same = all(one.image is one.reference for one in batch)
                reference = changed if same else mutated(bench.mutators[name], reference, y, (level, seed), bench.job)
            parts.append((changed, reference))
            parents += batch
            steps += [Step(name, level, seed, place) for place in range(len(batch))]
        moved = [one.moved or bench.mutators[step.mutator].kind == AFFINE for one, step in zip(parents, steps, strict=True)]
        return parents, torch.cat([one for one, _ in parts]), torch.cat([one for _, one in parts]), steps, moved

    def _parents(self, count: int, draw: torch.Generator) -> list[Entry]:
        """Choose seeds, `per_seed` children each, in random order."""
        per_seed = min(self.bench.options.per_seed, count)
        if not self.guided:
            places = torch.randint(len(self.queue), (count,), generator=draw)
            return [self.queue[place] for place in places.tolist()]
        places = torch.multinomial(self._energies(), math.ceil(count / per_seed), replacement=True, generator=draw)
        for place in places.tolist():
            self.queue[place].picks += 1
        order = torch.randperm(len(places) * per_seed, generator=draw)[:count]
        return [self.queue[place] for place in places.repeat_interleave(per_seed)[order].tolist()]

    def _energies(self) -> Tensor:
        """Return how likely each seed of the queue is to be chosen, shape (queue,), not normalised.

        High where seldom chosen, and for clean samples on whose mutants new faults, or new coverage, keep being found. Near a
        border a fault is more likely.
        """
        if self.bench.options.aim == "coverage":
            rates = ((self.gained / self._unit() + 5) / (self.tried + 5)).tolist()
            return torch.tensor([rates[one.origin] / (1 + one.picks) for one in self.queue], dtype=torch.float64)
        rates = ((self.fresh + 1) / (self.tried + 10)).tolist()
        return torch.tensor([
            math.exp(-0.5 * max(one.margin, 0.0) / self.scale) * rates[one.origin] / (1 + one.picks) for one in self.queue
        ], dtype=torch.float64)

    def _unit(self) -> float:
        """Return the mean gain of a mutant so far."""
        return max(float(self.gained.sum()) / max(self.done, 1), 1e-12)

    def _choices(self, count: int, draw: torch.Generator, *, calm: bool = False) -> list[tuple[str, int]]:
        """Choose mutators and levels: evenly, or mostly by how often they led to a new fault, or to new coverage."""
        keys = list(self.tallies)
        weights = torch.ones(len(keys), dtype=torch.float64)
        if self.guided:
            if self.bench.options.aim == "coverage":
                unit = self._unit()
                found = [(one.gain / unit + 5) / (one.made + 5) for one in self.tallies.values()]
            else:
                found = [(one.fresh + 0.5) / (one.made + 10) for one in self.tallies.values()]
            rates = torch.tensor(found, dtype=torch.float64)
            valid = torch.tensor([(one.valid + 2) / (one.made + 2) for one in self.tallies.values()], dtype=torch.float64)
            weights = (weights / len(keys) + FOLLOW * rates / rates.sum()) * valid
        if calm:  # without affine ones
            weights *= torch.tensor([self.bench.mutators[name].kind != AFFINE for name, _ in keys])
        return [keys[place] for place in torch.multinomial(weights, count, replacement=True, generator=draw).tolist()]

    def _judge(
        self, x: Tensor, references: Tensor, parents: list[Entry], steps: list[Step], moved: list[bool]
    ) -> tuple[list[Entry], list[Failure]]:
        seeds = self.bench.seeds
        origins = torch.tensor([one.origin for one in parents])
        self.tried += torch.bincount(origins, minlength=len(seeds))
        reading, crashed = ask(self.bench.reader, x, seeds.reading)
        reading.base = seeds.reading.units[origins]
        y = seeds.y[origins]
        failing = kinds_of(self.bench.objectives, Case(x, reading, y, seeds.reading.answers[origins], self.bench.target), crashed)
        usable = reading.units.isfinite().all(1) & ~crashed
        gains = torch.zeros(len(x))
        if bool(usable.any()):
            told = reading.rows(usable)
            for place, one in enumerate(self.criteria.values()):
                if place == 0:
                    gains[usable.cpu()] = one.gains(told).cpu()
                else:
                    one.update(told)
        self.gained.index_add_(0, origins, gains.double())
        margins = margins_of(reading.answers, y)
        self._count(x, torch.stack([one.image for one in parents]), steps, failing, gains, self.margins[origins] - margins)
        if seeds.classes:
            width = len(self.confusion)
            answers = torch.where(crashed | (reading.labels < 0), torch.full_like(reading.labels, width), reading.labels)
            flat = (y * (width + 1) + answers).cpu()
            self.confusion += torch.bincount(flat, minlength=width * (width + 1)).view(width, width + 1)
        entries: list[Entry] = []
        failures: list[Failure] = []
        answered = reading.labels.tolist()
        for row, parent in enumerate(parents):
            lineage = (*parent.steps, steps[row])
            if failing[row]:
                label = int(y[row]) if seeds.classes else -1
                answer = -1 if bool(crashed[row]) or not seeds.classes else answered[row]
                failures.append(Failure(
                    parent.origin, lineage, failing[row], label, answer, x[row].clone(), references[row].clone(),
                    reading.features[row].nan_to_num(0.0, 0.0, 0.0).cpu().clone(),
                ))
                self._note(steps[row], failures[-1])
            elif self.guided and float(gains[row]) > 0 and len(lineage) < LONGEST and (self.pixel or not moved[row]):
                entries.append(Entry(
                    parent.origin, lineage, x[row].clone(), references[row].clone(), moved[row], float(gains[row]),
                    float(margins[row]),
                ))
        self.curve.append((self.done, next(iter(self.criteria.values())).value))
        return entries, failures

    def _note(self, step: Step, failure: Failure) -> None:
        self.broken[failure.origin] += 1
        if self.faults.add(failure):
            self.fresh[failure.origin] += 1
            self.tallies[step.mutator, step.level].fresh += 1

    def _count(
        self, x: Tensor, before: Tensor, steps: list[Step], failing: list[str], gains: Tensor, drops: Tensor
    ) -> None:
        low, high = (torch.as_tensor(end).to(x) for end in self.bench.job.bounds)
        clean = torch.where(high > low, high - low, torch.ones_like(high))
        change = (x - before).abs_().div_(clean).flatten(1)
        rms, linf = (change.norm(dim=1) / change.shape[1] ** 0.5).tolist(), change.amax(1).tolist()
        told = zip(steps, failing, gains.tolist(), rms, linf, drops.nan_to_num(0.0, 0.0, 0.0).tolist(), strict=True)
        for step, kind, gain, mean, most, drop in told:
            tally = self.tallies[step.mutator, step.level]
            tally.failing += bool(kind)
            tally.gain += gain
            tally.rms += mean
            tally.linf += most
            tally.drop += drop

    def _state(self) -> tuple[dict[str, Any], Arrays]:
        head = {
            "done": self.done, "made": self.made, "picks": [one.picks for one in self.queue], "before": self.before,
            "curve": self.curve, "tallies": [[*key, *dataclasses.astuple(one)] for key, one in self.tallies.items()],
        }
        arrays: Arrays = {name: getattr(self, name).numpy() for name in COUNTS}
        for name, one in self.criteria.items():
            arrays |= {f"{name}.{key}": value.cpu().numpy() for key, value in one.state().items()}
        return head, arrays

    def resume(self) -> bool:
        """Go on from the last finished round in the folder; return whether there was one.

        Raises:
            DataError: for files that are damaged or of another campaign.
        """
        found = None if self.journal is None else self.journal.read(tuple(self.bench.seeds.x.shape[1:]))
        if found is None:
            return False
        head, arrays, entries, failures = found
        try:
            most = len(self.bench.seeds)
            if max([one.origin for one in entries] + [one.origin for one in failures], default=0) >= most:
                raise ValueError("an origin is no seed")
            like = self.bench.seeds.x
            self.queue += [
                dataclasses.replace(one, image=one.image.to(like), reference=one.reference.to(like)) for one in entries
            ]
            self.failures = failures
            self.round, self.done = whole(head["round"], 0, 2**31, "round"), whole(head["done"], 0, 2**40, "done")
            self.made = whole(head["made"], 0, 2**40, "made")
            for entry, picks in zip(self.queue, head["picks"], strict=True):
                entry.picks = whole(picks, 0, 2**40, "picks")
            self.before = {name: float(head["before"][name]) for name in self.criteria}
            self.curve = [(int(at), float(value)) for at, value in head["curve"]]
            rows = {(str(row[0]), int(row[1])): Tally(*map(float, row[2:])) for row in head["tallies"]}
            self.tallies = {key: rows[key] for key in self.tallies}
            for name in COUNTS:
                setattr(self, name, torch.from_numpy(np.array(arrays[name])).view_as(getattr(self, name)))
            for one in self.failures:
                self.faults.add(one)
            for name, criterion in self.criteria.items():
                start = f"{name}."
                held = {key.removeprefix(start): one for key, one in arrays.items() if key.startswith(start)}
                criterion.load({key: torch.from_numpy(np.array(one)) for key, one in held.items()})
        except (KeyError, TypeError, ValueError, IndexError, RuntimeError, OverflowError) as error:
            raise DataError(
                f"the state of the {self.name} search cannot be used ({type(error).__name__}: {str(error)[:120]})",
                want="files that this campaign wrote", fix="Remove the folder and start again",
            ) from error
        return True
