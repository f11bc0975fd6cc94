"""The study of robustness and leakage: adversarially trained models give away more through their gradients; how much, and why."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import hauberk
from hauberk.core import progress
from hauberk.core.errors import DataError, UsageError, nearest
from hauberk.core.files import refuse_unwritable
from hauberk.core.finding import Finding
from hauberk.core.rng import derive_seed
from hauberk.core.threat import Linf
from hauberk.report.report import Report
from hauberk.report.words import plural
from hauberk.robustness.attack import pgd
from hauberk.study import tables, verdict
from hauberk.study.effects import side_effects
from hauberk.study.images import Images, read_images
from hauberk.study.inverting import invert
from hauberk.study.networks import NETWORKS, build, parameters
from hauberk.study.settings import HEADLINE, PATH, RADII, TV, Settings, scale_named
from hauberk.study.shelf import STUDY, Shelf
from hauberk.study.tables import Row
from hauberk.study.training import accuracy, answers, at_epoch, chosen_epochs, model_name, model_of

PGD_STEPS = 20
COUNTS = ("clean", "robust", "guess", "commonest")
NAMES = ("robustness-privacy",)


def run_study(
    source: str, folder: str | Path, *, scale: str = "smoke", network: str = "", seed: int = 0, device: str = "cpu",
) -> Report:
    """Train models at growing radii, invert the gradients of the same images on each, and report what the data support.

    Everything finished is kept in the folder; the same call goes on where it was broken off.

    Arguments:
        source: images that `load_data` reads: `mnist.npz`, CIFAR-10, a folder of pictures, or `sklearn:digits`.
        folder: of the parts and the report.
        scale: `smoke` (minutes), `scaled` (hours on a CPU), `full` (a GPU).
        network: a name of `networks.NETWORKS`; empty takes small-cnn for gray images, preact-resnet18 for colour.
        seed: all randomness is derived from it.
        device: where models are trained and inverted.

    Returns:
        The report, with its folder written.

    Raises:
        DataError: for data that are no images with classes.
        UsageError: for an unknown scale, network or device, or a folder that holds another study.
    """
    began, whole, place = time.monotonic(), scale_named(scale), Path(folder)
    device = _device(device)
    _refuse_unknown(network)
    _refuse_taken(place)
    images = read_images(source, whole.train, whole.tested, seed)
    network = network_for(network, images)
    size = scale_named(scale, network)
    images = images.first(size.train, size.tested)
    if len(images.test[1]) < size.images:
        raise DataError(
            f"{source} holds {plural(len(images.test[1]), 'held-out image')}",
            want=f"at least the {size.images} that are inverted", fix="Give data with more held-out images",
        )
    kind = "colour" if images.colour else "gray"
    settings = Settings(size, network, RADII[kind], HEADLINE[kind], PATH[kind], TV[kind], seed, device)
    shelf = Shelf(place / "parts", {**settings.fingerprint(), "data": images.name, "digest": images.digest})
    report = Report(_findings(settings, shelf, images.on(settings.device)), {
        "study": {
            "name": NAMES[0], "scale": size.name, "network": settings.network, "radii": [round(one, 4) for one in settings.radii],
        },
        "data": {"name": images.name, "n_train": len(images.train[1]), "n_test": len(images.test[1])},
        "seed": seed, "seconds": round(time.monotonic() - began, 1), "device": settings.device, "notices": list(images.notes),
        "command": _command(source, place, scale, network, seed, device),
        "versions": {"hauberk": hauberk.__version__, "torch": torch.__version__},
    })
    report.to_html(place)
    return report


def _command(source: str, place: Path, scale: str, network: str, seed: int, device: str) -> str:
    """Return the command that goes on with, or repeats, a study."""
    words = ["hauberk", "study", NAMES[0], "--data", source, "--scale", scale, "--network", network, "--output", str(place)]
    words += ["--seed", str(seed)] if seed else []
    return shlex.join([*words, *(["--device", device] if device != "cpu" else [])])


def network_for(name: str, images: Images) -> str:
    """Return the network of that name, or the one for these images.

    Raises:
        UsageError: for an unknown name, or a network for images of another size.
    """
    found = name or ("preact-resnet18" if images.colour else "small-cnn")
    _refuse_unknown(found)
    if found == "small-cnn" and images.colour:
        raise UsageError("small-cnn is for gray images of 28 by 28", want="a residual network", fix="Name preact-resnet18")
    return found


def _refuse_unknown(network: str) -> None:
    if network and network not in NETWORKS:
        raise UsageError(f"the network is '{network}'", want=" | ".join(NETWORKS), fix=nearest(network, list(NETWORKS)))


def _refuse_taken(place: Path) -> None:
    """Raise UsageError for a folder that cannot be written, or whose report is none of a study: it would be overwritten."""
    refuse_unwritable(place / "index.html")
    if (place / "report.json").exists() and not (place / "parts" / STUDY).exists():
        raise UsageError(
            f"{place} holds the report of something else", want="a new folder, or that of a study", fix="Choose another --output"
        )


def _device(name: str) -> str:
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"the device is '{name}'", want="one that torch has here", fix="Try cpu") from error
    return name


def _findings(settings: Settings, shelf: Shelf, images: Images) -> list[Finding]:
    scale, victims = settings.scale, images.victims(settings.scale.images)
    rows, found = list[Row](), {}
    stages = progress.track(settings.radii, "models", len(settings.radii))
    for eps in stages:
        progress.say(f"the model trained at ε = {tables.radius(eps, images.colour)}")
        module = model_of(settings, shelf, images, eps)
        starts, held = [], dict[str, Any]()
        for start in range(scale.seeds):
            figures, reconstructed = invert(
                shelf, f"{model_name(eps)}-{start}", module, victims, iterations=scale.iterations,
                seed=derive_seed(settings.seed, "start", start), tv=settings.tv,
            )
            starts.append(figures["psnr"])
            if not start:
                held, found[eps] = figures, reconstructed
        counts = shelf.figures(f"accuracy-{model_name(eps)}", _counting(settings, images, module))
        clean, hits, guess, commonest = (tuple(counts[name]) for name in COUNTS)
        rows.append(Row(eps, clean, hits, held, starts, guess, commonest))
    standard, robust = (next(row for row in rows if row.eps == eps) for eps in (0.0, settings.headline))
    names = {0.0: "standard", settings.headline: "robust"}
    guess = tables.guessed(images.train[0], victims[0])
    curve = tables.over_epochs({
        name: _over_epochs(settings, shelf, images, eps) for eps, name in names.items()
    }) if scale.over_epochs > 1 else None
    pair = {"standard": standard, "robust": robust}
    pictures = tables.galleries(
        victims[0], {name: found[eps] for eps, name in names.items()}, {name: row.figures["psnr"] for name, row in pair.items()}
    )
    notes = [
        f"{len(victims[1])} images, {scale.iterations} iterations, {scale.seeds} starts; intervals resample the images (95 %), "
        "PSNR is the mean over starts, other figures are of the first",
        f"the adversary of training walks {scale.attack_steps} steps of {settings.path / scale.attack_steps:.3g} at most, "
        f"{settings.path:.3g} together, as the talk's did: at larger radii it does not reach the edge",
        f"accuracy under PGD is at ε = {tables.radius(settings.headline, images.colour)} on every model, wherever it was trained",
        "gradients are those of single images in evaluation mode, their labels known: the worst case for a client",
        "one model is trained at each radius: intervals tell how other images would fare, not how another training would",
        *_narrowed(settings, images),
    ]
    beside = tables.table("Standard against robust", [standard, robust], guess, images.colour)
    first = tables.against(
        standard, robust, [beside, *pictures, *([curve] if curve else []), tables.over_starts(pair)],
        verdict.on_two(standard, robust, images.colour), notes,
    )
    colour = images.colour
    shown = [
        tables.table("By radius of training", rows, guess, colour), tables.over_radii(rows, guess, colour),
        tables.stability(rows, colour),
    ]
    second = tables.by_radius(
        rows, shown,
        verdict.on_radii(rows, guess.psnr, images.colour), notes,
    )
    return [first, second, *([side_effects(settings, shelf, images)] if scale.effects else [])]


def _narrowed(settings: Settings, images: Images) -> list[str]:
    """Say what of the network is kept, where it is not all of it."""
    share, channels = settings.scale.width, images.train[0].shape[1]
    if share == 1 or settings.network == "small-cnn":
        return []
    kept, whole = (parameters(build(settings.network, channels, images.classes, 0, one)) for one in (share, 1.0))
    return [
        f"at this scale {settings.network} keeps 1/{1 / share:.0f} of its channels, {kept:,} of {whole:,} weights, and learns "
        f"from {len(images.train[1]):,} images: these figures are not those of the network of the paper"
    ]


def _counting(settings: Settings, images: Images, module: nn.Module) -> Callable[[], dict[str, Any]]:
    def count() -> dict[str, Any]:
        x, y = images.test
        some = min(len(x), settings.scale.tested // 2)
        z = pgd(module, x[:some], y[:some], Linf(settings.headline), steps=PGD_STEPS, seed=derive_seed(settings.seed, "pgd"))
        hits = accuracy(module, z, y[:some])
        told = answers(module, x)
        n = len(y)
        return {
            "clean": [int((told == y).sum()), n], "robust": [int(hits.sum()), some],
            "guess": [int(y.bincount().max()), n], "commonest": [int(told.bincount().max()), n],
        }

    return count


def _over_epochs(settings: Settings, shelf: Shelf, images: Images, eps: float) -> list[tuple[int, list[float]]]:
    scale = settings.scale
    epochs = scale.epochs if eps else scale.plain_epochs
    points = []
    for epoch in chosen_epochs(epochs, scale.over_epochs):
        name = f"{model_name(eps)}-0" if epoch == epochs else f"{model_name(eps)}-epoch-{epoch}-0"
        module = at_epoch(settings, shelf, images, model_name(eps), epoch)
        start = derive_seed(settings.seed, "start", 0)
        figures, _ = invert(
            shelf, name, module, images.victims(scale.images), iterations=scale.iterations, seed=start, tv=settings.tv
        )
        points.append((epoch, figures["psnr"]))
    return points
