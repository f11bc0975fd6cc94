"""The small network that the studies of robustness and leakage share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hauberk.core.rng import generator


class SmallCNN(nn.Module):
    """Four convolutions and three linear layers for images of 28 by 28: 312,202 parameters at one channel and ten classes.

    The last layer begins at zero, so that an untrained one gives every class the same score and its gradient speaks of that
    layer alone (Zhang et al. 2019, arXiv:1901.08573).

    Arguments:
        channels: of an image.
        classes: scores returned.
        dropout: share of hidden units dropped in training.
        seed: of the weights.
    """

    def __init__(self, channels: int = 1, classes: int = 10, *, dropout: float = 0.5, seed: int = 0) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Linear(1024, 200), nn.ReLU(), nn.Dropout(dropout), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, classes)
        )
        draw = generator(seed, "SmallCNN")
        with torch.no_grad():
            for part in self.modules():
                if isinstance(part, (nn.Conv2d, nn.Linear)):
                    fan_in = part.weight[0].numel()
                    scale = (2 if isinstance(part, nn.Conv2d) else 1) / fan_in
                    part.weight.copy_(torch.randn(part.weight.shape, generator=draw) * scale**0.5)
                    if part.bias is not None:
                        part.bias.zero_()
            last = self.classifier[-1]
            assert isinstance(last, nn.Linear)
            last.weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, (n, classes), of images (n, channels, 28, 28)."""
        scores: Tensor = self.classifier(self.features(x).flatten(1))
        return scores
