"""Label audit by neighbours: a wrong label stands alone among those of similar samples."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from hauberk.core import progress, taps
from hauberk.core.data import Split
from hauberk.core.errors import DataError, UsageError
from hauberk.core.kinds import audit


@audit(
    question="Which training labels disagree with those of the most similar samples?",
    paper="Paudice et al. 2018, arXiv:1803.00992; Northcutt et al. 2021, arXiv:1911.00068",
    tags=("aisec:data-poisoning", "atlas:AML.M0007", "owasp:ML02", "nist:NISTAML.013"),
)
def knn_disagreement(data: Split, model: nn.Module | None = None, *, neighbours: int = 10) -> Tensor:
    """Return for each sample the share of its nearest neighbours' votes that go to other labels than its own.

    Arguments:
        data: the labelled samples to audit.
        model: compares samples by its features, the input of its last linear layer; None compares them as they are. A model
            trained on these very labels may have learnt to excuse the wrong ones.
        neighbours: how many vote; near ones count more.

    Returns:
        Suspicion, shape (n,), float64, from 0 (all neighbours agree) to 1 (none does).

    Raises:
        DataError: for labels that are not classes, or fewer than two samples.
    """
    votes = neighbour_votes(data, model, neighbours=neighbours)
    return 1 - votes.gather(1, data.y[:, None])[:, 0]


def neighbour_votes(data: Split, model: nn.Module | None = None, *, neighbours: int = 10) -> Tensor:
    """Return the share of its neighbours' votes that each class gets for each sample, shape (n, classes), float64.

    A vote weighs one over its distance, no distance counting as less than a tenth of the median: exact copies do not outvote all.
    Time grows with the square of n, memory with n.
    """
    if data.y.is_floating_point():
        raise DataError("the labels are not classes", want="integer labels")
    if len(data) < 2:
        raise DataError(f"there are {len(data)} samples", want="at least two: a sample and its neighbour")
    if neighbours < 1:
        raise UsageError(f"neighbours is {neighbours}", want="1 or more")
    points = embedded(data, model)
    distance, index = nearest(points, min(neighbours, len(data) - 1))
    floor = (0.1 * distance.median()).clamp(min=torch.finfo(distance.dtype).tiny)
    weight = 1 / torch.maximum(distance, floor)
    classes = int(data.y.max()) + 1
    votes = torch.zeros(len(data), classes, dtype=torch.float64).scatter_add_(1, data.y[index], weight)
    return votes / votes.sum(1, keepdim=True)


def embedded(data: Split, model: nn.Module | None, batch_size: int = 512) -> Tensor:
    """Return the samples as points, shape (n, width), on the CPU: as they are, or as the model's features."""
    held = itertools.chain(model.parameters(), model.buffers()) if model is not None else ()
    place = next((one for one in held if one.is_floating_point()), torch.empty(0))  # where the model is, and its dtype
    parts = []
    for x, _ in data.batches(batch_size):
        points = x if model is None else taps.features(model, x.to(place.device, place.dtype))
        # Half types lose too much where distances are taken.
        parts.append((points if points.dtype == torch.float64 else points.float()).flatten(1).cpu())
    return torch.cat(parts)


def nearest(points: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return distances, float64, and positions of the nearest other points, shapes (n, count), nearest first."""
    # As many rows at once as keep every table below at some hundred megabytes.
    rows = max(1, 2**24 // max(len(points), count * points.shape[1]))
    exact = points - points.mean(0)  # near zero, the expanded square below loses the fewest digits
    norms = exact.square().sum(1)
    distances, positions = [], []
    for start in progress.track(range(0, len(points), rows), "neighbours"):
        part = exact[start : start + rows]
        squares = norms[start : start + rows, None] + norms - 2 * part @ exact.T  # (rows, n)
        here = torch.arange(len(part))
        squares[here, start + here] = torch.inf
        found = squares.topk(count, dim=1, largest=False).indices
        # Measured again without cancellation, so that copies are at distance zero.
        gaps = (points[found].double() - points[start : start + rows, None].double()).norm(dim=2)
        gaps, order = gaps.sort(dim=1, stable=True)
        distances.append(gaps)
        positions.append(found.gather(1, order))
    return torch.cat(distances), torch.cat(positions)
