"""The networks that studies train: the small CNN for 28 by 28, residual networks for 32 by 32."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from hauberk.core.rng import isolated
from hauberk.core.smallcnn import SmallCNN


class PreActBlock(nn.Module):
    """Norm, activation, convolution, twice, beside a shortcut (He et al. 2016, arXiv:1603.05027)."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(inside), nn.BatchNorm2d(outside)
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(inside, outside, 1, stride, bias=False) if stride > 1 or inside != outside else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the features, (n, outside, height / stride, width / stride)."""
        out = functional.relu(self.norm1(x))
        beside = x if self.shortcut is None else self.shortcut(out)
        out = self.conv2(functional.relu(self.norm2(self.conv1(out))))
        return out + beside


class Block(nn.Module):
    """Convolution, norm, activation, twice, beside a shortcut (He et al. 2015, arXiv:1512.03385)."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside)
        self.conv2, self.norm2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False), nn.BatchNorm2d(outside)
        changed = stride > 1 or inside != outside
        self.shortcut = nn.Sequential(
            nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)
        ) if changed else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return the features, (n, outside, height / stride, width / stride)."""
        out = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
        return functional.relu(out + self.shortcut(x))


class Residual(nn.Module):
    """A residual network for images of 32 by 32: a stem, stages of blocks, a mean over positions, a linear layer.

    Arguments:
        block: `Block` or `PreActBlock`.
        counts: blocks of each stage; from the second on a stage halves the resolution.
        widths: channels of the stem and of each stage.
        channels: of an image.
        classes: scores returned.
    """

    def __init__(
        self, block: type[Block] | type[PreActBlock], counts: tuple[int, ...], widths: tuple[int, ...], *, channels: int = 3,
        classes: int = 10,
    ) -> None:
        super().__init__()
        plain = block is Block
        self.stem = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)
        self.stem_norm = nn.BatchNorm2d(widths[0]) if plain else nn.Identity()
        blocks, inside = [], widths[0]
        for stage, (count, width) in enumerate(zip(counts, widths[1:], strict=True)):
            for at in range(count):
                blocks.append(block(inside, width, 2 if stage and not at else 1))
                inside = width
        self.blocks = nn.Sequential(*blocks)
        self.last_norm = nn.Identity() if plain else nn.BatchNorm2d(inside)
        self.plain = plain
        self.out = nn.Linear(inside, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, (n, classes), of images (n, channels, height, width)."""
        out = self.stem(x)
        if self.plain:
            out = functional.relu(self.stem_norm(out))
        out = functional.relu(self.last_norm(self.blocks(out)))
        scores: Tensor = self.out(out.mean((2, 3)))
        return scores


_BUILD: dict[str, Callable[[int, int], nn.Module]] = {
    "small-cnn": lambda channels, classes: SmallCNN(channels, classes),
    "resnet18": lambda channels, classes: Residual(
        Block, (2, 2, 2, 2), (64, 64, 128, 256, 512), channels=channels, classes=classes
    ),
    "preact-resnet18": lambda channels, classes: Residual(
        PreActBlock, (2, 2, 2, 2), (64, 64, 128, 256, 512), channels=channels, classes=classes
    ),
    # Depth 34 is 3 stages of (34 - 4) / 6 blocks (Zagoruyko and Komodakis 2016, arXiv:1605.07146).
    "wrn-34-10": lambda channels, classes: Residual(
        PreActBlock, (5, 5, 5), (16, 160, 320, 640), channels=channels, classes=classes
    ),
}
NETWORKS = tuple(_BUILD)


def build(network: str, channels: int, classes: int, seed: int) -> nn.Module:
    """Return an untrained network; the global random state stays as it is."""
    with isolated(seed):
        made = _BUILD[network](channels, classes)
    if isinstance(made, SmallCNN):
        made = SmallCNN(channels, classes, seed=seed)
    return made.eval()


def parameters(module: nn.Module) -> int:
    """Return how many weights a module has."""
    return sum(one.numel() for one in module.parameters() if isinstance(one, torch.Tensor))
