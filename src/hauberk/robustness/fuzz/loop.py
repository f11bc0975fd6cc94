"""The loop: choose seeds by their energy, mutate them in batches, look once, keep what is new."""

from __future__ import annotations

import dataclasses
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
from hauberk.robustness.fuzz.schedule import GROUP, Scheduler, Tally
from hauberk.robustness.fuzz.validity import Rule

HOPELESS = 50  # mutants made for each one of the budget, after which a search gives up on finding valid ones
LONGEST = 8  # steps in a lineage
COUNTS = ("confusion", "broken", "tried", "fresh", "gained")  # what a search counts in tensors


@dataclasses.dataclass(frozen=True)
class Options:
    """How a campaign goes about.

    Arguments:
        budget: valid mutants that are sent to the model; the control gets as many.
        per_seed: about how many mutants are made in a round of a seed that is chosen.
        batch: mutants made in a round.
        steering: the criterion that decides which mutants become seeds.
        aim: what seeds and mutators are chosen for: `faults` or `coverage`.
        criteria: those reported beside it.
        rule: which mutants are valid.
        eps: Linf radius of gradient attacks at level 5, in input units.
        seed: of all draws.
    """

    budget: int = 2000
    per_seed: int = 1
    batch: int = 256
    steering: str = "kmnc"
    aim: str = "faults"
    criteria: tuple[str, ...] = ("nc", "tknc", "kmnc", "nbc", "snac")
    rule: Rule = dataclasses.field(default_factory=Rule)
    eps: float = 0.1
    seed: int = 0


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
        affine = {name: one.kind == AFFINE for name, one in bench.mutators.items()}
        self.pixel = not all(affine.values())
        self.scheduler = Scheduler(
            affine, bench.options.per_seed, bench.options.batch, bench.options.aim == "coverage", self.scale
        )
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
        self.before = {name: float(one.value) for name, one in self.criteria.items()}
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
        parents: list[Entry] = []
        steps: list[Step] = []
        parts: list[tuple[Tensor, Tensor]] = []
        if self.guided:
            groups = self.scheduler.guided(self.queue, self.tallies, self._rates(), count, draw)
        else:
            groups = self.scheduler.evenly(self.queue, self.tallies, count, draw)
        for group, ((name, level), batch) in enumerate(groups):
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

    def _rates(self) -> Tensor:
        """Return how much new a mutant of each clean sample leads to, shape (seeds,): faults, or coverage."""
        if self.bench.options.aim == "coverage":
            unit = max(float(self.gained.sum()) / max(self.done, 1), 1e-12)
            return (self.gained / unit + 5) / (self.tried + 5)
        return (self.fresh.double() + 3) / (self.tried + 10)

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
        before = torch.tensor([one.margin for one in parents])
        self._count(x, parents, steps, failing, gains, self.margins[origins] - margins, before - margins.cpu())
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
        self.curve.append((self.done, float(next(iter(self.criteria.values())).value)))
        return entries, failures

    def _note(self, step: Step, failure: Failure) -> None:
        self.broken[failure.origin] += 1
        if self.faults.add(failure):
            self.fresh[failure.origin] += 1
            self.tallies[step.mutator, step.level].fresh += 1

    def _count(
        self, x: Tensor, parents: list[Entry], steps: list[Step], failing: list[str], gains: Tensor, drops: Tensor, falls: Tensor,
    ) -> None:
        before = torch.stack([one.image for one in parents])
        low, high = (torch.as_tensor(end).to(x) for end in self.bench.job.bounds)
        clean = torch.where(high > low, high - low, torch.ones_like(high))
        change = (x - before).abs_().div_(clean).flatten(1)
        rms, linf = (change.norm(dim=1) / change.shape[1] ** 0.5).tolist(), change.amax(1).tolist()
        drop_rows, fall_rows = (one.nan_to_num(0.0, 0.0, 0.0).tolist() for one in (drops, falls))
        told = zip(steps, failing, gains.tolist(), rms, linf, drop_rows, fall_rows, strict=True)
        for step, kind, gain, mean, most, drop, fall in told:
            tally = self.tallies[step.mutator, step.level]
            tally.failing += bool(kind)
            tally.gain += gain
            tally.rms += mean
            tally.linf += most
            tally.drop += drop
            tally.fall += fall
            tally.fall_squared += fall**2

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
            rows = {(str(row[0]), int(row[1])): _tally(row[2:]) for row in head["tallies"]}
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


def _tally(row: Sequence[Any]) -> Tally:
    """Return a tally out of a file: counts are whole numbers, so that a resumed campaign writes what a whole one does."""
    return Tally(*(whole(one, 0, 2**40, "a count") for one in row[:4]), *map(float, row[4:]))
