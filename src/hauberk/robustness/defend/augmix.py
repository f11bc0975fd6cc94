"""AugMix: training on mixtures of chains of mild changes, with answers held alike over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from hauberk.core import rng
from hauberk.core.card import Card, registry
from hauberk.core.errors import DataError, UsageError, nearest
from hauberk.core.kinds import recipe
from hauberk.core.threat import Bounds
from hauberk.core.train import Loss, class_logits
from hauberk.robustness import natural
from hauberk.robustness.natural.geometry import rotation, shearing, translation, warped

LEVELS = 10  # an operation's strength is counted in tenths of its greatest
Change = Callable[[Tensor, Tensor, Tensor], Tensor]


@recipe(
    question="How does a model learn to keep its answer under corruptions that it has never seen?",
    paper="Hendrycks et al. 2020, arXiv:1912.02781",
    tags=("aisec:model-misjudgment", "atlas:AML.M0003"),
)
def augmix(
    names: Sequence[str] = (), *, severity: int = 3, width: int = 3, depth: int = 3, alpha: float = 1.0, beta: float = 12.0,
    bounds: Bounds = (0.0, 1.0),
) -> Loss:
    """Return a loss on images and two mixtures of each: `fit(model, data.train, loss=augmix())`.

    A mixture is a convex sum, weighted by a Dirichlet draw, of `width` chains of one to `depth` operations, then mixed with the
    image itself by a Beta draw. Added to the clean error is beta times the Jensen-Shannon divergence of the three answers.

    No operation of the paper lights a black background: on MNIST, blur and bending are met better and fog and glare worse
    (benchmarks/results/augmix.md). There, name corruptions as well: `augmix((*OPERATIONS, "brightness", "contrast"))`.

    Arguments:
        names: operations; empty takes the nine of the paper: autocontrast, equalize, posterize, solarize, turn, shear-x, shear-y,
            translate-x and translate-y. None of these is a corruption of ImageNet-C; where geometry is what is measured, leave
            the last five out. Registered corruptions may be named as well, which are applied at half the strength drawn, a
            severity of 1 at least: then those are no longer unseen.
        severity: the strength of each operation is drawn from 0.1 to it, of 10.
        width: chains per mixture.
        depth: operations per chain at most.
        alpha: of the Dirichlet and the Beta law: 1 draws all weights alike.
        beta: weight of the divergence; 0 trains on clean images alone.
        bounds: lowest and highest input.

    Returns:
        `(model, x, y) -> loss`: one forward pass of three images for each of the batch, in the mode the caller left the model in.
        All draws come from the global stream, which `fit` seeds. Memory: 2 width batches beside the model's own.

    Raises:
        UsageError: for an unknown name, or a number out of its range.
    """
    if not 1 <= severity <= LEVELS or width < 1 or depth < 1 or not alpha > 0 or not beta >= 0:
        raise UsageError(
            f"severity, width, depth, alpha and beta are {(severity, width, depth, alpha, beta)}",
            want=f"a severity of 1 to {LEVELS}, a width and a depth of 1 or more, an alpha above 0 and a beta of 0 or more",
        )
    chosen = [_operation(name, bounds) for name in names or tuple(OPERATIONS)]

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if x.ndim != 4:
            raise DataError(f"augmix was given shape {tuple(x.shape)}", want="images (n, channels, height, width)")
        if not beta:
            return functional.cross_entropy(class_logits(model(x)), y)
        draws = rng.generator(int(torch.randint(2**62, (), dtype=torch.int64)), "augmix")
        with torch.no_grad():
            both = mixed(torch.cat([x, x]), chosen, severity=severity, shape=(width, depth), alpha=alpha, generator=draws)
        logits = class_logits(model(torch.cat([x, both])))  # (3 n, classes)
        return functional.cross_entropy(logits[: len(x)], y) + beta * jensen_shannon(logits.view(3, len(x), -1)).mean()

    return loss


def mixed(
    x: Tensor, operations: Sequence[Change], *, severity: float, shape: tuple[int, int], alpha: float, generator: torch.Generator
) -> Tensor:
    """Return one mixture of each image.

    Arguments:
        x: images, shape (n, c, h, w).
        operations: `(images, strengths (k,), seeds (k,)) -> images`, for any k images.
        severity: strengths are drawn from 0.1 to it.
        shape: (chains per mixture, operations per chain at most).
        alpha: of the Dirichlet law of the chains' weights and the Beta law of the whole mixture's.
        generator: of all draws, on the CPU.

    Returns:
        The mixtures, shape of x: convex sums of changed images and the image.
    """
    (width, depth), n = shape, len(x)
    dice = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))  # torch's own law takes no generator
    weights = torch.from_numpy(dice.dirichlet([alpha] * width, n))  # (n, width)
    share = torch.from_numpy(dice.beta(alpha, alpha, n))
    length = torch.randint(1, depth + 1, (n * width,), generator=generator)
    chains = x.repeat_interleave(width, 0)  # (n width, c, h, w)
    for step in range(depth):
        pick = torch.randint(len(operations), (n * width,), generator=generator)
        strength = 0.1 + (severity - 0.1) * torch.rand(n * width, generator=generator, dtype=torch.float64)
        seeds = torch.randint(2**62, (n * width,), generator=generator)
        for index, change in enumerate(operations):
            here = ((pick == index) & (length > step)).nonzero()[:, 0]
            if len(here):
                place = here.to(x.device)
                chains[place] = change(chains[place], strength[here], seeds[here]).to(x.dtype)
    sums = (chains.view(n, width, *x.shape[1:]) * _like(weights, x)).sum(1)
    kept = _like(share, x)
    return kept * x + (1 - kept) * sums


def jensen_shannon(logits: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence of k answers, shape (n,), in nats, from logits of shape (k, n, classes)."""
    logs = logits.log_softmax(2)
    middle = logs.logsumexp(0) - torch.log(torch.tensor(float(len(logs)), dtype=logs.dtype, device=logs.device))
    return (logs.exp() * (logs - middle)).sum(2).mean(0)


def autocontrast(x: Tensor, strength: Tensor, seeds: Tensor) -> Tensor:
    """Stretch each channel of images in [0, 1] to all of it; a flat one stays. The strength has no say."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return torch.where(high > low, (x - low) / (high - low).clamp(min=1e-12), x)


def equalize(x: Tensor, strength: Tensor, seeds: Tensor) -> Tensor:
    """Give each channel of images in [0, 1] an even histogram of 256 bins; a flat one stays. The strength has no say."""
    bins = (x * 255).round().long().flatten(2)  # (n, c, h w)
    counts = torch.zeros(*bins.shape[:2], 256, device=x.device).scatter_add_(2, bins, torch.ones_like(bins, dtype=torch.float32))
    below = counts.cumsum(2)
    first = below.gather(2, bins.amin(2, keepdim=True))  # pixels in the darkest bin that is not empty
    even = (below.gather(2, bins) - first) / (bins.shape[2] - first).clamp(min=1)
    return torch.where(first < bins.shape[2], even.to(x.dtype), x.flatten(2)).view_as(x)


def posterize(x: Tensor, strength: Tensor, seeds: Tensor) -> Tensor:
    """Keep the 4 highest bits of 8 of images in [0, 1], and one less for each quarter of the greatest strength."""
    step = 2.0 ** (4 + (4 * strength / LEVELS).floor())
    spacing = _like(step, x)
    return ((x * 255).round() / spacing).floor() * spacing / 255


def solarize(x: Tensor, strength: Tensor, seeds: Tensor) -> Tensor:
    """Turn values of images in [0, 1] over where they lie above 1 - strength / 10."""
    return torch.where(x >= _like(1 - strength / LEVELS, x), 1 - x, x)


def turn(x: Tensor, strength: Tensor, seeds: Tensor) -> Tensor:
    """Rotate images about their centre by up to 30° to either side."""
    return warped(x, rotation(_sided(30 * strength / LEVELS, seeds).to(x.device), (x.shape[2], x.shape[3])))


def _shear(x: Tensor, strength: Tensor, seeds: Tensor, upright: bool) -> Tensor:
    slope = _sided(0.3 * strength / LEVELS, seeds).to(x.device)
    none = torch.zeros_like(slope)
    return warped(x, shearing(none if upright else slope, slope if upright else none, (x.shape[2], x.shape[3])))


def _translate(x: Tensor, strength: Tensor, seeds: Tensor, upright: bool) -> Tensor:
    far = (_sided(x.shape[2 if upright else 3] / 3 * strength / LEVELS, seeds)).to(x.device)
    none = torch.zeros_like(far)
    return warped(x, translation(none if upright else far, far if upright else none))


OPERATIONS: dict[str, Change] = {
    "autocontrast": autocontrast, "equalize": equalize, "posterize": posterize, "solarize": solarize, "turn": turn,
    "shear-x": lambda x, strength, seeds: _shear(x, strength, seeds, False),
    "shear-y": lambda x, strength, seeds: _shear(x, strength, seeds, True),
    "translate-x": lambda x, strength, seeds: _translate(x, strength, seeds, False),
    "translate-y": lambda x, strength, seeds: _translate(x, strength, seeds, True),
}


def _operation(name: str, bounds: Bounds) -> Change:
    """Return an operation of that name on images in their own bounds: one of ours, or a registered corruption."""
    assert natural  # its import fills the registry
    if name in OPERATIONS:
        return lambda x, strength, seeds: _scaled(OPERATIONS[name], x, strength, seeds, bounds)
    cards = {card.name: card for card in registry.cards("corruption")}
    if name not in cards:
        raise UsageError(f"there is no operation called '{name}'", fix=nearest(name, (*OPERATIONS, *cards)))
    return lambda x, strength, seeds: _corrupted(cards[name], x, strength, seeds, bounds)


def _scaled(change: Change, x: Tensor, strength: Tensor, seeds: Tensor, bounds: Bounds) -> Tensor:
    low, high = (torch.as_tensor(end).to(x) for end in bounds)
    span = torch.where(high > low, high - low, torch.ones_like(high))
    return low + change(((x - low) / span).clamp(0, 1), strength, seeds).clamp(0, 1) * (high - low)


def _corrupted(card: Card, x: Tensor, strength: Tensor, seeds: Tensor, bounds: Bounds) -> Tensor:
    """Corrupt the images at severities of 1 to 5, half their strength and at least 1."""
    out, levels = x.clone(), (strength / 2).ceil().clamp(1, 5).long()
    for level in levels.unique().tolist():
        here = (levels == level).nonzero()[:, 0]
        place, draws = here.to(x.device), rng.generator(int(seeds[here[0]]), card.name)
        out[place] = card.function(x[place], level, generator=draws, bounds=bounds)
    return out


def _sided(size: Tensor, seeds: Tensor) -> Tensor:
    return torch.where(seeds % 2 == 0, size, -size)


def _like(value: Tensor, x: Tensor) -> Tensor:
    """Return numbers, shape (n, ...), in the dtype of x and in a shape that broadcasts with (n, ..., c, h, w)."""
    return value.to(x).reshape(*value.shape, *([1] * (x.ndim - 1)))
