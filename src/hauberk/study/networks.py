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


LEAST = 8  # channels, however narrow


def _residual(
    block: type[Block] | type[PreActBlock], counts: tuple[int, ...], widths: tuple[int, ...]
) -> Callable[[int, int, float], nn.Module]:
    def build(channels: int, classes: int, share: float) -> nn.Module:
        kept = widths if share == 1 else tuple(max(LEAST, round(share * width)) for width in widths)
        return Residual(block, counts, kept, channels=channels, classes=classes)

    return build


_RESIDUAL = {
    "resnet18": _residual(Block, (2, 2, 2, 2), (64, 64, 128, 256, 512)),
    "preact-resnet18": _residual(PreActBlock, (2, 2, 2, 2), (64, 64, 128, 256, 512)),
    # Depth 34 is 3 stages of (34 - 4) / 6 blocks (Zagoruyko and Komodakis 2016, arXiv:1605.07146).
    "wrn-34-10": _residual(PreActBlock, (5, 5, 5), (16, 160, 320, 640)),
}
NETWORKS = ("small-cnn", *_RESIDUAL)


def build(network: str, channels: int, classes: int, seed: int, width: float = 1.0) -> nn.Module:
    """Return an untrained network; the global random state stays as it is.

    Arguments:
        network: one of `NETWORKS`.
        channels: of an image.
        classes: scores returned.
        seed: of the weights.
        width: share of its channels that a residual network keeps, at least 8 of each stage; small-cnn keeps all.
    """
    if network not in _RESIDUAL:
        return SmallCNN(channels, classes, seed=seed).eval()
    with isolated(seed):
        return _RESIDUAL[network](channels, classes, width).eval()


def parameters(module: nn.Module) -> int:
    """Return how many weights a module has."""
    return sum(one.numel() for one in module.parameters() if isinstance(one, torch.Tensor))
