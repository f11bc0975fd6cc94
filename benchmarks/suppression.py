"""Suppression training beside plain and differentially private training: accuracy, and what inner features give back of an input.

MNIST needs the file mnist.npz in the folder named by HAUBERK_DATA (else `../shared/data` beside the checkout); without it the
digits of scikit-learn are measured alone.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn

import hauberk
from harness import save
from hauberk import Data, Schedule, Split, fit
from hauberk.core.rng import isolated
from hauberk.core.stats import mean_interval, wilson
from hauberk.core.taps import tap
from hauberk.privacy.dp import PrivateOptions, make_private
from hauberk.privacy.inversion import feature_inversion
from hauberk.privacy.suppress import Suppression, SuppressTraining

INVERTED, STEPS = 32, 200
LAYERS = {"3": "second convolution", "6": "hidden layer"}
DELTA = 1e-5


def build(size: int) -> nn.Sequential:
    """Return an untrained CNN for images of that size."""
    side = size // 2
    with isolated(0):
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(32 * side * side, 64), nn.ReLU(), nn.Linear(64, 10),
        )


def sets() -> dict[str, Data]:
    """Return the data there is, by name."""
    digits = hauberk.load_data("sklearn:digits")
    found = {"digits 8x8": digits}
    place = Path(os.environ.get("HAUBERK_DATA", Path(__file__).parents[2] / "shared" / "data")) / "mnist.npz"
    if place.exists():
        mnist = hauberk.load_data(str(place))
        assert mnist.train is not None
        found["MNIST, 3,000 of 60,000"] = Data(
            Split(*mnist.test.first(1000)), Split(*mnist.train.first(3000)), bounds=(0, 1), classes=10
        )
    return found


def trained(data: Data, way: str, amount: float) -> tuple[nn.Module, str]:
    """Return a model trained in one of the ways, and what it spent or suppressed."""
    assert data.train is not None
    model = build(data.test.shape[-1])
    if way == "private":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        private = make_private(
            model, optimizer, data.train, batch_size=256, noise_multiplier=amount, delta=DELTA, options=PrivateOptions(seed=0)
        )
        fit(model, data.train, optimizer=optimizer, epochs=15, gradients=private)
        return model, f"ε = {private.spent().epsilon:.1f}"
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    epochs = 15
    callbacks = []
    if way == "suppressed":
        total = epochs * -(-len(data.train) // 64)
        plan = Suppression(end=amount, begin=total // 10, steps=total // 2, every=10)
        callbacks = [SuppressTraining(model, optimizer, plan)]
    fit(model, data.train, optimizer=optimizer, schedule=Schedule(epochs=epochs, batch_size=64), callbacks=callbacks)
    return model, f"{amount:.0%} zero" if way == "suppressed" else ""


def inverted(model: nn.Module, x: Tensor, layer: str) -> tuple[Tensor, Tensor]:
    """Return the mean squared error and the PSNR of each image won back from a layer."""
    with torch.no_grad(), tap(model, [layer]) as seen:
        model(x)
    found = feature_inversion(
        model, seen.activations[layer], layer=layer, shape=tuple(x.shape[1:]), bounds=(0, 1), steps=STEPS, seed=0
    )
    errors = (found.x - x).square().flatten(1).mean(1).double()
    return errors, -10 * errors.clamp_min(1e-12).log10()


def main() -> None:
    """Train, invert, write the table."""
    torch.set_num_threads(1)
    rows, content = [], {}
    for name, data in sets().items():
        assert data.train is not None
        x, _ = data.test.sample(INVERTED, 0, "inverted")
        guess = (x - data.train.tensors()[0].mean(0)).square().flatten(1).mean(1)
        for way, amount in (
            ("plain", 0.0), ("suppressed", 0.5), ("suppressed", 0.9), ("suppressed", 0.98), ("private", 0.8), ("private", 2.0),
        ):
            model, told = trained(data, way, amount)
            with torch.no_grad():
                right = int(sum(int((model(part).argmax(1) == y).sum()) for part, y in data.test.batches(500)))
            ends = wilson(right, len(data.test))
            row = [name, way, told, f"{right / len(data.test):.3f} [{ends.low:.3f} to {ends.high:.3f}]"]
            figures = {}
            for layer, called in LAYERS.items():
                errors, ratio = inverted(model, x, layer)
                band, level = mean_interval(errors.numpy()), mean_interval(ratio.numpy())
                row.append(
                    f"{float(errors.mean()):.2g} [{max(band.low, 0):.2g} to {band.high:.2g}]; "
                    f"{float(ratio.mean()):.1f} dB [{level.low:.1f} to {level.high:.1f}]"
                )
                figures[called] = {"mse": errors.tolist(), "psnr": ratio.tolist()}
            rows.append(row)
            content[f"{name}, {way} {told}"] = {"accuracy": right / len(data.test), **figures}
            print(row, flush=True)
        rows.append([name, "the mean image", "", "", *[f"{float(guess.mean()):.2g}"] * 2])
    save(
        "suppression", "What inner features give back: plain, suppressed and private training", content,
        ["data", "training", "", "test accuracy", *(f"MSE; PSNR, {called}" for called in LAYERS.values())], rows,
        [
            f"Feature inversion, {STEPS} steps, of {INVERTED} test images, 95 % intervals over images; higher MSE and lower PSNR",
            "protect better. All layers but the last are suppressed, each to that share of zeros; private training is DP-SGD,",
            f"clip 1, expected batch 256, δ = {DELTA:g}. Differential privacy protects training records; what a layer says of",
            "the input that it is given is another matter, and this table says how far the two go together. Made by",
            "`benchmarks/suppression.py`.",
        ],
    )


if __name__ == "__main__":
    main()
