"""Pictures as samples: decoded when they are read, never before. Folders of them, one subfolder per class."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import struct
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from hauberk.core.errors import DataError
from hauberk.io.arrays import BYTE_SCALE
from hauberk.io.parts import SINGLE, Part, Source

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")  # no format that runs another program
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
PIXEL_LIMIT = 1 << 26
BYTE_LIMIT = 1 << 28
PROBES = 64
ROLES = {"train": ("train", "training"), "test": ("test", "testing", "val", "valid", "validation")}
_BROKEN = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, OverflowError, MemoryError, IndexError, KeyError, TypeError,
    Image.DecompressionBombError, Image.DecompressionBombWarning,
)

Shape = tuple[int, int, int]


def decode(source: Path | bytes, where: str, expected: Shape) -> NDArray[np.uint8]:
    """Return one picture as bytes, (1 or 3, height, width).

    Arguments:
        source: a file, or the content of one.
        where: for messages.
        expected: the shape it must have, checked before it is decoded; gray pictures become RGB where that is expected.

    Raises:
        DataError: for anything that is no whole picture of that shape, or has more than 67 million pixels.
    """
    with _opened(source, where) as picture:
        mode = _fitting(_shape(picture, where), expected, where)
        values = np.asarray(picture if picture.mode == mode else picture.convert(mode), np.uint8)
    return values[None] if values.ndim == 2 else values.transpose(2, 0, 1)


def common_shape(pictures: Iterable[tuple[Path | bytes, str]]) -> Shape:
    """Return the shape for pictures of one size: that of the first, with three channels if any of them has colours.

    Raises:
        DataError: for anything that is no picture within the limits.
    """
    shapes: list[Shape] = []
    for source, where in pictures:
        with _opened(source, where) as picture:
            shapes.append(_shape(picture, where))
    return (max(shape[0] for shape in shapes), *shapes[0][1:])


@contextlib.contextmanager
def _opened(source: Path | bytes, where: str) -> Iterator[Image.Image]:
    try:
        size = source.stat().st_size if isinstance(source, Path) else len(source)
        if size > BYTE_LIMIT:
            raise DataError(f"{where} has {size} bytes", want=f"a picture of at most {BYTE_LIMIT}")
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # Notes on odd metadata do not concern the pixels.
            warnings.filterwarnings("ignore", category=UserWarning, module="PIL")
            with Image.open(source if isinstance(source, Path) else io.BytesIO(source), formats=FORMATS) as picture:
                yield picture
    except UnidentifiedImageError as error:
        raise DataError(f"{where} is not a picture", want=", ".join(FORMATS), fix="Leave it out, or convert it to PNG") from error
    except _BROKEN as error:
        raise DataError(
            f"{where} cannot be decoded ({type(error).__name__}: {error})", want="a whole picture",
            fix="Copy the file again, or leave it out",
        ) from error


def _shape(picture: Image.Image, where: str) -> Shape:
    width, height = picture.size
    if width * height > PIXEL_LIMIT:
        raise DataError(f"{where} has {width} x {height} pixels", want=f"at most {PIXEL_LIMIT} pixels",
                        fix="Scale it down, or leave it out")
    if picture.mode in ("I", "F") or picture.mode.startswith("I;"):
        raise DataError(f"{where} has more than 8 bits per channel (mode {picture.mode})", want="8 bits per channel",
                        fix="Convert it, or give the samples as .npz with floating numbers")
    return 1 if picture.mode in ("L", "1") else 3, height, width


def _fitting(shape: Shape, expected: Shape, where: str) -> str:
    if shape[1:] != expected[1:]:
        raise DataError(
            f"{where} has {shape[2]} x {shape[1]} pixels", want=f"{expected[2]} x {expected[1]} as the first picture has",
            fix="Resize all pictures to the input of the model, or give a torch Dataset that does",
        )
    if expected[0] == 1 and shape[0] == 3:
        raise DataError(f"{where} has colours", want="gray as in the others", fix="Convert all to gray, or all to RGB")
    return "L" if expected[0] == 1 else "RGB"


@dataclasses.dataclass
class ImageFiles:
    """Pictures in files of one size; a batch is decoded when it is asked for. All become RGB if one of 64 spread over them is."""

    files: Sequence[Path]

    def __post_init__(self) -> None:
        probed = self.files[:: max(1, len(self.files) // PROBES)]
        self.size: Shape = common_shape((file, str(file)) for file in probed)

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, channels, height, width)."""
        return (len(self.files), *self.size)

    def __len__(self) -> int:
        return len(self.files)

    def take(self, index: Tensor) -> Tensor:
        """Return the pictures at those positions, in [0, 1]."""
        made = np.empty((index.numel(), *self.size), np.uint8)
        for row, at in enumerate(index.reshape(-1).tolist()):
            made[row] = decode(self.files[at], str(self.files[at]), self.size)
        return torch.from_numpy(made).to(torch.get_default_dtype()) * BYTE_SCALE


def open_folder(path: Path) -> Source:
    """Return the pictures of a folder with a subfolder per class, or of its folders `train` and `test` (or `val`).

    Classes are coded in the sorted order of their folders, as the training folder has them.

    Raises:
        DataError: for a folder without classes or pictures.
    """
    folders = {one.name.lower(): one for one in sorted(path.iterdir()) if one.is_dir() and not one.name.startswith(".")}
    roles = {role: next((folders[name] for name in names if name in folders), None) for role, names in ROLES.items()}
    if any(roles.values()):
        parts = {role: _part(folder) for role, folder in roles.items() if folder is not None}
        # One role that happens to be gray is read as the other is.
        rows = [part.x for part in parts.values() if isinstance(part.x, ImageFiles)]
        for one in rows:
            one.size = (max(other.size[0] for other in rows), *one.size[1:])
    else:
        parts = {SINGLE: _part(path)}
    return Source(str(path), parts, path.resolve().name, modality="image")


def _part(folder: Path) -> Part:
    classes = sorted(one.name for one in folder.iterdir() if one.is_dir() and not one.name.startswith("."))
    files: list[Path] = []
    labels: list[str] = []
    for name in classes:
        inside = [
            Path(place) / one for place, _, names in os.walk(folder / name) for one in names if one.lower().endswith(SUFFIXES)
        ]
        if not inside:
            raise DataError(f"{folder / name} holds no pictures", want=f"files ending in {', '.join(SUFFIXES)}",
                            fix="Fill the class, or remove its folder")
        files += sorted(inside)
        labels += [name] * len(inside)
    if not files:
        raise DataError(
            f"{folder} is not a folder of data that is understood",
            want="a subfolder of pictures per class, MNIST's IDX files, CIFAR batches, or Parquet files",
            fix="Look at what it holds",
        )
    return Part(ImageFiles(files), np.asarray(labels), str(folder), class_names=classes)
