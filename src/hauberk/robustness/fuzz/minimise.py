"""Doing a failure again from its seed, and making it as small as it can be while the model still fails alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from hauberk.robustness.fuzz.corpus import Failure
from hauberk.robustness.fuzz.coverage import Reader
from hauberk.robustness.fuzz.judge import ask, kinds_of
from hauberk.robustness.fuzz.loop import Bench
from hauberk.robustness.fuzz.mutate import AFFINE, Job, Mutator, Step, mutated
from hauberk.robustness.fuzz.objectives import Case

Try = Callable[[tuple[Step, ...]], Failure | None]
HALVINGS = 8
PASSES = 8  # over the steps of a failure, at most


def replay(
    steps: tuple[Step, ...], x: Tensor, y: Tensor, mutators: dict[str, Mutator], job: Job, *, blend: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Do the steps again on one clean sample; return the mutant and its reference, shape (1, ...) each.

    Arguments:
        steps: of the failure.
        x, y: its clean seed, shape (1, ...), and label, shape (1,).
        mutators: by name.
        job: what they may need.
        blend: how far to go from the reference to the mutant, in (0, 1].
    """
    image = reference = x
    for step in steps:
        chosen, how = mutators[step.mutator], (step.level, step.seed)
        same = image is reference
        image = mutated(chosen, image, y, how, job, skip=step.place)
        if chosen.kind == AFFINE:
            reference = image if same else mutated(chosen, reference, y, how, job, skip=step.place)
    return (image if blend == 1.0 else reference + blend * (image - reference)), reference


def minimised(failure: Failure, bench: Bench) -> Failure:
    """Return the failure with the fewest steps, the lowest levels, and the least of the last change, that still fails alike.

    Steps are left out one by one and levels lowered one by one, again and again until neither helps any more (eight times at
    most), then the way from the reference to the mutant is halved: each as long as the mutant stays valid and fails the same
    objective. What does not fail again from the seed alone (a fault of the
    batch, or of chance) is returned as it was, with `replays` False.

    Arguments:
        failure: as found.
        bench: of the search.
    """
    steps, at = failure.steps, slice(failure.origin, failure.origin + 1)
    x, y = bench.seeds.x[at], bench.seeds.y[at]
    mutators = dict(bench.mutators)

    def tried(candidate: tuple[Step, ...], blend: float = 1.0) -> Failure | None:
        image, reference = replay(candidate, x, y, mutators, bench.job, blend=blend)
        if not bool(bench.options.rule.holds(image, reference, bench.job.bounds).all()):
            return None
        reading, crashed = ask(bench.reader, image, bench.seeds.reading)
        reading.base = bench.seeds.reading.units[at]
        case = Case(image, reading, y, bench.seeds.reading.answers[at], bench.target)
        if kinds_of(bench.objectives, case, crashed)[0] != failure.kind:
            return None
        answer = -1 if bool(crashed.any()) or not bench.seeds.classes else int(reading.labels[0])
        return dataclasses.replace(
            failure, steps=candidate, blend=blend, image=image[0].clone(), reference=reference[0].clone(), answer=answer,
            replays=True,
        )

    best = tried(steps)
    if best is None:
        return dataclasses.replace(failure, replays=False)
    refused: set[tuple[Step, ...]] = set()  # a later pass asks only what has not been asked
    for _ in range(PASSES):
        before = best.steps
        best = _milder(_shorter(best, tried, refused), tried, refused)
        if best.steps == before:
            break
    if torch.equal(best.image, best.reference):  # an affine change alone: there is nothing to blend
        return best
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        found = tried(best.steps, middle)
        if found is None:
            low = middle
        else:
            best, high = found, middle
    return best


def _shorter(best: Failure, tried: Try, refused: set[tuple[Step, ...]]) -> Failure:
    """Return the failure without every step that can be left out, asked one by one from the first."""
    place = 0
    while place < len(best.steps) and len(best.steps) > 1:
        rest = best.steps[:place] + best.steps[place + 1 :]
        found = None if rest in refused else tried(rest)
        if found is None:
            refused.add(rest)
            place += 1
        else:
            best = found
    return best


def _milder(best: Failure, tried: Try, refused: set[tuple[Step, ...]]) -> Failure:
    """Return the failure with every step at the lowest level that still does, from the first to the last."""
    for place in range(len(best.steps)):
        for level in range(1, best.steps[place].level):
            milder = (*best.steps[:place], dataclasses.replace(best.steps[place], level=level), *best.steps[place + 1 :])
            found = None if milder in refused else tried(milder)
            if found is not None:
                best = found
                break
            refused.add(milder)
    return best


def fails_again(failure: Failure, bench: Bench, reader: Reader | None = None) -> bool:
    """Whether the steps of a failure, done again on the seed alone, give its image bit by bit and the same kind of failure.

    Arguments:
        failure: as found or minimised.
        bench: of the search.
        reader: of another model; None takes that of the search.
    """
    at = slice(failure.origin, failure.origin + 1)
    x, y = bench.seeds.x[at], bench.seeds.y[at]
    image, _ = replay(failure.steps, x, y, dict(bench.mutators), bench.job, blend=failure.blend)
    reading, crashed = ask(reader or bench.reader, image, bench.seeds.reading)
    case = Case(image, reading, y, bench.seeds.reading.answers[at], bench.target)
    return torch.equal(image[0], failure.image) and kinds_of(bench.objectives, case, crashed)[0] == failure.kind
