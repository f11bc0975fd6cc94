"""Label-only inversion: a latent point is pushed away from where the label changes, into the middle of a class's region."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hauberk.core import rng
from hauberk.core.access import Access
from hauberk.core.errors import BudgetExceeded, DataError
from hauberk.core.kinds import Reconstruction, reconstruction
from hauberk.core.target import Target, as_target
from hauberk.privacy.model_inversion.descent import TAGS, refuse_labels, refuse_steps
from hauberk.privacy.model_inversion.prior import Prior


@reconstruction(
    question="Do the labels alone hand over what a class looks like, to one who has public inputs of the same sort?",
    paper="Kahla et al. 2022, arXiv:2203.06580 (BREP-MI)", tags=TAGS, preset="thorough", sees="labels and prior",
    access=Access.LABEL,
)
def label_only_inversion(
    target: Target | nn.Module, labels: Tensor, *, prior: Prior, steps: int = 200, points: int = 32, radius: float = 1.0,
    growth: float = 1.3, seed: int = 0,
) -> Reconstruction:
    """Climb to where a whole sphere of latent points has the wanted label, then ask for a larger sphere, and so on.

    Each step asks for the labels of points on a sphere around the latent point; those of another label repel it. The centre of
    the largest sphere that was all of the label is returned.

    Arguments:
        target: with LABEL access, or a module.
        labels: the class to invert, one per input to be made, shape (n,).
        prior: turns latent points into inputs.
        steps: at most so many spheres are asked about, for all inputs at once.
        points: on each sphere.
        radius: of the first sphere, in the latent space.
        growth: by which a sphere grows once it is all of the label.
        seed: of starts and spheres.

    Returns:
        `x` of shape (n, ...); `y`, the labels; `loss` of shape (n,), float64: 1 / radius of the largest sphere held, infinite
        where none was: then `x` is the first point of the label that the prior gave, or its middle where it gave none.

    Raises:
        DataError: for labels that are not whole numbers.
        BudgetExceeded: when the queries granted are spent; `partial` holds what was reached.
    """
    refuse_steps(steps)
    if not isinstance(labels, Tensor) or labels.is_floating_point():
        refuse_labels(labels, 1)
    if not growth > 1 or points < 1:
        raise DataError(f"growth is {growth} and points is {points}", want="a growth above 1 and at least 1 point")
    target, n, wide = as_target(target), len(labels), prior.width
    draw = rng.generator(seed, "label-only inversion")
    z = _first(target, labels, prior, draw)
    found = ~z.isnan().any(1)
    z, held = z.nan_to_num(), torch.zeros(n, dtype=torch.float64)
    best, size = z.clone(), torch.full((n,), radius, dtype=z.dtype)
    for _ in range(steps):
        if not bool(found.any()):
            break
        way = torch.randn(n, points, wide, generator=draw)
        way = way / way.norm(dim=2, keepdim=True)
        asked = (z[:, None] + size[:, None, None] * way)[found]  # (found, points, width)
        try:
            with torch.no_grad():
                said = target.labels(prior(asked.flatten(0, 1))).cpu().view(-1, points)
        except BudgetExceeded as spent:
            raise spent.keeping(_told(prior, best, labels, held)) from spent
        other = torch.zeros(n, points, dtype=torch.bool)
        other[found] = said != labels[found].cpu()[:, None]
        whole = found & ~other.any(1)
        better = whole & (size > held)
        best[better], held[better] = z[better], size[better].double()
        size = torch.where(whole, size * growth, size)
        # The mean direction of the points that say another label: away from it.
        push = -(way * other[:, :, None]).mean(1)
        push = push / push.norm(dim=1, keepdim=True).clamp_min(1e-12)
        z = torch.where((found & ~whole)[:, None], z + size[:, None].clamp(max=3.0) / 3 * push, z)
    return _told(prior, best, labels, held)


def _told(prior: Prior, best: Tensor, labels: Tensor, held: Tensor) -> Reconstruction:
    with torch.no_grad():
        return Reconstruction(prior(best), y=labels, loss=1 / held)


def _first(target: Target, labels: Tensor, prior: Prior, draw: torch.Generator, tries: int = 40, batch: int = 256) -> Tensor:
    """Return a latent point of each label, shape (n, width): drawn from the prior; NaN where none came up."""
    wanted, open_ = labels.cpu(), torch.ones(len(labels), dtype=torch.bool)
    z = torch.full((len(labels), prior.width), torch.nan)
    for _ in range(tries):
        if not bool(open_.any()):
            break
        points = torch.randn(batch, prior.width, generator=draw)
        with torch.no_grad():
            said = target.labels(prior(points)).cpu()
        for place in open_.nonzero()[:, 0].tolist():
            fits = (said == wanted[place]).nonzero()[:, 0]
            if len(fits):
                pick = int(torch.randint(len(fits), (1,), generator=draw))
                z[place], open_[place] = points[fits[pick]], False
    return z
