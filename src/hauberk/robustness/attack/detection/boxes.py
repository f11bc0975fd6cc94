"""Boxes and figures about them: overlap, which true boxes were found, average precision, each with its interval."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hauberk.core.errors import DataError, ModelError
from hauberk.core.finding import Interval
from hauberk.core.rng import numpy_generator
from hauberk.core.stats import bootstrap, wilson


@dataclasses.dataclass(frozen=True, eq=False)
class Boxes:
    """What is, or is said to be, in one image.

    Arguments:
        boxes: left, top, right, bottom in pixels, shape (k, 4).
        labels: classes from 0, shape (k,).
        scores: confidence, shape (k,); None for what is true.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def confidence(self) -> Tensor:
        """The scores, 1 where there are none, shape (k,)."""
        return torch.ones(len(self), dtype=torch.float64) if self.scores is None else self.scores.double()

    @classmethod
    def read(cls, answer: object) -> Boxes:
        """Return what a detector said of one image: Boxes, or a mapping with `boxes`, `labels` and `scores`.

        Scores of every class, shape (k, classes), are read at the box's label.

        Raises:
            ModelError: for anything else, and for shapes that do not belong together.
        """
        if isinstance(answer, Boxes):
            answer = {"boxes": answer.boxes, "labels": answer.labels, "scores": answer.scores}
        if not isinstance(answer, Mapping) or not {"boxes", "labels", "scores"} <= set(answer):
            raise ModelError(
                f"the detector answered a {type(answer).__name__} for an image", want="a mapping with boxes, labels and scores"
            )
        boxes, labels, scores = (torch.as_tensor(answer[name]).detach() for name in ("boxes", "labels", "scores"))
        if scores.ndim == 2 and len(scores) == len(labels) and labels.ndim == 1:
            scores = scores.gather(1, labels[:, None].long())[:, 0] if scores.shape[1] else scores.amax(1)
        if boxes.shape != (len(labels), 4) or scores.shape != labels.shape or labels.ndim != 1:
            shapes = f"boxes {tuple(boxes.shape)}, labels {tuple(labels.shape)} and scores {tuple(scores.shape)}"
            raise ModelError(f"the detector answered {shapes}", want="(k, 4), (k,) and (k,) or (k, classes)")
        return cls(boxes.cpu().double(), labels.cpu().long(), scores.cpu().double().nan_to_num(nan=0.0))


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Return the intersection over union of every box of a, (k, 4), with every one of b, (m, 4): shape (k, m), float64."""
    a, b = a.double()[:, None], b.double()[None]
    sides = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0)  # (k, m, 2)
    shared = sides.prod(-1)
    whole = (a[..., 2:] - a[..., :2]).clamp(min=0).prod(-1) + (b[..., 2:] - b[..., :2]).clamp(min=0).prod(-1) - shared
    return torch.where(whole > 0, shared / whole.clamp(min=torch.finfo(whole.dtype).tiny), torch.zeros_like(whole))


def matched(truth: Boxes, seen: Boxes, iou: float = 0.5) -> Tensor:
    """Return for each box seen which true box it finds, -1 for none, shape (k,).

    As in the PASCAL protocol: the most confident first, each goes to the true box of its label that it overlaps most, if by
    `iou` or more, and a true box is found once.
    """
    answer = torch.full((len(seen),), -1)
    if not len(truth) or not len(seen):
        return answer
    overlaps = overlap(seen.boxes.cpu(), truth.boxes.cpu())
    overlaps[seen.labels.cpu()[:, None] != truth.labels.cpu()[None]] = 0
    best, to = overlaps.max(1)
    taken = torch.zeros(len(truth), dtype=torch.bool)
    for row in seen.confidence.cpu().argsort(descending=True, stable=True).tolist():
        if best[row] >= iou and not taken[to[row]]:
            taken[to[row]], answer[row] = True, to[row]
    return answer


def found(truth: Boxes, seen: Boxes, iou: float = 0.5) -> Tensor:
    """Return which true boxes were found, shape (k,), bool."""
    hit = torch.zeros(len(truth), dtype=torch.bool)
    match = matched(truth, seen, iou)
    hit[match[match >= 0]] = True
    return hit


def mean_average_precision(truth: Sequence[Boxes], seen: Sequence[Boxes], iou: float = 0.5) -> float:
    """Return the area under the precision-recall curve, made monotone, averaged over the classes that are there; nan for none.

    All points count, as PASCAL does since 2010.
    """
    pairs = list(zip(truth, seen, strict=True))
    match = [matched(true, said, iou) for true, said in pairs]
    classes = sorted({int(label) for true in truth for label in true.labels})
    values = []
    for label in classes:
        wanted = sum(int((true.labels == label).sum()) for true in truth)
        hits = torch.cat([hit[said.labels == label] >= 0 for hit, (_, said) in zip(match, pairs, strict=True)])
        scores = torch.cat([said.confidence[said.labels == label] for said in seen])
        hits = hits[scores.argsort(descending=True, stable=True)].double()
        right = hits.cumsum(0)
        precision = right / torch.arange(1, len(hits) + 1)
        envelope = precision.flip(0).cummax(0).values.flip(0) if len(hits) else precision
        values.append(float((envelope * hits).sum()) / wanted)
    return sum(values) / len(values) if values else float("nan")


@dataclasses.dataclass(frozen=True)
class Damage:
    """What an attack did to a detector, at one overlap.

    Arguments:
        boxes: true boxes there are.
        found_before, found_after: shares of them that were found, with Wilson's intervals; nan where there are no true boxes.
        map_before, map_after: mean average precision, with bootstrap intervals over the images.
    """

    boxes: int
    found_before: float
    found_after: float
    interval_before: Interval
    interval_after: Interval
    map_before: float
    map_after: float
    map_interval_before: Interval
    map_interval_after: Interval


def damage(
    truth: Sequence[Boxes], before: Sequence[Boxes], after: Sequence[Boxes], *, iou: float = 0.5, seed: int = 0
) -> Damage:
    """Return what is left of a detector's answers.

    Arguments:
        truth: what is in each image.
        before, after: what the detector says of the clean images and of the attacked ones.
        iou: overlap from which a box counts as found.
        seed: of the bootstrap.
    """
    truth = [checked(one, at) for at, one in enumerate(truth)]
    shares, bands, precisions, map_bands = [], [], [], []
    for seen in (before, after):
        hits = [found(true, said, iou) for true, said in zip(truth, seen, strict=True)]
        hit, n = sum(int(one.sum()) for one in hits), sum(map(len, truth))
        shares.append(hit / n if n else float("nan"))
        bands.append(wilson(hit, n))
        precisions.append(mean_average_precision(truth, seen, iou))
        map_bands.append(_map_band(truth, seen, iou, seed))
    return Damage(
        sum(map(len, truth)), shares[0], shares[1], bands[0], bands[1], precisions[0], precisions[1], map_bands[0], map_bands[1]
    )


def checked(truth: object, at: int) -> Boxes:
    """Return what is in the image at that position. Raises DataError for anything but boxes with labels."""
    if not isinstance(truth, Boxes):
        raise DataError(f"truth at index {at} is a {type(truth).__name__}", want="Boxes(boxes, labels)")
    boxes, labels = truth.boxes, truth.labels
    if boxes.shape != (len(labels), 4) or labels.ndim != 1:
        shapes = f"boxes {tuple(boxes.shape)} and labels {tuple(labels.shape)}"
        raise DataError(f"truth at index {at} has {shapes}", want="(k, 4) and (k,)")
    if labels.is_floating_point() or labels.dtype is torch.bool or (len(labels) and int(labels.min()) < 0):
        raise DataError(f"truth at index {at} has labels {labels.tolist()[:5]}", want="integer labels from 0")
    if not bool(boxes.isfinite().all()) or not bool((boxes[:, :2] < boxes[:, 2:]).all()):
        raise DataError(
            f"truth at index {at} holds a box that is not finite or has no area", want="left, top, right, bottom in pixels",
            fix="Turn (x, y, width, height) into corners",
        )
    return Boxes(boxes.cpu().double(), labels.cpu().long())


def _map_band(truth: Sequence[Boxes], seen: Sequence[Boxes], iou: float, seed: int) -> Interval:
    if not sum(map(len, truth)):
        return Interval(float("nan"), float("nan"), "bootstrap", 0.95)

    def again(rows: object) -> float:
        at = [int(one) for one in torch.as_tensor(rows).flatten()]
        return mean_average_precision([truth[one] for one in at], [seen[one] for one in at], iou)

    return bootstrap(list(range(len(truth))), again, rng=numpy_generator(seed, "map"), draws=200)
