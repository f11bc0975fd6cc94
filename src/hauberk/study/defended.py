"""The defences that are compared by their side effects, each as a way to train, or to change what a client sends."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from hauberk.core.data import Split
from hauberk.core.rng import derive_seed, generator
from hauberk.core.train import Loss, Schedule, cross_entropy, fit
from hauberk.privacy.dp import PrivateOptions, make_private
from hauberk.privacy.inversion.defences import gaussian_noise, prune
from hauberk.privacy.inversion.defences import private as clipped_and_noised
from hauberk.study.inverting import Defence
from hauberk.study.settings import Settings
from hauberk.study.training import Growing

BATCH = 64
NOISE_MULTIPLIER, CLIP = 1.0, 1.0
PRUNED, NOISY, PRIVATELY = ("prune", 0.9), ("gaussian-noise", 1.0), ("private", NOISE_MULTIPLIER)


@dataclasses.dataclass(frozen=True)
class Defended:
    """One row of the comparison.

    Arguments:
        name: of the defence.
        train: trains a model in place on a split: `(model, split, settings, seed) -> what to say of it`.
        sends: changes the gradients that a client sends; None sends them as they are.
        same: the row whose models these are, where only the gradients that are sent differ.
        known: name and strength of what is done to the gradients, which whoever inverts them is taken to know.
    """

    name: str
    train: Callable[[nn.Module, Split, Settings, int], str]
    sends: Defence | None = None
    same: str = ""
    known: tuple[str, float] | None = None


def plain(model: nn.Module, split: Split, settings: Settings, seed: int) -> str:
    """Train as usual."""
    fit(model, split, schedule=_schedule(settings.scale.plain_epochs, seed))
    return ""


def smoothed(model: nn.Module, split: Split, settings: Settings, seed: int) -> str:
    """Train towards labels of which a tenth is spread over all classes (Szegedy et al. 2016, arXiv:1512.00567)."""

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(model(x), y, label_smoothing=0.1)

    fit(model, split, loss=loss, schedule=_schedule(settings.scale.plain_epochs, seed))
    return ""


def robust(model: nn.Module, split: Split, settings: Settings, seed: int) -> str:
    """Train on worst cases alone (Madry et al. 2018, arXiv:1706.06083)."""
    return _adversarial(model, split, settings, seed, mixed=False)


def mixed(model: nn.Module, split: Split, settings: Settings, seed: int) -> str:
    """Train on the clean images and on their worst cases, half and half (Goodfellow et al. 2015, arXiv:1412.6572)."""
    return _adversarial(model, split, settings, seed, mixed=True)


def _adversarial(model: nn.Module, split: Split, settings: Settings, seed: int, *, mixed: bool) -> str:
    epochs = settings.scale.plain_epochs
    growing = Growing(
        settings.headline, settings.scale.attack_steps, epochs * -(-len(split) // BATCH) // 2, settings.path
    )

    def both(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (cross_entropy(model, x, y) + growing.loss(model, x, y))

    loss: Loss = both if mixed else growing.loss
    fit(model, split, loss=loss, schedule=_schedule(epochs, seed), callbacks=[growing])
    return ""


def private(model: nn.Module, split: Split, settings: Settings, seed: int) -> str:
    """Train with differential privacy (Abadi et al. 2016, arXiv:1607.00133); seeded, so that the study can be repeated."""
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    size = min(len(split), 4 * BATCH)
    made = make_private(
        model, optimizer, split, batch_size=size, noise_multiplier=NOISE_MULTIPLIER, clip=CLIP, options=PrivateOptions(seed=seed)
    )
    # As many steps as ordinary training takes: larger batches mean more passes.
    epochs = max(1, round(settings.scale.plain_epochs * size / BATCH))
    fit(model, split, optimizer=optimizer, gradients=made, schedule=_schedule(epochs, seed, size))
    spent = made.spent()
    return f"ε = {spent.epsilon:.2f} at δ = {spent.delta:g}"


def pruned(gradients: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    """Drop the smallest nine tenths of each parameter's gradient."""
    return prune(gradients, 0.9)


def noisy(gradients: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    """Add as much noise as there is gradient."""
    return gaussian_noise(gradients, 1.0, generator=generator(derive_seed(0, "sent", index)))


def privately(gradients: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    """Clip the gradient and add the noise of a step of private training, as who trains so would send it."""
    drawn = generator(derive_seed(0, "sent privately", index))
    return clipped_and_noised(gradients, NOISE_MULTIPLIER, norm=CLIP, generator=drawn)


def _schedule(epochs: int, seed: int, size: int = BATCH) -> Schedule:
    return Schedule(epochs=epochs, batch_size=size, seed=seed)


ROWS = (
    Defended("standard", plain),
    Defended("label smoothing", smoothed),
    Defended("adversarial training", robust),
    Defended("mixed training", mixed),
    Defended("DP-SGD", private),
    Defended("DP-SGD, gradients clipped and noised as in training", private, privately, "DP-SGD", PRIVATELY),
    Defended("standard, gradients pruned to a tenth", plain, pruned, "standard", PRUNED),
    Defended("standard, gradients with as much noise", plain, noisy, "standard", NOISY),
    Defended("adversarial training, gradients pruned to a tenth", robust, pruned, "adversarial training", PRUNED),
    Defended("adversarial training, gradients with as much noise", robust, noisy, "adversarial training", NOISY),
)
