"""Fuzz, retrain, measure again: digits, and MNIST where it is at hand.

Failures are searched around training samples, and all figures are of test samples. The nets are trained for the same number of
steps: each on the training samples and as many others, which are failures of the search, failures of random mutation, or clean
training samples once more. Distinct failures are counted in the features of the first net for all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fuzz import digits, digits_net, lenet, mnist, natural_names
from harness import save
from hauberk import Data, Schedule, Split, Target, fit
from hauberk.core import rng
from hauberk.core.stats import wilson
from hauberk.methods import load_methods
from hauberk.robustness.fuzz import Campaign, Failure, Options, fuzz
from hauberk.robustness.fuzz.cluster import Faults, radius_of
from hauberk.robustness.fuzz.coverage import Reader

SEEDS, SEARCHED, MEASURED = 400, 12_000, 3000


def failures_on_training_samples(model: nn.Module, data: Data, seed: int) -> Campaign:
    """Fuzz around training samples."""
    assert data.train is not None
    around = dataclasses.replace(data, test=data.train)
    return fuzz(model, around, seeds=SEEDS, options=Options(budget=SEARCHED, seed=seed), with_mutators=natural_names())


def joined(data: Data, x: Tensor, y: Tensor) -> Split:
    """Return the training split with more samples."""
    assert data.train is not None
    clean, labels = data.train.tensors()
    return Split(torch.cat([clean, x]), torch.cat([labels, y]))


def chosen(failures: list[Failure], count: int, name: str) -> tuple[Tensor, Tensor]:
    """Return so many failures, drawn at random, under their true labels."""
    order = torch.randperm(len(failures), generator=rng.generator(0, "retrain", name))[:count].tolist()
    return torch.stack([failures[row].image for row in order]), torch.tensor([failures[row].label for row in order])


def distinct(failures: list[Failure], reader: Reader, radius: float) -> int:
    """Return the number of distinct failures in the features of the reader's model."""
    if not failures:
        return 0
    features, faults = reader(torch.stack([one.image for one in failures])).features, Faults(radius)
    for one, row in zip(failures, features, strict=True):
        faults.add(dataclasses.replace(one, features=row))
    return faults.count


def measure(name: str, data: Data, make: Callable[[], nn.Module], plan: Schedule) -> tuple[dict[str, object], list[list[str]]]:
    """Train three nets alike, and measure each on mutants of test samples."""
    assert data.train is not None
    first = make()
    fit(first, data.train, schedule=plan)
    campaign = failures_on_training_samples(first, data, 1)
    count = min(len(campaign.guided.failures), len(campaign.control.failures))
    again = data.train.take(torch.randperm(len(data.train), generator=rng.generator(0, "retrain", "clean"))[:count])
    more = {
        "clean training samples again": again, "the fuzzer's failures": chosen(campaign.guided.failures, count, "guided"),
        "failures of random mutation": chosen(campaign.control.failures, count, "control"),
    }
    x, y = data.test.tensors()
    reader = Reader(Target(first))
    radius = radius_of(reader(x[:1000]).features)
    rows, content = [], {}
    for added, (images, labels) in more.items():
        print(name, added, flush=True)
        model = make()
        fit(model, joined(data, images, labels), schedule=plan)
        with torch.no_grad():
            right = sum(int((model(part).argmax(1) == own).sum()) for part, own in zip(x.split(500), y.split(500), strict=True))
        found = fuzz(model, data, seeds=SEEDS, options=Options(budget=MEASURED, seed=2), with_mutators=natural_names())
        clean, failing = wilson(right, len(y)), found.control.interval
        counts = [distinct(side.failures, reader, radius) for side in (found.guided, found.control)]
        content[added] = {
            "training": len(data.train) + count, "added": count, "clean": right / len(y), "failing": found.control.success,
            "failing_interval": [failing.low, failing.high], "distinct": counts[0], "distinct_random": counts[1],
            "seeds_broken": found.guided.seeds_broken, "seeds": len(found.guided.broken),
        }
        rows.append([
            name, added, f"{len(data.train):,} + {count:,}", f"{right / len(y):.1%} [{clean.low:.1%}, {clean.high:.1%}]",
            f"{found.control.success:.1%} [{failing.low:.1%}, {failing.high:.1%}]", f"{counts[0]}",
            f"{found.guided.seeds_broken} of {len(found.guided.broken)}",
        ])
    return content, rows


def main() -> None:
    """Measure both data sets and write the table."""
    torch.set_num_threads(1)
    load_methods()
    content, rows = measure("digits", digits(), digits_net, Schedule(epochs=12, batch_size=64))
    told: dict[str, object] = {"digits": content}
    images = mnist()
    if images is not None and images.train is not None:
        train, test = Split(*images.train.first(6000)), Split(*images.test.first(2000))
        part = dataclasses.replace(images, train=train, test=test)
        told["MNIST"], more = measure("MNIST, 6,000 samples", part, lenet, Schedule(epochs=4, batch_size=64))
        rows += more
    save(
        "fuzz_retrain", "Fuzz, retrain, measure again", told,
        ["data", "trained on the training samples and", "samples", "clean accuracy, test samples",
         f"random valid mutants of test samples that fail, of {MEASURED:,}",
         f"distinct failures that a new search finds in {MEASURED:,}", "test samples it breaks"], rows,
        [f"The nets start from the same weights and take the same number of steps. Failures come from {SEEDS} training samples",
         f"and {SEARCHED:,} mutants, as many of each search; the figures are of test samples with other draws.",
         "Distinct failures are counted in the features of one net for all, the first. Made by `benchmarks/fuzz_retrain.py`."],
    )


if __name__ == "__main__":
    main()
