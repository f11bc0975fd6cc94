"""Inputs searched so that their gradient points where the shared one does."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hauberk.core.errors import UsageError
from hauberk.core.kinds import Reconstruction, reconstruction
from hauberk.privacy.inversion.client import ClientUpdate, as_updates, widened
from hauberk.privacy.inversion.first_linear import TAGS
from hauberk.privacy.inversion.labels import hard, labels_of
from hauberk.privacy.inversion.matching import Distance, Matcher, angles, cosine
from hauberk.privacy.inversion.priors import total_variation, weight_of
from hauberk.privacy.inversion.search import begin, box, signed_adam

TOGETHER = 32  # inputs in one graph: what bounds memory


@reconstruction(
    question="Which inputs have a gradient that points the way the shared one does?", tags=TAGS, sees="update",
    paper="Geiping et al. 2020, arXiv:2003.14053",
)
def inverting_gradients(
    module: nn.Module, update: ClientUpdate | Sequence[ClientUpdate], *, steps: int = 1200, lr: float = 0.05, tv: float = 1e-3,
    restarts: int = 1, each_parameter: bool = True, seed: int = 0,
) -> Reconstruction:
    """Search inputs by the angle between gradients and total variation, with Adam on the sign of the slope.

    Clients, and restarts, are searched for by themselves, but pass through the network together.

    Arguments:
        module: the model that was sent to the clients; returns logits; never changed.
        update: what a client sent, or what several did, each to be inverted by itself; with local steps they are simulated.
        steps: of the search.
        lr: its rate, in units of the input range; it falls tenfold at 3/8, 5/8 and 7/8 of the steps.
        tv: weight of the total variation, for images; in units of the input range.
        restarts: starts; the one whose gradient is nearest is returned.
        each_parameter: whether the angle of each parameter's gradient counts beside that of all together, which alone is the
            distance of the paper: slower to find the pixels.
        seed: of the starts.

    Returns:
        `x` of shape (clients * n, ...), the best iterate; `y`, the labels known or read off; `loss` of shape (clients * n,), the
        objective reached for the client that each input belongs to.

    Raises:
        DataError: for updates that are missing, not finite, or not of this model.
        UsageError: for steps or restarts below 1.
    """
    if restarts < 1:
        raise UsageError(f"restarts is {restarts}", want="at least 1")
    updates, given, module = as_updates(update, module), next(module.parameters()), widened(module)
    n, size = updates[0].n, max(1, TOGETHER // (updates[0].n * restarts))
    distance = angles if each_parameter else cosine
    found = [
        _group(module, updates[first : first + size], first, (steps, lr, tv, restarts, seed), distance)
        for first in range(0, len(updates), size)
    ]
    return Reconstruction(
        torch.cat([x for x, _, _ in found]).to(given), torch.cat([y for _, y, _ in found]),
        torch.cat([loss for _, _, loss in found]).repeat_interleave(n),
    )


def _group(
    module: nn.Module, updates: Sequence[ClientUpdate], first: int, options: tuple[int, float, float, int, int],
    distance: Distance,
) -> tuple[Tensor, Tensor, Tensor]:
    steps, lr, tv, restarts, seed = options
    n, shape, bounds = updates[0].n, updates[0].shape, updates[0].bounds
    like = next(module.parameters())
    labels = torch.stack([labels_of(module, one) for one in updates]).to(like.device)  # (clients, n), or (clients, n, classes)
    y = labels.repeat_interleave(restarts, 0).flatten(0, 1)
    weights = torch.tensor([weight_of(tv, one) for one in updates for _ in range(restarts)], dtype=like.dtype, device=like.device)
    start = torch.cat([
        begin((n, *shape), like, bounds, seed, "inverting gradients", first + k, restart)
        for k in range(len(updates)) for restart in range(restarts)
    ])
    matcher, weights = Matcher(module, updates, distance, repeats=restarts), weights / box(bounds)[2]

    def objective(x: Tensor) -> tuple[Tensor, Tensor]:
        value, slope, _ = matcher(x, y)
        if tv:
            rough, roughness = total_variation(x)
            wide = (weights / n).repeat_interleave(n).reshape(-1, *(1 for _ in shape))
            value, slope = value + weights * rough.reshape(-1, n).mean(1), slope + wide * roughness
        return value, slope

    with matcher.ready():
        x, least = signed_adam(
            objective, start, candidates=len(updates) * restarts, steps=steps, lr=lr, bounds=bounds, label="inverting gradients"
        )
    chosen = least.reshape(-1, restarts).min(1)
    apart = x.reshape(len(updates), restarts, n, *shape)
    best = apart[torch.arange(len(updates), device=x.device), chosen.indices]
    return best.flatten(0, 1), hard(labels.flatten(0, 1)), chosen.values
