"""Gradients of the same images, inverted on every model of a study."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hauberk.core.rng import derive_seed
from hauberk.privacy.inversion import client_update, inverting_gradients
from hauberk.privacy.inversion.defences.seen_through import seen_through
from hauberk.privacy.inversion.metrics import closeness
from hauberk.study.images import Pair
from hauberk.study.shelf import Shelf

Defence = Callable[[Mapping[str, Tensor], int], Mapping[str, Tensor]]
FIGURES = ("psnr", "mse", "ssim", "fmse", "loss", "gradient_norm")


@dataclasses.dataclass(frozen=True)
class Search:
    """How a reconstruction is looked for.

    Arguments:
        iterations: of the search.
        seed: of its start.
        tv: weight of the total variation.
    """

    iterations: int
    seed: int
    tv: float = 1e-3


def invert(
    shelf: Shelf, name: str, module: nn.Module, victims: Pair, search: Search, *, defence: Defence | None = None,
    known: tuple[str, float] | None = None,
) -> tuple[dict[str, Any], Tensor]:
    """Return the figures of each image, and the reconstructions, of one start of the search on one model.

    Each image is a client of its own: what is inverted is the gradient of its loss, its label known. An image whose gradient is
    zero to the last bit gives nothing away: its reconstruction is the gray image.

    Arguments:
        shelf: keeps both.
        name: under which they are kept.
        module: whose gradients are shared, in evaluation mode.
        victims: images (n, ...) and labels.
        search: how it is looked for.
        defence: changes gradients before they are shared: `(gradients, index of the client) -> gradients`; None shares them
            unchanged.
        known: name and strength of that defence, as an adversary knows them who adapts to it (`seen_through`); None takes what
            was shared as plain.
    """
    x, y = victims

    def look() -> dict[str, Tensor]:
        updates, told = [], []
        for at in range(len(x)):
            update = client_update(module, x[at : at + 1], y[at : at + 1])
            if defence is not None:
                update = dataclasses.replace(update, gradients=defence(update.gradients, at))
            if known is not None:
                update = dataclasses.replace(update, known=seen_through(*known, update, module))
            if any(bool(one.any()) for one in update.gradients.values()):
                updates.append(update)
                told.append(at)
        found = torch.full_like(x, 0.5)
        if updates:
            seed = derive_seed(search.seed, "inversion")
            made = inverting_gradients(module, updates, steps=search.iterations, tv=search.tv, seed=seed)
            found[torch.tensor(told)] = made.x.detach().reshape(len(told), *x.shape[1:]).to(found)
        return {"x": found}

    found = shelf.tensors(f"inverted-{name}", look)["x"].to(x)

    def judge() -> dict[str, Any]:
        close = closeness(module, x, found, y=y)
        return {figure: [float(value) for value in getattr(close, figure)] for figure in FIGURES}

    return shelf.figures(f"inverted-{name}", judge), found
