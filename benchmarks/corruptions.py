"""The nineteen corruptions of ImageNet-C at 224 pixels beside the published arithmetic, and 32-pixel batches, on one thread.

The peer is the package `imagecorruptions`, which no longer imports on NumPy 2: four names that have moved or gone are put back
before it is loaded, and its arithmetic runs as it is. It takes one image at a time.
"""

from __future__ import annotations

import contextlib
import io
import math
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torch import Tensor
from torch.nn import functional

from harness import PEERS, alternate, ratios, save
from hauberk.core import rng
from hauberk.methods import load_methods

SEVERITIES, IMAGES, ROUNDS = (1, 3, 5), 4, 5
NAMES = {
    "gaussian-noise": "gaussian_noise", "shot-noise": "shot_noise", "impulse-noise": "impulse_noise",
    "speckle-noise": "speckle_noise", "defocus-blur": "defocus_blur", "glass-blur": "glass_blur", "motion-blur": "motion_blur",
    "zoom-blur": "zoom_blur", "gaussian-blur": "gaussian_blur", "snow": "snow", "frost": "frost", "fog": "fog",
    "brightness": "brightness", "contrast": "contrast", "elastic-transform": "elastic_transform", "pixelate": "pixelate",
    "jpeg": "jpeg_compression", "saturate": "saturate", "spatter": "spatter",
}
# The same arithmetic on both sides, and neither Python loops over pixels nor photographs read from disk in the peer.
TWELVE = (
    "gaussian-noise", "shot-noise", "impulse-noise", "defocus-blur", "motion-blur", "zoom-blur", "fog", "brightness", "contrast",
    "elastic-transform", "pixelate", "saturate",
)
SMALL = (
    "gaussian-blur", "rotate", "gaussian-noise", "uniform-noise", "salt-and-pepper", "defocus-blur", "motion-blur", "translate",
)


def peer() -> Any:
    """Return the module `imagecorruptions.corruptions`, with what NumPy 2, setuptools and scikit-image took away put back."""
    import skimage.filters
    from scipy import ndimage

    moved = types.ModuleType("scipy.ndimage.interpolation")
    moved.map_coordinates = ndimage.map_coordinates  # type: ignore[attr-defined]
    resources = types.ModuleType("pkg_resources")
    resources.resource_filename = lambda package, path: str(PEERS / "imagecorruptions" / path)  # type: ignore[attr-defined]
    sys.modules.setdefault("scipy.ndimage.interpolation", moved)
    sys.modules.setdefault("pkg_resources", resources)
    vars(np)["float_"] = np.float64
    real = skimage.filters.gaussian

    def gaussian(image: Any, sigma: Any, multichannel: bool = False, **options: Any) -> Any:
        return real(image, sigma, channel_axis=-1 if multichannel else None, **options)

    skimage.filters.gaussian = gaussian
    package = types.ModuleType("imagecorruptions")
    package.__path__ = [str(PEERS / "imagecorruptions")]
    sys.modules.setdefault("imagecorruptions", package)
    import imagecorruptions.corruptions as found

    return found


def photos() -> Tensor:
    """Four crops of two real photographs, (4, 3, 224, 224)."""
    crops = []
    for name in ("china.jpg", "flower.jpg"):
        pixels = torch.tensor(load_sample_image(name)).permute(2, 0, 1).float() / 255
        crops += [pixels[:, 100:324, left : left + 224] for left in (100, 350)]
    return torch.stack(crops)


def large(corruptions: Any, functions: dict[str, Callable[..., Tensor]]) -> tuple[list[list[str]], dict[str, Any]]:
    """Return a row for each corruption at 224 pixels, and the figures."""
    x = photos()
    sheets = [Image.fromarray(np.ascontiguousarray((one * 255).byte().permute(1, 2, 0).numpy())) for one in x]
    rows, content, gains = [], {}, {}
    for name, theirs in NAMES.items():
        run, other = functions[name], getattr(corruptions, theirs)
        slow = name == "glass-blur"

        def ours(run: Callable[..., Tensor] = run) -> None:
            for severity in SEVERITIES:
                run(x, severity, generator=rng.generator(severity, "bench"))

        def published(other: Callable[..., Any] = other) -> None:
            with contextlib.redirect_stdout(io.StringIO()):
                for severity in SEVERITIES:
                    for sheet in sheets:
                        np.uint8(other(sheet, severity))

        times = alternate({"ours": ours, "published": published}, rounds=1 if slow else ROUNDS)
        table = ratios(times, "ours")
        each = {key: 1000 * row["seconds"] / len(SEVERITIES) / IMAGES for key, row in table.items()}
        row = table["published"]
        gains[name] = row["ratio"]
        content[name] = {"milliseconds": each, "published_over_ours": row}
        rows.append([
            name, f"{each['ours']:.2f}", f"{each['published']:.2f}",
            f"{row['ratio']:.2f} [{row['least']:.2f}, {row['greatest']:.2f}]", "yes" if name in TWELVE else "",
        ])
        print(rows[-1], flush=True)

    def mean(names: tuple[str, ...]) -> float:
        return math.exp(sum(math.log(gains[one]) for one in names) / len(names))

    content["geometric_mean"] = {"twelve": mean(TWELVE), "nineteen": mean(tuple(gains))}
    content["least"] = {"twelve": min(gains[one] for one in TWELVE), "nineteen": min(gains.values())}
    return rows, content


def small(functions: dict[str, Callable[..., Tensor]]) -> dict[str, float]:
    """Return milliseconds an image at 32 pixels in a batch of 512, the median of the rounds, severity 3."""
    x = functional.interpolate(photos(), size=32, mode="area").repeat(128, 1, 1, 1)
    runs = {name: lambda name=name: functions[name](x, 3, generator=rng.generator(0, "bench")) for name in SMALL}
    times = alternate(runs, rounds=2 * ROUNDS + 1, warm_up=2)
    return {name: 1000 * sorted(seconds)[ROUNDS] / len(x) for name, seconds in times.items()}


def main() -> None:
    """Run everything and write the table."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    np.random.seed(0)
    functions = {card.name: card.function for card in load_methods().cards("corruption")}
    per_image = small(functions)
    print(per_image, flush=True)
    if not Path(PEERS / "imagecorruptions").is_dir():
        print("imagecorruptions is left out: it is not installed")
        return
    rows, content = large(peer(), functions)
    gains, least = content["geometric_mean"], content["least"]
    save(
        "corruptions", "ImageNet-C corruptions at 224 pixels, one thread", {"large": content, "small_milliseconds": per_image},
        ["corruption", "hauberk, ms an image", "published, ms", "times faster, median [least, greatest]", "of the twelve"],
        rows,
        [
            f"Severities {', '.join(map(str, SEVERITIES))}, {IMAGES} crops of two photographs, {ROUNDS} rounds (glass blur 1),",
            "in turn, process CPU time. The peer is imagecorruptions 1.1.2, one image at a time, with what NumPy 2 took",
            "away put back. Its elastic transform leaves out the affine step, and its frost reads photographs from disk. Its",
            "pixelate and JPEG are Pillow on bytes from end to end; ours take floats and return them, which costs as much again.",
            f"Geometric mean: {gains['twelve']:.2f} over the twelve, {gains['nineteen']:.2f} over all; least",
            f"{least['twelve']:.2f} and {least['nineteen']:.2f}.",
            "",
            "32 pixels, batch 512, ms an image: " + ", ".join(f"{name} {value:.4f}" for name, value in per_image.items()) + ".",
        ],
    )


if __name__ == "__main__":
    main()
