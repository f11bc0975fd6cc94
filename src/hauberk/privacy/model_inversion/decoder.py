"""Decoder inversion: a net that learns, from inputs of the adversary's own, to turn features of a layer back into inputs."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hauberk.core import rng
from hauberk.core.access import Access
from hauberk.core.data import Split
from hauberk.core.errors import DataError
from hauberk.core.kinds import Reconstruction, reconstruction
from hauberk.core.taps import tap
from hauberk.core.target import evaluating
from hauberk.core.train import Schedule, fit
from hauberk.privacy.model_inversion.descent import TAGS

WIDEST = 4096  # the largest system of linear equations solved for the decoder's linear part


class Decoder(nn.Module):
    """Features to inputs: a linear map solved in closed form, and a net on top that learns what it misses.

    Arguments:
        features: of the split layer for the auxiliary inputs, shape (n, ...).
        x: these inputs, shape (n, ...).
        width: hidden units, or channels, of the net.
        seed: of its first weights.
    """

    def __init__(self, features: Tensor, x: Tensor, *, width: int = 64, seed: int = 0) -> None:
        super().__init__()
        self.shape = tuple(x.shape[1:])
        rows, goal = features.flatten(1).double(), x.flatten(1).double()
        self.register_buffer("centre", rows.mean(0))
        self.register_buffer("middle", goal.mean(0))
        self.register_buffer("map", _ridge(rows - rows.mean(0), goal - goal.mean(0)))
        self.register_buffer("scale", rows.std(0).clamp_min(1e-12) if len(rows) > 1 else torch.ones_like(rows[0]))
        self.register_buffer("spread", (goal.max() - goal.min()).clamp_min(1e-12).to(x))
        self.given = tuple(features.shape[1:])
        with rng.isolated(rng.derive_seed(seed, "decoder")):
            self.net = _net(self.given, self.shape, width).to(x)

    def forward(self, features: Tensor) -> Tensor:
        """Return inputs, shape (n, *shape), of features, shape (n, ...)."""
        rows = features.flatten(1).double() - self.get_buffer("centre")
        straight = self.get_buffer("middle") + rows @ self.get_buffer("map")  # (n, inputs)
        scaled = (rows / self.get_buffer("scale")).to(features.dtype).view(-1, *self.given)
        return straight.to(features.dtype).view(-1, *self.shape) + self.get_buffer("spread") * self.net(scaled)


@reconstruction(
    question="Does what a split layer sends hand over the input to one who trained a decoder on inputs of their own?",
    paper="He et al. 2019, ACSAC (model inversion in collaborative inference)", tags=TAGS, preset="thorough", sees="split",
    access=Access.GRADIENT,
)
def decoder_inversion(
    module: nn.Module, features: Tensor, *, layer: str, auxiliary: Tensor, epochs: int = 20,
    bounds: tuple[float, float] | None = None, seed: int = 0,
) -> Reconstruction:
    """Train a decoder on (features, input) pairs that the adversary makes by asking the first part of the model, and apply it.

    Arguments:
        module: the model; asked about the auxiliary inputs, never changed.
        features: what the layer put out for the inputs to win back, shape (n, ...).
        layer: the layer's name.
        auxiliary: inputs like the private ones, shape (m, ...).
        epochs: passes over the auxiliary inputs; 0 leaves the linear part alone.
        bounds: lowest and highest input; None sets none.
        seed: of the decoder's weights and the order of its training.

    Returns:
        `x` of shape (n, ...), and `loss` of shape (n,): the squared distance of its features relative to their size.

    Raises:
        ModelError: for a layer that is not there.
        DataError: for features that are not of that layer, or no auxiliary inputs.
    """
    decoder = train_decoder(module, layer=layer, auxiliary=auxiliary, epochs=epochs, seed=seed)
    if not isinstance(features, Tensor) or tuple(features.shape[1:]) != decoder.given:
        found = tuple(features.shape[1:]) if isinstance(features, Tensor) else type(features).__name__
        raise DataError(f"the features are {found}", want=f"(n, {', '.join(map(str, decoder.given))}), as layer '{layer}' gives")
    with torch.no_grad():
        x = decoder(features.detach())
        x = x if bounds is None else x.clamp(*bounds)
        apart = (features_at(module, x, layer) - features).flatten(1).square().sum(1)
    size = features.flatten(1).square().sum(1).clamp_min(torch.finfo(features.dtype).tiny)
    return Reconstruction(x, loss=apart / size)


def train_decoder(module: nn.Module, *, layer: str, auxiliary: Tensor, epochs: int = 20, seed: int = 0) -> Decoder:
    """Return a decoder trained by mean squared error, to be used on features seen later.

    Arguments, errors: as of `decoder_inversion`.
    """
    if not isinstance(auxiliary, Tensor) or len(auxiliary) < 2 or not auxiliary.is_floating_point():
        raise DataError("there are no auxiliary inputs", want="at least 2 inputs like the private ones, floating point (m, ...)")
    seen = features_at(module, auxiliary, layer)
    straight = Decoder(seen, auxiliary, seed=seed).eval()
    held = len(seen) // 5
    if not epochs or held < 2:
        return straight
    order = torch.randperm(len(seen), generator=rng.generator(seed, "decoder split"))
    learnt, judged = order[held:], order[:held]
    decoder = Decoder(seen[learnt], auxiliary[learnt], seed=seed)

    def loss(model: nn.Module, batch: Tensor, index: Tensor) -> Tensor:
        error: Tensor = (model(batch) - auxiliary[index]) / decoder.get_buffer("spread")
        return error.square().mean()

    def wrong() -> float:
        with torch.no_grad():
            return float(loss(decoder, seen[judged], judged))

    alone = wrong()
    learn = torch.optim.Adam(decoder.net.parameters(), lr=1e-3)
    plan = Schedule(epochs=epochs, batch_size=32, seed=rng.derive_seed(seed, "decoder"))
    fit(decoder, Split(seen[learnt], learnt), loss=loss, optimizer=learn, schedule=plan)
    # A net that does not help on inputs it was not trained on is left away: then the linear part learns from all of them.
    return decoder if wrong() < alone else straight


def features_at(module: nn.Module, x: Tensor, layer: str) -> Tensor:
    """Return what a layer puts out for x, shape (n, ...), without gradients. Raises ModelError for a layer that is not there."""
    parts = []
    with torch.no_grad(), evaluating(module), tap(module, [layer]) as seen:
        for part in x.split(256):
            module(part)
            parts.append(seen.activations[layer])
    return torch.cat(parts)


def _ridge(rows: Tensor, goal: Tensor) -> Tensor:
    """Return A, shape (features, inputs), with rows @ A close to goal; zero where the system is too large to solve."""
    n, wide = rows.shape
    if min(n, wide) > WIDEST:
        return torch.zeros(wide, goal.shape[1], dtype=rows.dtype, device=rows.device)
    # A weight decay far below the noise of any data, which only picks one solution where there are many.
    if wide <= n:
        gram = rows.T @ rows
        slack = (1e-12 * gram.diagonal().mean()).clamp_min(1e-300)  # of features that never change, too
        return torch.linalg.solve(gram + slack * torch.eye(wide).to(gram), rows.T @ goal)
    gram = rows @ rows.T
    slack = (1e-6 * gram.diagonal().mean()).clamp_min(1e-300)  # fewer inputs than features: an exact fit would be by heart
    return rows.T @ torch.linalg.solve(gram + slack * torch.eye(n).to(gram), goal)


def _net(given: tuple[int, ...], shape: tuple[int, ...], width: int) -> nn.Module:
    last: nn.Module
    if len(shape) == 3:
        channels, height, across = shape
        small = (max(1, height // 4), max(1, across // 4))
        first = (
            [nn.Conv2d(given[0], width, 3, padding=1)] if len(given) == 3
            else [nn.Flatten(), nn.Linear(math.prod(given), width * small[0] * small[1]), nn.Unflatten(1, (width, *small))]
        )
        last = nn.Conv2d(width, channels, 3, padding=1)
        layers: list[nn.Module] = [
            *first, nn.ReLU(), nn.Upsample(size=(height, across), mode="bilinear"), nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(), last,
        ]
    else:
        last = nn.Linear(width * 4, math.prod(shape))
        layers = [nn.Flatten(), nn.Linear(math.prod(given), width * 4), nn.ReLU(), last, nn.Unflatten(1, shape)]
    nn.init.zeros_(last.weight)  # it starts as nothing: what the linear part knows exactly is not drowned first
    assert isinstance(last.bias, Tensor)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers)
