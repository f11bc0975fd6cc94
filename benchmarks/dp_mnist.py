"""Accuracy against ε on MNIST: one small convolutional network, private from the first step, at several budgets.

Needs the file mnist.npz in the folder named by HAUBERK_DATA (else `../shared/data` beside the checkout).
`python benchmarks/dp_mnist.py [EPSILON ...]` trains at all budgets of the table, or at those given, and writes them to it.
"""

from __future__ import annotations

import json
import math
import sys
import time

import torch
from torch import Tensor, nn

import hauberk
from harness import HERE, save
from hauberk.core.stats import wilson
from hauberk.core.train import cross_entropy
from hauberk.privacy.dp import PrivateOptions, make_private
from hauberk.privacy.dp.accounting.calibrate import noise_for, steps_per_epoch
from mnist import folder

DELTA = 1e-5
EPOCHS, BATCH, RATE, CLIP, DECAY = 10, 1024, 3.0, 1.0, 0.95
BUDGETS = (0.3, 0.87, 2.4, 8.0, math.inf)
BARS = {"0.87": 0.95, "2.4": 0.968}


def build() -> nn.Module:
    """Return the network: two convolutions, two linear layers, tanh (bounded activations lose less to clipping)."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 8, stride=2, padding=3), nn.Tanh(), nn.MaxPool2d(2, 1), nn.Conv2d(16, 32, 4, stride=2), nn.Tanh(),
        nn.MaxPool2d(2, 1), nn.Flatten(), nn.Linear(512, 32), nn.Tanh(), nn.Linear(32, 10),
    )


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model(x).argmax(1) == y).double().mean())


def train(given: hauberk.Split, test: tuple[Tensor, Tensor], noise_multiplier: float) -> dict[str, float]:
    """Train once; return the test accuracy of the averaged weights, the ε spent, and the CPU seconds."""
    began, model = time.process_time(), build()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    steps = EPOCHS * steps_per_epoch(BATCH / len(given))
    slower = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(DECAY))
    private = make_private(
        model, optimizer, given, batch_size=BATCH, noise_multiplier=noise_multiplier, clip=CLIP, delta=DELTA,
        options=PrivateOptions(seed=0, micro_batch=256),
    )
    for x, y in private.batches(steps=steps):
        private.step(cross_entropy, x, y)
        slower.step()
        average.update_parameters(model)
    return {
        "noise_multiplier": noise_multiplier, "steps": steps, "epsilon": private.spent().epsilon,
        "accuracy": accuracy(average.module, *test), "last_weights": accuracy(model, *test),
        "seconds": time.process_time() - began,
    }


def main() -> None:
    """Calibrate the noise for each budget, train, and write the curve."""
    torch.set_num_threads(1)
    data = hauberk.load_data(str(folder() / "mnist.npz"))
    assert data.train is not None
    (x, y), (x_test, y_test) = data.train.tensors(), data.test.tensors()
    # Centred by constants of no data set: a mean of the training images would be a release of its own.
    given, test = hauberk.Split((x - 0.1) / 0.3, y), ((x_test - 0.1) / 0.3, y_test)
    rate = BATCH / len(given)
    count = EPOCHS * steps_per_epoch(rate)
    for budget in [float(one) for one in sys.argv[1:]] or BUDGETS:
        noise = 0.0 if math.isinf(budget) else noise_for(budget, DELTA, rate=rate, count=count, sampling="poisson")
        run = train(given, test, noise)
        assert run["epsilon"] <= budget
        run["epsilon"] = run["epsilon"] if math.isfinite(run["epsilon"]) else 1e308  # JSON knows no infinity
        tabulate(f"{budget:g}", {**run, "n": len(test[1])}, count)


def tabulate(budget: str, run: dict[str, float], count: int) -> None:
    """Put a run into the results, beside those of the same recipe that are there."""
    place = HERE / "results" / "dp_mnist.json"
    held = json.loads(place.read_text(encoding="utf-8"))["runs"] if place.exists() else {}
    runs = {key: one for key, one in {**held, budget: run}.items() if one["steps"] == count}
    runs = dict(sorted(runs.items(), key=lambda item: float(item[0])))
    rows = []
    for key, one in runs.items():
        interval, bar = wilson(round(one["accuracy"] * one["n"]), int(one["n"])), BARS.get(key)
        rows.append([
            f"{one['epsilon']:.4g}" if one["epsilon"] < 1e300 else "∞", f"{one['noise_multiplier']:.4g}",
            f"{one['accuracy']:.2%} [{interval.low:.2%}, {interval.high:.2%}]", f"{one['last_weights']:.2%}",
            "" if bar is None else f"{bar:.1%}: {'met' if one['accuracy'] >= bar else 'missed'}", f"{one['seconds']:.0f}",
        ])
    parameters = sum(one.numel() for one in build().parameters())
    save(
        "dp_mnist", "Accuracy against ε on MNIST", {"delta": DELTA, "runs": runs},
        ["ε (PLD, add-remove)", "noise multiplier", "test accuracy, averaged weights [95 %]", "last weights", "bar", "CPU s"],
        rows,
        [
            f"δ = {DELTA:g}; Poisson sampling of expected {BATCH} of 60,000 examples, {EPOCHS} passes ({count} steps).",
            f"SGD without momentum, rate {RATE:g} falling to 0 by a half cosine, clip {CLIP:g} (flat), weights averaged with "
            f"decay {DECAY:g} a step; two convolutions, two linear layers, tanh, {parameters} parameters, from scratch; one run "
            "each, seed 0.",
            "Where ε is ∞, gradients are clipped as in the others but get no noise: not private.",
            "The choice of rate, batch and passes looked at MNIST and is in no ε.",
            "Made by `benchmarks/dp_mnist.py`.",
        ],
    )


if __name__ == "__main__":
    main()
