"""How large a study is."""

from __future__ import annotations

import dataclasses

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


SCALES = {
    "smoke": Scale("smoke", 1500, 12, 4, 5, 6, 400, 2, 2, 300, False, 0, 0),
    "scaled": Scale("scaled", 6000, 14, 10, 7, 12, 1200, 3, 4, 1000, True, 4, 1000),
    "full": Scale("full", 60000, 100, 100, 40, 50, 4800, 5, 8, 10000, True, 16, 10000),
}
RADII = {"gray": (0.0, 0.15, 0.30, 0.60, 0.90), "colour": (0.0, 4 / 255, 8 / 255, 16 / 255, 32 / 255)}
PATH = {"gray": 40 * 0.01, "colour": 10 * 2 / 255}  # of the talk: 40 steps of .01, and 10 of 2/255
HEADLINE = {"gray": 0.30, "colour": 8 / 255}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a study is run on.

    Arguments:
        scale: how large.
        network: a name of `networks.NETWORKS`.
        radii: Linf radii of adversarial training; 0 is ordinary training.
        headline: the radius that is set against ordinary training, one of `radii`.
        path: how far the steps of the adversary go together, at most.
        seed: all randomness is derived from it.
        device: where models are trained and inverted.
    """

    scale: Scale
    network: str
    radii: tuple[float, ...]
    headline: float
    path: float = 0.4
    seed: int = 0
    device: str = "cpu"

    def fingerprint(self) -> dict[str, object]:
        """Return what must be the same for a study to go on with kept parts; a device may differ."""
        return {**dataclasses.asdict(self), "device": ""}


def scale_named(name: str) -> Scale:
    """Return the scale of that name.

    Raises:
        UsageError: for any other.
    """
    if name not in SCALES:
        raise UsageError(f"the scale is '{name}'", want=" | ".join(SCALES), fix=nearest(name, list(SCALES)))
    return SCALES[name]
