"""Fuzz, retrain, measure again: digits. Failures are searched around training samples, and all figures are of test samples."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from fuzz import digits, digits_net, natural_names
from harness import save
from hauberk import Data, Schedule, Split, fit
from hauberk.core.stats import wilson
from hauberk.methods import load_methods
from hauberk.robustness.fuzz import Campaign, Options, fuzz

PLAN = Schedule(epochs=12, batch_size=64)


def failures_on_training_samples(model: nn.Module, data: Data, seed: int) -> Campaign:
    """Fuzz around 400 training samples."""
    assert data.train is not None
    around = dataclasses.replace(data, test=data.train)
    return fuzz(model, around, seeds=400, options=Options(budget=6000, seed=seed), with_mutators=natural_names())


def with_failures(data: Data, campaign: Campaign, side: str) -> Split:
    """Return the training split with all failures of one search, under their true labels."""
    found = getattr(campaign, side).failures
    assert data.train is not None
    x, y = data.train.tensors()
    images = torch.stack([one.image for one in found])
    labels: Tensor = torch.tensor([one.label for one in found])
    return Split(torch.cat([x, images]), torch.cat([y, labels]))


def main() -> None:
    """Train three nets alike, and measure each on mutants of test samples."""
    torch.set_num_threads(1)
    load_methods()
    data = digits()
    assert data.train is not None
    first = digits_net()
    fit(first, data.train, schedule=PLAN)
    campaign = failures_on_training_samples(first, data, 1)
    splits = {
        "as it was": data.train, "retrained with the fuzzer's failures": with_failures(data, campaign, "guided"),
        "retrained with the failures of random mutation": with_failures(data, campaign, "control"),
    }
    rows, content = [], {}
    x, y = data.test.tensors()
    for name, split in splits.items():
        model = digits_net()
        fit(model, split, schedule=PLAN)
        with torch.no_grad():
            right = int((model(x).argmax(1) == y).sum())
        again = fuzz(model, data, seeds=500, options=Options(budget=3000, seed=2), with_mutators=natural_names())
        clean, failing = wilson(right, len(y)), again.control.interval
        content[name] = {
            "training": len(split), "clean": right / len(y), "failing": again.control.success,
            "failing_interval": [failing.low, failing.high], "distinct": again.guided.distinct,
            "distinct_random": again.control.distinct, "seeds_broken": again.guided.seeds_broken,
            "seeds": len(again.guided.broken),
        }
        rows.append([
            name, f"{len(split):,}", f"{right / len(y):.1%} [{clean.low:.1%}, {clean.high:.1%}]",
            f"{again.control.success:.1%} [{failing.low:.1%}, {failing.high:.1%}]", f"{again.guided.distinct}",
            f"{again.guided.seeds_broken} of {len(again.guided.broken)}",
        ])
    save(
        "fuzz_retrain", "Fuzz, retrain, measure again: digits", content,
        ["net", "training samples", "clean accuracy, 500 test digits", "random valid mutants of test digits that fail, of 3,000",
         "distinct failures that a new search finds in 3,000", "test digits it breaks"], rows,
        ["The three nets start from the same weights and see the same number of epochs. Failures come from 400 training digits",
         "and 6,000 mutants; the figures are of test digits with other draws. Made by `benchmarks/fuzz_retrain.py`."],
    )


if __name__ == "__main__":
    main()
