"""How large a study is."""

from __future__ import annotations

import dataclasses
from typing import Any

from hauberk.core.errors import UsageError, nearest


@dataclasses.dataclass(frozen=True)
class Scale:
    """The size of a study, from minutes to days.

    Arguments:
        name: of the scale.
        train: images trained on.
        plain_epochs: epochs of ordinary training, to convergence.
        epochs: epochs of adversarial training.
        attack_steps: PGD steps of adversarial training.
        images: images inverted, with each model the same.
        iterations: of the search that inverts.
        seeds: starts of the search, for stability.
        over_epochs: how many epochs of training are inverted, for the figure over time.
        tested: test images for accuracy and robustness.
        effects: whether defences are compared by their side effects.
        references: reference models of each defence, for membership inference; 0 uses the loss alone.
        forgets: images that the models of that comparison are trained on, as many others standing aside.
        batch: images of a training step.
        width: share of its channels that a residual network keeps; 1 is the network of its paper.
    """

    name: str
    train: int
    plain_epochs: int
    epochs: int
    attack_steps: int
    images: int
    iterations: int
    seeds: int
    over_epochs: int
    tested: int
    effects: bool
    references: int
    forgets: int
    batch: int = 128
    width: float = 1.0


SCALES = {
    "smoke": Scale("smoke", 1500, 12, 4, 5, 6, 400, 2, 2, 300, False, 0, 0),
    "scaled": Scale("scaled", 6000, 14, 10, 7, 12, 1200, 3, 4, 1000, True, 4, 1000),
    "full": Scale("full", 60000, 100, 100, 40, 50, 4800, 5, 8, 10000, True, 16, 10000),
}
# One pass of an image through a residual network costs 10 (an eighth of the channels) to 1,000 times (all of WRN-34-10) what it
# does through the small CNN.
_SMOKE: dict[str, Any] = {
    "train": 1500, "plain_epochs": 5, "epochs": 2, "attack_steps": 3, "iterations": 120, "batch": 64, "width": 1 / 8,
}
_SCALED: dict[str, Any] = {
    "train": 4000, "plain_epochs": 12, "epochs": 10, "attack_steps": 4, "images": 8, "iterations": 600, "seeds": 2,
    "over_epochs": 3, "references": 2, "forgets": 500, "width": 1 / 4,
}
NARROWED: dict[tuple[str, str], dict[str, Any]] = {
    ("smoke", "resnet18"): _SMOKE,
    ("smoke", "preact-resnet18"): _SMOKE,
    ("smoke", "wrn-34-10"): {**_SMOKE, "train": 500, "images": 4, "iterations": 80, "tested": 150, "width": 1 / 20},
    ("scaled", "resnet18"): _SCALED,
    ("scaled", "preact-resnet18"): _SCALED,
    ("scaled", "wrn-34-10"): {**_SCALED, "width": 1 / 16},
    **{("full", name): {"attack_steps": 10} for name in ("resnet18", "preact-resnet18", "wrn-34-10")},
}
RADII = {"gray": (0.0, 0.15, 0.30, 0.60, 0.90), "colour": (0.0, 4 / 255, 8 / 255, 16 / 255, 32 / 255)}
PATH = {"gray": 40 * 0.01, "colour": 10 * 2 / 255}  # of the talk: 40 steps of .01, and 10 of 2/255
HEADLINE = {"gray": 0.30, "colour": 8 / 255}
# Through batch normalisation the angles alone lead nowhere in few steps: what images look like needs more weight.
TV = {"small-cnn": 1e-3, "resnet18": 1e-1, "preact-resnet18": 1e-1, "wrn-34-10": 1e-1}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a study is run on.

    Arguments:
        scale: how large.
        network: a name of `networks.NETWORKS`.
        radii: Linf radii of adversarial training; 0 is ordinary training.
        headline: the radius that is set against ordinary training, one of `radii`.
        path: how far the steps of the adversary go together, at most.
        tv: weight of the total variation when gradients are inverted.
        seed: all randomness is derived from it.
        device: where models are trained and inverted.
    """

    scale: Scale
    network: str
    radii: tuple[float, ...]
    headline: float
    path: float = 0.4
    tv: float = 1e-3
    seed: int = 0
    device: str = "cpu"

    def fingerprint(self) -> dict[str, object]:
        """Return what must be the same for a study to go on with kept parts; a device may differ."""
        return {**dataclasses.asdict(self), "device": ""}


def scale_named(name: str, network: str = "small-cnn") -> Scale:
    """Return the scale of that name, narrowed so that the network keeps to what the scale may take.

    Raises:
        UsageError: for any other name.
    """
    if name not in SCALES:
        raise UsageError(f"the scale is '{name}'", want=" | ".join(SCALES), fix=nearest(name, list(SCALES)))
    return dataclasses.replace(SCALES[name], **NARROWED.get((name, network), {}))
