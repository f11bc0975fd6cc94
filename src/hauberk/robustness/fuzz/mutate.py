"""Mutators: how a fuzzer changes an input. Every corruption of the registry, three gradient attacks, and the user's own."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hauberk.core import rng
from hauberk.core.access import Access
from hauberk.core.card import registry
from hauberk.core.errors import DataError, UsageError, nearest
from hauberk.core.target import Target
from hauberk.core.threat import Bounds, Threat
from hauberk.robustness import attack as attacks
from hauberk.robustness import natural

LEVELS = (1, 2, 3, 4, 5)
# Options under which an attack is quick, and treats each sample as if it were alone, so that one can be made again.
ATTACKS: dict[str, dict[str, Any]] = {
    "fgsm": {}, "pgd": {"steps": 10, "random_start": False}, "mdi-fgsm": {"steps": 5},
}
DRAWN = ("mdi-fgsm",)  # draws by batch: given one sample at a time
AFFINE, PIXEL = "affine", "pixel"
# DeepHunter's affine steps. A bent or tilted image is held to the rule of pixels like any other: its reference does not move.
AFFINE_CORRUPTIONS = ("translate", "scale", "shear", "rotate")


@dataclasses.dataclass(frozen=True)
class Job:
    """What a mutator may need beside the inputs.

    Arguments:
        target: the model, counted apart from the fuzzer's own questions.
        bounds: lowest and highest input.
        eps: Linf radius of attacks at level 5.
    """

    target: Target
    bounds: Bounds
    eps: float


Function = Callable[[Tensor, Tensor, int, torch.Generator, Job], Tensor]


@dataclasses.dataclass(frozen=True)
class Mutator:
    """One way to change inputs.

    Arguments:
        name: as the results call it.
        kind: `affine` where an affine map moves all pixels (at most once in a lineage, as in DeepHunter), else `pixel`.
        function: `(x, y, level, generator, job) -> x` of shape (n, ...), levels 1 to 5; n samples on a generator give what n
            calls with one sample each would, so that each can be made again alone.
    """

    name: str
    kind: str
    function: Function


@dataclasses.dataclass(frozen=True)
class Step:
    """One mutation, as it can be done again: the mutator, its level, the seed of its generator, and the place in that batch."""

    mutator: str
    level: int
    seed: int
    place: int

    def row(self) -> list[str | int]:
        """Return it as JSON."""
        return [self.mutator, self.level, self.seed, self.place]

    @classmethod
    def read(cls, row: object) -> Step:
        """Return the step of such a row. Raises DataError for anything else."""
        if (
            isinstance(row, list) and len(row) == 4 and isinstance(row[0], str) and all(type(one) is int for one in row[1:])
            and row[1] in LEVELS and 0 <= row[2] < 2**63 and 0 <= row[3] < 2**20
        ):
            return cls(row[0], row[1], row[2], row[3])
        raise DataError(f"a step reads {str(row)[:80]}", want="[mutator, level, seed, place]", fix="The file is damaged")


def mutators(shape: Sequence[int], access: Access, names: Sequence[str] = ()) -> dict[str, Mutator]:
    """Return the mutators that fit, by name.

    Arguments:
        shape: of one sample; corruptions are for images (channels, height, width), and need three dimensions.
        access: attacks need GRADIENT.
        names: those wanted; empty takes all corruptions for images, `jitter` and `reset` for other data, and the attacks.

    Raises:
        UsageError: for a name that is not known or does not fit.
    """
    assert natural and attacks  # their import fills the registry
    found: dict[str, Mutator] = {}
    if len(shape) == 3:
        for card in registry.cards("corruption"):
            found[card.name] = _corruption(card.name)
    else:
        found = {"jitter": Mutator("jitter", PIXEL, _jitter), "reset": Mutator("reset", PIXEL, _reset)}
    if access >= Access.GRADIENT:
        found |= {name: _attack(name) for name in ATTACKS}
    for name in names:
        images = [card.name for card in registry.cards("corruption")]
        if name not in found and len(shape) != 3 and difflib.get_close_matches(name, images, n=1):
            raise UsageError(
                f"the mutator '{name}' is for images (channels, height, width), and a sample here has shape {tuple(shape)}",
                want=" | ".join(found), fix="jitter adds a little to every feature, reset draws a few features anew",
            )
        if name not in found:
            raise UsageError(f"there is no mutator '{name}' for this model and data", fix=nearest(name, list(found)))
    return {name: found[name] for name in names} if names else found


def own(name: str, function: Callable[[Tensor, int, torch.Generator], Tensor], *, kind: str = PIXEL) -> Mutator:
    """Return a mutator of your own.

    Arguments:
        name: as the results call it.
        function: `(x, level, generator) -> x`; it is given one sample at a time, shape (1, ...).
        kind: `affine` where an affine map moves all pixels, else `pixel`.
    """

    def run(x: Tensor, _y: Tensor, level: int, generator: torch.Generator, _job: Job) -> Tensor:
        rows = []
        for row in x.split(1):
            one = torch.Generator().manual_seed(_draw(generator))
            rows.append(function(row.clone(), level, one))
        made = torch.cat(rows)
        if made.shape != x.shape:
            raise DataError(f"the mutator {name} returned shape {tuple(made.shape)}", want=f"{tuple(x.shape)}")
        return made.to(x)

    return Mutator(name, kind, run)


def mutated(mutator: Mutator, x: Tensor, y: Tensor, step: tuple[int, int], job: Job, *, skip: int = 0) -> Tensor:
    """Apply a mutator to a batch, and return inputs inside the bounds, shape of x.

    Arguments:
        mutator: which.
        x, y: inputs, shape (n, ...), and their labels.
        step: level and seed.
        job: what it may need.
        skip: the place of the first sample in the batch it was first done in.
    """
    level, seed = step
    generator = rng.generator(seed, "mutation", mutator.name)
    for _ in range(skip):
        _draw(generator)
    with torch.no_grad():
        low, high = (torch.as_tensor(end).to(x) for end in job.bounds)
        return torch.minimum(torch.maximum(mutator.function(x, y, level, generator, job), low), high)


def _corruption(name: str) -> Mutator:
    card = registry.get(name, "corruption")

    def run(x: Tensor, _y: Tensor, level: int, generator: torch.Generator, job: Job) -> Tensor:
        return card.function(x, level, generator=generator, bounds=job.bounds)

    return Mutator(name, AFFINE if name in AFFINE_CORRUPTIONS else PIXEL, run)


def _attack(name: str) -> Mutator:
    card = registry.get(name, "attack")

    def run(x: Tensor, y: Tensor, level: int, generator: torch.Generator, job: Job) -> Tensor:
        threat = Threat("linf", job.eps * level / len(LEVELS), bounds=job.bounds)
        with torch.enable_grad():
            if name not in DRAWN:
                return card.function(job.target, x, y, threat, **ATTACKS[name])
            rows = [
                card.function(job.target, one, label, threat, seed=_draw(generator), **ATTACKS[name])
                for one, label in zip(x.split(1), y.split(1), strict=True)
            ]
        return torch.cat(rows)

    return Mutator(name, PIXEL, run)


def _jitter(x: Tensor, _y: Tensor, level: int, generator: torch.Generator, job: Job) -> Tensor:
    """Add noise of up to 2 % of the range per level to every feature."""
    low, high = (torch.as_tensor(end).to(x) for end in job.bounds)
    return x + (2 * _noise(x, generator) - 1) * 0.02 * level * (high - low)


def _reset(x: Tensor, _y: Tensor, level: int, generator: torch.Generator, job: Job) -> Tensor:
    """Draw up to 4 % of the features per level, one at least, anew from their range."""
    low, high = (torch.as_tensor(end).to(x) for end in job.bounds)
    count = max(1, int(0.04 * level * x[0].numel()))
    noise = _noise(torch.cat([x.flatten(1), x.flatten(1)], 1), generator).view(len(x), 2, -1)
    chosen = noise[:, 0].argsort(1).argsort(1) < count
    fresh = low + noise[:, 1].view_as(x) * (high - low)
    return torch.where(chosen.view_as(x), fresh, x)


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Return uniform noise, one stream per sample."""
    rows = []
    for row in like:
        one = torch.Generator().manual_seed(_draw(generator))
        rows.append(torch.rand(row.shape, generator=one))
    return torch.stack(rows).to(like)


def _draw(generator: torch.Generator) -> int:
    """Return the next seed of a generator: what `Draws` of the corruptions takes for each sample."""
    return int(torch.randint(2**62, (), generator=generator, dtype=torch.int64))
