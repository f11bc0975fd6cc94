"""What robust training brings under ImageNet-C's fifteen corruptions: plain, trained on corruptions, AugMix.

Digits, and MNIST where mnist.npz is in the folder named by HAUBERK_DATA (else `../shared/data` beside the checkout).
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

import hauberk
from harness import save
from hauberk.core.stats import mean_interval
from hauberk.core.train import Loss, cross_entropy
from hauberk.robustness.defend import augmix, corrupted
from hauberk.robustness.defend.augmix import OPERATIONS
from hauberk.robustness.evaluate import CorruptionMetrics, corrupted_run, corruption_metrics

FIFTEEN = (
    "gaussian-noise", "shot-noise", "impulse-noise", "defocus-blur", "glass-blur", "motion-blur", "zoom-blur", "snow", "frost",
    "fog", "brightness", "contrast", "elastic-transform", "pixelate", "jpeg",
)
SEEN = ("gaussian-noise", "motion-blur", "brightness", "contrast", "jpeg")  # of the fifteen, those `corrupted()` trains on
FAMILIES = {"noise": FIFTEEN[:3], "blur": FIFTEEN[3:7], "weather and light": FIFTEEN[7:12], "bent, coarse, JPEG": FIFTEEN[12:]}
RECIPES: dict[str, Callable[[], Loss]] = {
    "plain": lambda: cross_entropy, "corrupted": corrupted, "augmix": augmix,
    "augmix, with the corruptions of `corrupted`": lambda: augmix((*OPERATIONS, *SEEN)),
}
SEEDS = (0, 1, 2)


def small_cnn(side: int, seed: int) -> nn.Module:
    """Two convolutions and two linear layers."""
    torch.manual_seed(seed)
    step, last = (1, side // 2) if side < 16 else (2, side // 4)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3 if step == 1 else 4, stride=step, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(32 * last * last, 64), nn.ReLU(), nn.Linear(64, 10),
    )


def measured(data: hauberk.Data, recipe: str, seed: int, epochs: int) -> tuple[CorruptionMetrics, float]:
    """Train with one recipe and return its metrics on 1,000 test images at most, and the CPU seconds that training took."""
    assert data.train is not None
    model, began = small_cnn(data.test.shape[-1], seed), time.process_time()
    hauberk.fit(model, data.train, loss=RECIPES[recipe](), schedule=hauberk.Schedule(epochs=epochs, batch_size=64, seed=seed))
    seconds = time.process_time() - began
    x, y = data.test.sample(1000, 0, "augmix")
    return corruption_metrics(corrupted_run(model, x, y, names=FIFTEEN)), seconds


def over(metrics: CorruptionMetrics, kinds: Sequence[str]) -> float:
    """Return the mean accuracy over some of the corruptions."""
    return statistics.fmean(one.value or 0.0 for name, one in zip(metrics.names, metrics.each, strict=True) if name in kinds)


def sets() -> dict[str, tuple[hauberk.Data, int]]:
    """Return the data sets that are here, with the epochs to train on each."""
    found = {"digits": (hauberk.load_data("sklearn:digits"), 20)}
    given = os.environ.get("HAUBERK_DATA")
    place = (Path(given) if given else Path(__file__).parents[2] / "shared" / "data") / "mnist.npz"
    if place.exists():
        whole = hauberk.load_data(str(place))
        assert whole.train is not None
        few = hauberk.Split(*whole.train.sample(5000, 0, "augmix"))
        found["MNIST, 5,000 to train on"] = (hauberk.Data(whole.test, few, bounds=whole.bounds, classes=10), 6)
    return found


def main() -> None:
    """Train each recipe from three seeds on each data set, and write the table."""
    torch.set_num_threads(1)
    rows, content = [], {}
    for name, (data, epochs) in sets().items():
        plain: list[float] = []
        for recipe in RECIPES:
            runs = [measured(data, recipe, seed, epochs) for seed in SEEDS]
            metrics = [one for one, _ in runs]
            means = [one.mean.value or 0.0 for one in metrics]
            unseen = statistics.median(over(one, [kind for kind in FIFTEEN if kind not in SEEN]) for one in metrics)
            plain = plain or means
            gain = [100 * (own - base) for own, base in zip(means, plain, strict=True)]
            band, spans = mean_interval(gain), [one.mean.interval for one in metrics]
            low, high = min(one.low for one in spans if one), max(one.high for one in spans if one)
            cleans, seconds = [one.clean.value or 0.0 for one in metrics], [spent for _, spent in runs]
            content[f"{name}: {recipe}"] = {
                "clean": cleans, "mean": means, "seconds": seconds,
                "each": {kind: [one.each[row].value for one in metrics] for row, kind in enumerate(FIFTEEN)},
            }
            rows.append([
                name, recipe, f"{statistics.median(cleans):.1%}", f"{statistics.median(means):.1%} [{low:.1%}, {high:.1%}]",
                f"{unseen:.1%}",
                "–" if recipe == "plain" else f"{statistics.fmean(gain):+.1f} [{band.low:+.1f}, {band.high:+.1f}]",
                *(f"{statistics.median(over(one, kinds) for one in metrics):.1%}" for kinds in FAMILIES.values()),
                f"{statistics.median(seconds):.1f}",
            ])
    save(
        "augmix", "Accuracy under ImageNet-C's fifteen corruptions, severities 1 to 5, by how the model was trained", content,
        [
            "data", "training", "clean accuracy", "mean accuracy under corruption [hull of the 95 % intervals]",
            "the same over the ten that `corrupted` does not train on", "points gained [95 %, by seed]", *FAMILIES,
            "CPU s of training",
        ],
        rows,
        [
            f"Median of {len(SEEDS)} seeds, at most 1,000 test images, one thread. Of the fifteen, `corrupted()` trains on",
            f"{', '.join(SEEN)}; `augmix()` on none. Where nothing in training lights a black background, fog, frost and",
            "brightness cost what the consistency wins elsewhere. Made by `benchmarks/augmix.py`.",
        ],
    )


if __name__ == "__main__":
    main()
