"""What is measured on every model of a study: its accuracy, and what the gradients of the same images give away."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from hauberk.core import progress
from hauberk.core.rng import derive_seed
from hauberk.core.threat import Linf
from hauberk.robustness.attack import pgd
from hauberk.study import tables
from hauberk.study.images import Images
from hauberk.study.inverting import Search, invert
from hauberk.study.settings import Settings
from hauberk.study.shelf import Shelf
from hauberk.study.tables import Row
from hauberk.study.training import accuracy, answers, at_epoch, chosen_epochs, model_name, model_of

PGD_STEPS = 20
COUNTS = ("clean", "robust", "guess", "commonest")


def names(settings: Settings) -> dict[float, str]:
    """Return what the two models of the first table are called, by their radii."""
    return {0.0: "standard", settings.headline: "robust"}


def finished(settings: Settings, shelf: Shelf) -> tuple[float, ...]:
    """Return the radii whose model is trained, and its gradients inverted from every start."""
    starts = range(settings.scale.seeds)
    return tuple(
        eps for eps in settings.radii
        if all(shelf.path(f"inverted-{model_name(eps)}-{start}.json").exists() for start in starts)
    )


def epochs_finished(settings: Settings, shelf: Shelf) -> bool:
    """Whether the gradients of both models of the first table are inverted at every chosen epoch of their training."""
    return all(
        shelf.path(f"inverted-{name}.json").exists() for eps in names(settings) for _, name in _inverted(settings, eps)
    )


def _inverted(settings: Settings, eps: float) -> list[tuple[int, str]]:
    """Return the epochs that are inverted, and under which name: the last is that of the first start."""
    epochs = settings.scale.epochs if eps else settings.scale.plain_epochs
    return [
        (epoch, f"{model_name(eps)}-0" if epoch == epochs else f"{model_name(eps)}-epoch-{epoch}-0")
        for epoch in chosen_epochs(epochs, settings.scale.over_epochs)
    ]


def measure(
    settings: Settings, shelf: Shelf, images: Images, radii: Sequence[float]
) -> tuple[list[Row], dict[float, Tensor]]:
    """Return a row for the model of each radius, and what its gradients gave away, (n, ...), of the first start."""
    scale, victims = settings.scale, images.victims(settings.scale.images)
    rows, found = list[Row](), dict[float, Tensor]()
    for eps in progress.track(radii, "models", len(radii)):
        progress.say(f"the model trained at ε = {tables.radius(eps, images.colour)}")
        module = model_of(settings, shelf, images, eps)
        starts, held = [], dict[str, Any]()
        for start in range(scale.seeds):
            figures, reconstructed = invert(
                shelf, f"{model_name(eps)}-{start}", module, victims,
                Search(scale.iterations, derive_seed(settings.seed, "start", start), settings.tv),
            )
            starts.append(figures["psnr"])
            if not start:
                held, found[eps] = figures, reconstructed
        counts = shelf.figures(f"accuracy-{model_name(eps)}", _counting(settings, images, module))
        clean, hits, guess, commonest = (tuple(counts[name]) for name in COUNTS)
        rows.append(Row(eps, clean, hits, held, starts, guess, commonest))
    return rows, found


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


def over_epochs(settings: Settings, shelf: Shelf, images: Images, eps: float) -> list[tuple[int, list[float]]]:
    """Return the PSNR of each image after each of some epochs of the training at a radius."""
    scale, points = settings.scale, []
    for epoch, name in _inverted(settings, eps):
        module = at_epoch(settings, shelf, images, model_name(eps), epoch)
        start = derive_seed(settings.seed, "start", 0)
        figures, _ = invert(shelf, name, module, images.victims(scale.images), Search(scale.iterations, start, settings.tv))
        points.append((epoch, figures["psnr"]))
    return points
