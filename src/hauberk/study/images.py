"""The images of a study: read, brought to the size of the networks, split into those trained on and those inverted."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from hauberk.core.errors import DataError
from hauberk.core.rng import generator
from hauberk.study.networks import build

Pair = tuple[Tensor, Tensor]


@dataclasses.dataclass(frozen=True)
class Images:
    """What a study learns from and inverts, all in [0, 1].

    Arguments:
        train: images trained on, (n, channels, side, side), and labels.
        test: images held out, for accuracy; the first of them are inverted.
        classes: how many.
        name: of the data.
        notes: what was done to them.
    """

    train: Pair
    test: Pair
    classes: int
    name: str
    notes: tuple[str, ...] = ()

    @property
    def colour(self) -> bool:
        """Whether there are three channels."""
        return self.train[0].shape[1] == 3

    def network(self, name: str, seed: int, width: float = 1.0) -> nn.Module:
        """Return an untrained network for these images, with that share of its channels."""
        return build(name, self.train[0].shape[1], self.classes, seed, width)

    def first(self, train: int, tested: int) -> Images:
        """Return the first images to train on and the first held out, with a note where there are fewer than asked for."""
        short = [
            f"{len(y):,} images {what}, where this scale asks for {most:,}: there are no more"
            for (_, y), most, what in ((self.train, train, "to train on"), (self.test, tested, "held out")) if len(y) < most
        ]
        sides = [(x[:most], y[:most]) for (x, y), most in ((self.train, train), (self.test, tested))]
        return dataclasses.replace(self, train=sides[0], test=sides[1], notes=(*self.notes, *short))

    def victims(self, many: int) -> Pair:
        """Return the images that are inverted: the first held-out ones of each class in turn."""
        x, y = self.test
        order = sorted(range(len(y)), key=lambda at: (int((y[:at] == y[at]).sum()), int(y[at])))[:many]
        return x[order], y[order]

    @property
    def digest(self) -> str:
        """A hash of images and labels, by which other data of the same name is told; pixels to the nearest 255th."""
        made = hashlib.sha256()
        for x, y in (self.train, self.test):
            for one in ((x * 255).round().to(torch.uint8), y.to(torch.int64)):
                made.update(one.cpu().contiguous().numpy().tobytes())
        return made.hexdigest()

    def on(self, device: str) -> Images:
        """Return the images on a device."""
        train, test = ((x.to(device), y.to(device)) for x, y in (self.train, self.test))
        return dataclasses.replace(self, train=train, test=test)


def read_images(source: str, train: int, tested: int, seed: int) -> Images:
    """Return a random part of the images of a source.

    Arguments:
        source: what `load_data` takes: `mnist.npz`, CIFAR-10, a folder of pictures, `sklearn:digits`.
        train: images to train on, at most.
        tested: images held out, at most.
        seed: of the choice.

    Raises:
        DataError: for anything but images of one or three channels with classes.
    """
    from hauberk.io.datasets import load_data

    data = load_data(Path(source) if Path(source).exists() else source)
    if data.train is None:
        raise DataError(
            f"{source} has no training split", want="a source with both, such as mnist.npz or sklearn:digits",
            fix="Give the folder that holds the files of both, with train and test in their names",
        )
    sides, notes = [], list[str]()
    for role, (split, most) in enumerate(((data.train, train), (data.test, tested))):
        order = torch.randperm(len(split), generator=generator(seed, "images", role))[:most]
        x, y = split.take(order)
        if x.ndim != 4 or x.shape[1] not in (1, 3) or y.is_floating_point():
            told = f"{source} holds samples of shape {tuple(x.shape[1:])}"
            raise DataError(
                told, want="images (1 or 3, height, width) with classes", fix="Give arrays of images a channel axis, or bytes"
            )
        if not bool(x.isfinite().all()):
            raise DataError(f"{source} holds pixels that are not finite", want="finite numbers", fix="Leave those images out")
        low, high = float(torch.as_tensor(data.bounds[0]).min()), float(torch.as_tensor(data.bounds[1]).max())
        x = (x.float() - low) / max(high - low, 1e-12)
        side = 28 if x.shape[1] == 1 else 32
        if x.shape[-2:] != (side, side):
            if not role:
                notes.append(f"images of {x.shape[-2]} x {x.shape[-1]} were brought to {side} x {side}")
            x = functional.interpolate(x, (side, side), mode="bilinear").clamp(0, 1)
        sides.append((x, y))
    if len(sides[0][1].unique()) < 2:
        raise DataError(f"{source} holds {len(sides[0][1].unique())} classes to train on", want="at least 2")
    classes = int(max(int(y.max()) for _, y in sides)) + 1
    name = Path(source).name if Path(source).exists() else source
    return Images(sides[0], sides[1], classes, name, tuple(notes))
