"""Surprise: how unlike the training data the features of a sample are, in buckets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from hauberk.robustness.fuzz.coverage.criterion import Cells
from hauberk.robustness.fuzz.coverage.novelty import squared
from hauberk.robustness.fuzz.coverage.reading import Profile, Reading

Surprise = Callable[[Tensor, Tensor], Tensor]
FLAT = 1e-5  # variance below which a neuron tells nothing of density, as in the paper


def likelihood_surprise(known: Profile) -> Surprise:
    """Return LSA, `(features, labels) -> surprise`: minus the log density of a kernel estimate over the training features of the
    answered class.

    Gaussian kernels with Scott's bandwidth; neurons of a variance below 1e-5 are left out. Kim et al. 2019, arXiv:1808.08444.
    """
    densities = _densities(known)

    def surprise(features: Tensor, label: int) -> Tensor:
        varied, root, points, level = densities[label]
        white = torch.linalg.solve_triangular(root, features[:, varied].T, upper=False).T
        return level - torch.logsumexp(-0.5 * squared(white, points), 1)

    return _class_by_class(densities, surprise)


def left_out_likelihood(known: Profile) -> Tensor:
    """Return the LSA of every training sample by the kernels of the others of its class, shape (m,), or NaN.

    A sample that sits in the middle of its own kernel is never surprising: in many dimensions that kernel outweighs all others.
    The bandwidth is that of `likelihood_surprise`.
    """
    labels = known.labels.cpu()
    found = torch.full((len(labels),), math.nan, dtype=torch.float64)
    for label, (_, _, points, level) in _densities(known).items():
        apart = squared(points, points).fill_diagonal_(torch.inf)
        fewer = math.log(len(points) - 1) - math.log(len(points))
        found[labels == label] = level + fewer - torch.logsumexp(-0.5 * apart, 1)
    return found


def _densities(known: Profile) -> dict[int, tuple[Tensor, Tensor, Tensor, float]]:
    """Return by class which neurons vary, the root of the kernel covariance, whitened features, and a log scale."""
    densities: dict[int, tuple[Tensor, Tensor, Tensor, float]] = {}
    for label, rows in _by_class(known).items():
        varied = rows.var(0) > FLAT if len(rows) > 1 else torch.zeros(rows.shape[1], dtype=torch.bool)
        rows = rows[:, varied]
        n, d = rows.shape
        if n < 2 or not d:
            continue
        root = _root(rows.T.cov().reshape(d, d) * n ** (-2 / (d + 4)))
        points = torch.linalg.solve_triangular(root, rows.T, upper=False).T
        level = math.log(n) + 0.5 * d * math.log(2 * math.pi) + float(root.diagonal().log().sum())
        densities[label] = (varied, root, points, level)
    return densities


def distance_surprise(known: Profile) -> Surprise:
    """Return DSA, `(features, labels) -> surprise`: the distance to the nearest training feature a of the answered class, over
    the distance from that a, not from the sample, to the nearest one of another class.

    Kim et al. 2019, arXiv:1808.08444.
    """
    own = _by_class(known)
    gaps: dict[int, Tensor] = {}
    for label, rows in own.items():
        others = known.traces[known.labels != label].cpu()
        if len(others):
            gaps[label] = torch.cat([squared(part, others).amin(1).sqrt() for part in rows.split(256)])

    def surprise(features: Tensor, label: int) -> Tensor:
        nearest = squared(features, own[label]).min(1)
        return nearest.values.sqrt() / gaps[label][nearest.indices]

    return _class_by_class(gaps, surprise)


def mahalanobis_surprise(known: Profile) -> Surprise:
    """Return MDSA, `(features, labels) -> surprise`: the Mahalanobis distance to the training features of the answered class.

    Kim et al. 2020, arXiv:2006.00894.
    """
    laws: dict[int, tuple[Tensor, Tensor]] = {}
    for label, rows in _by_class(known).items():
        if len(rows) > 1:
            laws[label] = rows.mean(0), _root(rows.T.cov(correction=0).reshape(rows.shape[1], rows.shape[1]))

    def surprise(features: Tensor, label: int) -> Tensor:
        mean, root = laws[label]
        return torch.linalg.solve_triangular(root, (features - mean).T, upper=False).norm(dim=0)

    return _class_by_class(laws, surprise)


def likelihood_surprise_coverage(known: Profile, *, buckets: int = 1000) -> Cells:
    """Return LSC: surprise coverage by likelihood, over the range that training samples have and as much again above it.

    A log density has no natural zero, and is below it where there are many neurons that vary little: so the buckets begin at the
    least surprise of a training sample, each by the kernels of the others. Kim et al. 2019, arXiv:1808.08444.
    """
    own = left_out_likelihood(known)
    own = own[own.isfinite()]
    low, high = (float(own.min()), float(own.max())) if len(own) else (0.0, 1.0)
    upper = high + max(high - low, 1e-9)
    return surprise_coverage("lsc", known, likelihood_surprise(known), lower=low, upper=upper, buckets=buckets)


def surprise_coverage(
    name: str, known: Profile, surprise: Surprise, *, lower: float = 0.0, upper: float | None = None, buckets: int = 1000
) -> Cells:
    """Return surprise coverage: the share of equal buckets of (lower, upper] that the surprise of any sample fell in.

    Kim et al. 2019, arXiv:1808.08444.

    Arguments:
        name: of the criterion.
        known: the profile of the model.
        surprise: `(features, labels) -> surprise`, shape (n,); what is no number falls in no bucket.
        lower: where the buckets begin: 0 for a distance.
        upper: the greatest surprise counted; None takes twice the greatest of the training samples, 2 where they have none.
        buckets: into which the range is cut.
    """
    if upper is None:
        own = surprise(known.traces, known.labels)
        own = own[own.isfinite()]
        upper = 2 * float(own.max()) if len(own) and float(own.max()) > 0 else 2.0

    def hits(reading: Reading) -> Tensor:
        found = surprise(reading.features, reading.labels)
        place = ((found - lower) / (upper - lower) * buckets).ceil()
        inside = (place >= 1) & (place <= buckets)
        return torch.where(inside, place - 1, torch.full_like(place, -1)).nan_to_num(nan=-1).long()[:, None]

    return Cells(name, buckets, hits)


def _by_class(known: Profile) -> dict[int, Tensor]:
    traces, labels = known.traces.cpu(), known.labels.cpu()
    return {int(label): traces[labels == label] for label in labels.unique() if int(label) >= 0}


def _class_by_class(classes: Iterable[int], surprise: Callable[[Tensor, int], Tensor]) -> Surprise:
    classes = list(classes)

    def all_of(features: Tensor, labels: Tensor) -> Tensor:
        rows, labels = features.detach().double().cpu(), labels.cpu()
        found = torch.full((len(rows),), math.nan, dtype=torch.float64)
        for label in classes:
            if bool((mask := labels == label).any()):
                found[mask] = surprise(rows[mask], label)
        return found

    return all_of


def _root(covariance: Tensor) -> Tensor:
    """Return the Cholesky root; where the covariance is singular, with the least ridge of a few powers of ten that lets it be."""
    scale = float(covariance.diagonal().mean())
    for ridge in (0.0, *(10.0**power for power in range(-10, 1))):
        added = ridge * (scale if scale > 0 else 1.0) * torch.eye(len(covariance), dtype=covariance.dtype)
        root, failed = torch.linalg.cholesky_ex(covariance + added)
        if not int(failed) and float(root.diagonal().min()) > 1e-8 * math.sqrt(max(scale, 1e-300)):
            return root
    return torch.eye(len(covariance), dtype=covariance.dtype)
