"""fuzz: a whole campaign: the guided search, the random control, the faults found, and each made small."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hauberk.core import progress, rng
from hauberk.core.data import Data
from hauberk.core.errors import DataError, UsageError
from hauberk.core.files import write_whole
from hauberk.core.target import MULTI_LABEL, Target, as_target
from hauberk.robustness.fuzz.cluster import leaders_of
from hauberk.robustness.fuzz.corpus import Failure, begin, read_arrays, read_steps, whole, write_arrays
from hauberk.robustness.fuzz.coverage import Profile, Reader, criterion, profile
from hauberk.robustness.fuzz.judge import kinds_of
from hauberk.robustness.fuzz.loop import Bench, Options, Search, Seeds
from hauberk.robustness.fuzz.minimise import minimised
from hauberk.robustness.fuzz.mutate import ATTACKS, Job, Mutator, mutators
from hauberk.robustness.fuzz.objectives import Case, Objective, misclassification, not_a_number
from hauberk.robustness.fuzz.results import Campaign, failure_row, notes_of, outcome

FORMAT = 3
PROFILED = 2000  # training samples that the ranges of the neurons are taken from
SMALLEST = 100  # faults that are made small, at most


def fuzz(
    model: Target | nn.Module, data: Data, *, seeds: int = 100, options: Options | None = None,
    objectives: Sequence[Objective] = (), with_mutators: Sequence[str | Mutator] = (), folder: str | Path | None = None,
    resume: bool = False,
) -> Campaign:
    """Search for failures of a model around samples it handles, and do as much random mutation beside it.

    Memory holds the seeds, the mutants that became seeds, and the failures; `batch` mutants are worked on at a time.

    Arguments:
        model: a target, or a module; with GRADIENT access coverage is of neurons, else of the answers.
        data: test samples to start from, and training samples for the ranges of the neurons (else the test samples).
        seeds: test samples drawn as seeds; those on which the model fails unchanged are left out.
        options: budget, rule, criteria and seed.
        objectives: ways to fail; empty takes misclassification (for classes) and answers that are not numbers. A crash always
            counts.
        with_mutators: names, or mutators of your own (`mutate.own`); empty takes all that fit.
        folder: where corpus and failures are kept, round by round; None keeps nothing.
        resume: go on with the campaign in the folder, which must be the same one.

    Returns:
        What both searches found.

    Raises:
        DataError: when the model fails on every seed as it is, or the folder is damaged.
        UsageError: for unknown names, multi-label models, or a folder with another campaign.

    Papers: Xie et al. 2019 (DeepHunter), arXiv:1809.01266; Odena et al. 2019 (TensorFuzz), arXiv:1807.10875.
    """
    options = options or Options()
    place = None if folder is None else Path(folder)
    _check(options, seeds)
    bench, known = prepare(as_target(model), data, seeds, options, objectives, with_mutators)
    if place is not None:
        begin(place, identity_of(bench, known), resume)
    names = list(dict.fromkeys((options.steering, *options.criteria)))
    searches = []
    for guided in (True, False):
        search = Search(bench, {name: criterion(name, known) for name in names}, guided=guided, folder=place)
        if resume:
            search.resume()
        search.run()
        searches.append(search)
    found = [outcome(one) for one in searches]
    leaders = leaders_of(found[0].failures)
    with rng.isolated(rng.derive_seed(options.seed, "fuzz minimise")):
        minimal = [minimised(one, bench) for one in progress.track(leaders[:SMALLEST], "minimising")]
    notes = notes_of(searches)
    if len(leaders) > len(minimal):
        notes.append(f"the first {len(minimal)} of {len(leaders)} faults were made small")
    campaign = Campaign(found[0], found[1], minimal, searches[0].faults.radius, options.seed, notes)
    if place is not None:
        save(campaign, bench, place)
    return campaign


def prepare(
    target: Target, data: Data, seeds: int, options: Options, objectives: Sequence[Objective],
    with_mutators: Sequence[str | Mutator],
) -> tuple[Bench, Profile]:
    """Return what both searches share, and the ranges of the neurons on training data."""
    if target.outputs in MULTI_LABEL:
        raise UsageError("the model answers several labels per sample", want="one class, or a number, per sample")
    x, y = data.test.sample(seeds, options.seed, "fuzz seeds")
    if not len(x):
        raise DataError("there are no test samples", want="seeds to start from")
    x = x if x.dtype in (torch.float32, torch.float64) else x.float()
    if not bool(x.isfinite().all()):
        raise DataError("the seeds hold values that are NaN or infinite", want="finite samples")
    regression = y.is_floating_point()
    reader = Reader(target, regression=regression, classes=data.classes)
    source = data.train if data.train is not None and len(data.train) else data.test
    # The draw is sorted by place: shuffled, so that the features kept are of all kinds.
    drawn = source.pick(PROFILED, options.seed, "fuzz profile")
    drawn = drawn[torch.randperm(len(drawn), generator=rng.generator(options.seed, "fuzz profile order"))]
    known = profile(reader, _batches(source.x.take(part).to(x) for part in drawn.split(target.batch_size)))
    chosen = list(objectives) or ([] if regression else [misclassification()]) + [not_a_number()]
    reading = reader(x)
    crashed = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    fine = torch.tensor([not kind for kind in kinds_of(chosen, Case(x, reading, y, reading.answers, target), crashed)])
    if not bool(fine.any()):
        raise DataError(
            f"the model fails on all of {len(x)} seeds as they are", want="seeds that it handles",
            fix="Check that model, data and labels belong together",
        )
    names = [one for one in with_mutators if isinstance(one, str)]
    given = {one.name: one for one in with_mutators if isinstance(one, Mutator)}
    fitting = mutators(tuple(x.shape[1:]), target.access, names) if names or not given else {}
    if regression:
        fitting = {name: one for name, one in fitting.items() if name not in ATTACKS}
    job = Job(target.fresh(), data.bounds, options.eps)
    return Bench(target, reader, Seeds(x[fine], y[fine], reading.rows(fine)), fitting | given, chosen, job, options), known


def identity_of(bench: Bench, known: Profile) -> dict[str, Any]:
    """Return what makes a campaign the same one: options, mutators, objectives, a digest of the seeds and of the answered labels,
    and figures of what the model answers to the seeds and of the ranges of its neurons, which another machine only rounds."""
    digest = hashlib.sha256()
    for one in (bench.seeds.x, bench.seeds.y, bench.seeds.reading.labels):
        digest.update(one.detach().cpu().contiguous().numpy().tobytes())
    options: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(bench.options)))
    return {
        "format": FORMAT, **options, "mutators": list(bench.mutators), "objectives": [one.name for one in bench.objectives],
        "seeds": len(bench.seeds), "digest": digest.hexdigest(),
        "bounds": [_figures(torch.as_tensor(end)) for end in bench.job.bounds],
        "answers": _figures(bench.seeds.reading.answers), "ranges": [_figures(known.low), _figures(known.high)],
    }


def _figures(values: Tensor) -> list[float]:
    """Return the size, the mean, the spread, and a sum under weights that no two places share."""
    rows = values.detach().double().cpu().flatten().nan_to_num()
    weights = (torch.arange(1, len(rows) + 1, dtype=torch.float64) * 0.6180339887498949).frac()
    return [float(len(rows)), float(rows.mean()), float(rows.square().mean().sqrt()), float((rows * weights).mean())]


def save(campaign: Campaign, bench: Bench, folder: Path) -> None:
    """Write results.json, and failures.npz with every minimal failure, its seed and how it is made again."""
    rows = campaign.minimal
    origins = [one.origin for one in rows]
    empty = bench.seeds.x[:0]
    arrays = {
        "x": torch.stack([one.image for one in rows]) if rows else empty, "seed": bench.seeds.x[origins] if rows else empty,
        "reference": torch.stack([one.reference for one in rows]) if rows else empty,
    }
    head = {"failures": [failure_row(one) for one in rows]}
    write_arrays(folder / "failures.npz", head, {name: one.cpu().numpy() for name, one in arrays.items()})
    write_whole(folder / "results.json", json.dumps(campaign.table(), indent=1) + "\n")


def load_failures(folder: str | Path) -> list[Failure]:
    """Return the minimal failures that a campaign kept in a folder.

    Raises:
        DataError: for a file that is damaged.
    """
    path = Path(folder) / "failures.npz"
    head, arrays = read_arrays(path)
    rows, found = head.get("failures"), []
    if not isinstance(rows, list) or not {"x", "reference"} <= set(arrays) or not len(rows) == len(arrays["x"]):
        raise DataError(f"{path} does not hold a failure for each image", want="a file that this fuzzer wrote")
    images, references = (torch.tensor(arrays[name]) for name in ("x", "reference"))
    for place, row in enumerate(rows):
        try:
            found.append(Failure(
                whole(row["origin"], 0, 2**31, "origin"), read_steps(row["steps"]), str(row["kind"])[:80],
                whole(row["label"], -1, 2**31, "label"), whole(row["answer"], -1, 2**31, "answer"), images[place],
                references[place], torch.empty(0), float(row["blend"]), row["replays"],
                whole(row["cluster"], -1, 2**31, "cluster"),
            ))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise DataError(f"{path} holds a failure that cannot be read", want="a file that this fuzzer wrote") from error
    return found


def _batches(parts: Iterable[Tensor]) -> Iterator[Tensor]:
    yield from progress.track(parts, "profiling")


def _check(options: Options, seeds: int) -> None:
    for name in ("budget", "per_seed", "batch"):
        value = getattr(options, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UsageError(f"{name} is {value!r}", want="a whole number, 1 or more")
    if options.aim not in ("faults", "coverage"):
        raise UsageError(f"aim is '{options.aim}'", want="faults | coverage")
    if seeds < 1:
        raise UsageError(f"seeds is {seeds}", want="1 or more")
