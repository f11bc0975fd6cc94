"""The model of the demo: a small CNN for 8x8 handwritten digits."""

from torch import nn


def build() -> nn.Module:
    """Return the untrained network: images (n, 1, 8, 8) in [0, 1] to ten logits."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 4 * 4, 64), nn.ReLU(), nn.Linear(64, 10),
    )
