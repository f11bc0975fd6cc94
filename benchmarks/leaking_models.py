"""The two networks whose gradients are inverted, trained on MNIST in about two CPU-minutes and then kept in build/leaking.pt.

Both are the SmallCNN of TRADES: one trained to convergence on 6,000 images, one on 4,000 images against an adversary of
Linf 0.3 whose radius grows over the first half of the training.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import Tensor, nn

from hauberk import Linf, Schedule, Split, fit, load_data
from hauberk.core.smallcnn import SmallCNN
from hauberk.robustness.defend import adversarial
from mnist import folder

KEPT = Path(__file__).parent.parent / "build" / "leaking.pt"
VERSION = 1


class Ramp:
    """Adversarial training whose radius grows in ten steps up to `eps` over the first `over` batches."""

    def __init__(self, eps: float, over: int, steps: int = 7) -> None:
        self.losses = [adversarial(Linf(eps * (k + 1) / 10), steps=steps) for k in range(10)]
        self.over, self.done = over, 0

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss of a batch, and count it."""
        level = min(9, 10 * self.done // self.over)
        self.done += 1
        return self.losses[level](model, x, y)


def images() -> tuple[Split, Split]:
    """Return MNIST to train on and to attack."""
    data = load_data(str(folder() / "mnist.npz"))
    assert data.train is not None
    return data.train, data.test


def models() -> dict[str, nn.Module]:
    """Return both nets in evaluation mode; what is not kept yet is trained, and kept."""
    kept = torch.load(KEPT, weights_only=True) if KEPT.exists() else {}
    if kept.get("version") != VERSION:
        kept = {"version": VERSION}
    train, _ = images()
    made: dict[str, nn.Module] = {}
    for name, (n, epochs) in {"standard": (6000, 14), "robust": (4000, 4)}.items():
        model = SmallCNN()
        if name in kept:
            model.load_state_dict(kept[name])
        else:
            x, y = train.take(torch.arange(n))
            began = time.process_time()
            options = {} if name == "standard" else {"loss": Ramp(0.3, n * epochs // 128 // 2)}
            fit(model, Split(x, y), schedule=Schedule(epochs=epochs), **options)  # type: ignore[arg-type]
            kept[name], kept[f"{name} seconds"] = model.state_dict(), time.process_time() - began
            KEPT.parent.mkdir(exist_ok=True)
            torch.save(kept, KEPT)
        made[name] = model.eval()
    return made


def main() -> None:
    """Train what is missing and print accuracies, clean and under PGD."""
    from hauberk.robustness.attack import pgd

    torch.set_num_threads(1)
    x, y = images()[1].take(torch.arange(500))
    for name, model in models().items():
        clean = float((model(x).argmax(1) == y).double().mean())
        z = pgd(model, x[:200], y[:200], Linf(0.3), steps=20)
        loss = nn.functional.cross_entropy(model(x), y, reduction="none")
        attacked = float((model(z).argmax(1) == y[:200]).double().mean())
        print(f"{name}: clean {clean:.3f}, PGD {attacked:.3f}, median loss {float(loss.median()):.1e}")


if __name__ == "__main__":
    main()
