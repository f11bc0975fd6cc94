"""The study of robustness and leakage: adversarially trained models give away more through their gradients; how much, and why."""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from pathlib import Path

import torch

import hauberk
from hauberk.core.errors import DataError, UsageError, nearest
from hauberk.core.files import refuse_unwritable
from hauberk.core.finding import Finding
from hauberk.report.report import Report
from hauberk.report.words import plural
from hauberk.study import tables, verdict
from hauberk.study.effects import side_effects
from hauberk.study.images import Images, read_images
from hauberk.study.measuring import epochs_finished, finished, measure, names, over_epochs
from hauberk.study.networks import NETWORKS, build, parameters
from hauberk.study.settings import HEADLINE, PATH, RADII, TV, Settings, scale_named
from hauberk.study.shelf import STUDY, Shelf

NAMES = ("robustness-privacy",)


def run_study(
    source: str, folder: str | Path, *, scale: str = "smoke", network: str = "", seed: int = 0, device: str = "cpu",
    only_finished: bool = False,
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
        only_finished: report what a broken-off study has so far, and train and invert nothing.

    Returns:
        The report, with its folder written.

    Raises:
        DataError: for data that are no images with classes.
        UsageError: for an unknown scale, network or device, a folder that holds something else, or a study without a model
            that is finished where only finished ones are asked for.
    """
    began, place = time.monotonic(), Path(folder)
    sizes = [scale_named(scale, one) for one in NETWORKS]
    device = _device(device)
    _refuse_unknown(network)
    _refuse_taken(place)
    images = read_images(source, max(one.train for one in sizes), max(one.tested for one in sizes), seed)
    network = network_for(network, images)
    size = scale_named(scale, network)
    images = images.first(size.train, size.tested)
    if len(images.test[1]) < size.images:
        raise DataError(
            f"{source} holds {plural(len(images.test[1]), 'held-out image')}",
            want=f"at least the {size.images} that are inverted", fix="Give data with more held-out images",
        )
    kind = "colour" if images.colour else "gray"
    settings = Settings(size, network, RADII[kind], HEADLINE[kind], PATH[kind], TV[network], seed, device)
    shelf = Shelf(place / "parts", {**settings.fingerprint(), "data": images.name, "digest": images.digest})
    report = Report(_findings(settings, shelf, images.on(settings.device), only_finished), {
        "study": {
            "name": NAMES[0], "scale": size.name, "network": settings.network,
            **({"share of channels": f"1/{1 / size.width:.0f}"} if size.width < 1 else {}),
            "radii": [tables.radius(one, images.colour) for one in settings.radii],
        },
        "data": {"name": images.name, "n_train": len(images.train[1]), "n_test": len(images.test[1])},
        "seed": seed, "seconds": round(time.monotonic() - began, 1), "device": settings.device,
        "notices": [*images.notes, *shelf.taken_up],
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


def _findings(settings: Settings, shelf: Shelf, images: Images, only_finished: bool) -> list[Finding]:
    colour, chosen = images.colour, settings.radii
    if only_finished:
        chosen = finished(settings, shelf)
        if not chosen:
            told = f"no model of the study in {shelf.folder} is finished"
            raise UsageError(told, want="at least one", fix="Go on with it first")
    rows, found = measure(settings, shelf, images, chosen)
    guess = tables.guessed(images.train[0], images.victims(settings.scale.images)[0])
    notes = [*_notes(settings, images), *(_missing(settings, shelf, chosen, colour) if only_finished else [])]
    shown = [
        tables.table("By radius of training", rows, guess, colour), tables.over_radii(rows, guess, colour),
        tables.stability(rows, colour),
    ]
    told, rest = verdict.on_radii(rows, guess.psnr, colour)
    second = tables.by_radius(rows, shown, told, [*rest, *notes])
    pair = {name: row for row in rows for eps, name in names(settings).items() if row.eps == eps}
    if len(pair) < 2:
        return [second]
    pictures = tables.galleries(
        images.victims(settings.scale.images)[0], {name: found[row.eps] for name, row in pair.items()},
        {name: row.figures["psnr"] for name, row in pair.items()},
    )
    curves = [tables.over_starts(pair)]
    if settings.scale.over_epochs > 1 and (not only_finished or epochs_finished(settings, shelf)):
        points = {name: over_epochs(settings, shelf, images, eps) for eps, name in names(settings).items()}
        curves = [tables.over_epochs(points), *curves]
    standard, robust = pair["standard"], pair["robust"]
    first = tables.against(
        standard, robust, [tables.table("Standard against robust", [standard, robust], guess, colour), *pictures, *curves],
        verdict.on_two(standard, robust, guess.psnr, colour), notes,
    )
    effects = settings.scale.effects and not only_finished
    return [first, second, *([side_effects(settings, shelf, images)] if effects else [])]


def _notes(settings: Settings, images: Images) -> list[str]:
    scale = settings.scale
    steps = plural(scale.attack_steps, "step")
    return [
        f"{plural(scale.images, 'image')}, {plural(scale.iterations, 'iteration')}, {plural(scale.seeds, 'start')}; intervals "
        "resample the images (95 %), PSNR is the mean over starts, other figures are of the first",
        f"the adversary of training walks {steps} of {settings.path / scale.attack_steps:.3g} at most, "
        f"{settings.path:.3g} together, as the talk's did: at larger radii it does not reach the edge",
        f"accuracy under PGD is at ε = {tables.radius(settings.headline, images.colour)} on every model, wherever it was trained",
        "gradients are those of single images in evaluation mode, their labels known: the worst case for a client",
        "one model is trained at each radius: intervals tell how other images would fare, not how another training would",
        *_narrowed(settings, images),
    ]


def _missing(settings: Settings, shelf: Shelf, chosen: Sequence[float], colour: bool) -> list[str]:
    """Say what a report of finished models alone leaves out."""
    left = [tables.radius(eps, colour) for eps in settings.radii if eps not in chosen]
    told = [f"models at ε = {', '.join(left)}"] if left else []
    told += [] if epochs_finished(settings, shelf) else ["PSNR over the epochs of training"]
    told += ["the side effects of defences"] if settings.scale.effects else []
    return [f"left out, for they are not finished: {', '.join(told)}"] if told else []


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
