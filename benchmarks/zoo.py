"""A zoo of classifiers of scikit-learn's digits that trains offline in about a minute, and is then kept in build/zoo.pt.

Six nets: a standard CNN and MLP, three trained against an adversary (PGD in Linf, TRADES in Linf, PGD in L2), and a hard one
whose layers keep their largest activations alone, so that its loss is full of cliffs.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from hauberk import L2, Linf, Schedule, Split, fit
from hauberk.robustness.defend import adversarial, trades

KEPT = Path(__file__).parent.parent / "build" / "zoo.pt"
VERSION = 1  # of the recipes: another number trains anew


class Largest(nn.Module):
    """Keeps the largest share of each sample's activations and sets the others to zero (k-winners-take-all)."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        """Return x, shape (n, ...), with all but its largest entries set to zero."""
        flat = x.flatten(1)
        least = flat.topk(max(1, int(self.share * flat.shape[1])), dim=1).values[:, -1:]
        return (flat * (flat >= least)).view_as(x)


def cnn(act: Callable[[], nn.Module] = nn.ReLU) -> nn.Module:
    """Two convolutions and two linear layers for 8x8 images."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), act(), nn.Conv2d(16, 32, 3, stride=2, padding=1), act(), nn.Flatten(),
        nn.Linear(512, 64), act(), nn.Linear(64, 10),
    )


def mlp() -> nn.Module:
    """Two hidden layers."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


def digits() -> tuple[Split, Split]:
    """Return 1,297 images to train on and 500 to attack, (n, 1, 8, 8) in [0, 1]."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    images = torch.tensor(x[order] / 16.0, dtype=torch.float32).reshape(-1, 1, 8, 8)
    labels = torch.tensor(y[order])
    return Split(images[:1297], labels[:1297]), Split(images[1297:], labels[1297:])


_MAKE: dict[str, tuple[Callable[[], nn.Module], dict[str, object], int]] = {
    "standard": (cnn, {}, 12),
    "mlp": (mlp, {}, 20),
    "linf": (cnn, {"loss": adversarial(Linf(0.15), steps=5)}, 20),
    "trades": (cnn, {"loss": trades(Linf(0.15), steps=5)}, 15),
    "l2": (cnn, {"loss": adversarial(L2(1.0), steps=5)}, 20),
    "largest": (functools.partial(cnn, functools.partial(Largest, 0.2)), {}, 20),
}
NAMES = tuple(_MAKE)


def zoo(names: tuple[str, ...] = NAMES) -> dict[str, nn.Module]:
    """Return the nets of those names in evaluation mode; those that are not kept yet are trained, and kept."""
    kept = torch.load(KEPT, weights_only=True) if KEPT.exists() else {}
    if kept.get("version") != VERSION:
        kept = {"version": VERSION}
    train, _ = digits()
    found = {}
    for name in names:
        make, options, epochs = _MAKE[name]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            model = make()
        if name in kept:
            model.load_state_dict(kept[name])
        else:
            fit(model, train, schedule=Schedule(epochs=epochs, batch_size=64), **options)  # type: ignore[arg-type]
            kept[name] = model.state_dict()
            KEPT.parent.mkdir(exist_ok=True)
            torch.save(kept, KEPT)
        found[name] = model.eval().requires_grad_(False)
    return found


def main() -> None:
    """Train what is missing and print clean accuracies."""
    torch.set_num_threads(1)
    x, y = digits()[1].tensors()
    for name in NAMES:
        began = time.process_time()
        model = zoo((name,))[name]
        right = float((model(x).argmax(1) == y).float().mean())
        print(f"{name}: clean accuracy {right:.3f}, {time.process_time() - began:.0f} CPU s")


if __name__ == "__main__":
    main()
