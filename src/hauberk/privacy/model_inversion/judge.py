"""What inversions give away: whether an evaluator that the attack never saw recognises them, and how near the truth they lie."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from hauberk.core.errors import DataError
from hauberk.core.finding import Interval
from hauberk.core.image_quality import psnr, ssim
from hauberk.core.kinds import Reconstruction
from hauberk.core.stats import wilson
from hauberk.core.taps import features
from hauberk.core.target import Target, as_target
from hauberk.core.threat import Bounds


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What an evaluator and the private inputs say of inversions of classes.

    Arguments:
        n: inversions judged.
        top1, top5: share that the evaluator assigns to the class meant, first or among its first five (Wilson intervals beside).
        top1_interval, top5_interval: at 95 %.
        nearest: root mean squared distance to the nearest private input of the class, mean over inversions.
        nearest_right: share whose nearest private input, of all classes, is of the class meant.
        feature_distance: distance to the nearest private input of the class in the evaluator's last features, mean; None where
            the evaluator is no module.
        psnr, ssim: of each inversion with the nearest private input of its class, mean; None for what is no image (SSIM).
    """

    n: int
    top1: float
    top1_interval: Interval
    top5: float
    top5_interval: Interval
    nearest: float
    nearest_right: float
    feature_distance: float | None
    psnr: float
    ssim: float | None


def judge_inversion(
    found: Reconstruction, evaluator: Target | nn.Module, private: tuple[Tensor, Tensor], *, bounds: Bounds = (0.0, 1.0)
) -> Judgement:
    """Judge inversions of classes by a classifier that took no part in making them.

    Arguments:
        found: with the class meant in `y`.
        evaluator: a model of another build, trained on other inputs of the same classes, with SCORE access; its own accuracy on
            the private inputs is the most that can be asked of an inversion, so state it beside.
        private: the inputs behind the model and their labels, shapes (m, ...) and (m,).
        bounds: lowest and highest input, for PSNR and SSIM.

    Raises:
        DataError: for inversions without a label, or a class without private inputs.
    """
    x, y = found.x.detach(), found.y
    truth, labels = private
    if y is None or not len(x):
        raise DataError("the inversions have no labels", want="Reconstruction.y: the class meant by each")
    y = y.to(labels.device)
    missing = sorted(set(y.tolist()) - set(labels.tolist()))
    if missing:
        raise DataError(f"there is no private input of class {missing[0]}", want="at least one of each class that was inverted")
    target = as_target(evaluator)
    order = target.logits(x.to(truth)).argsort(1, descending=True)
    first = int((order[:, 0] == y).sum())
    among = int((order[:, :5] == y[:, None]).any(1).sum())
    apart = torch.cdist(x.flatten(1).to(truth).double(), truth.flatten(1).double())  # (n, m)
    within = apart.masked_fill(labels[None] != y[:, None], torch.inf)
    closest = truth[within.argmin(1)]
    right = int((labels[apart.argmin(1)] == y).sum())
    n, size = len(x), truth[0].numel() ** 0.5
    picture = x.ndim == 4 and min(x.shape[-2:]) >= 3
    return Judgement(
        n, first / n, wilson(first, n), among / n, wilson(among, n), float(within.min(1).values.mean()) / size, right / n,
        _feature_distance(evaluator, x.to(truth), y, private), float(psnr(x.to(truth), closest, bounds=bounds).mean()),
        float(ssim(x.to(truth), closest, bounds=bounds).mean()) if picture else None,
    )


def _feature_distance(
    evaluator: Target | nn.Module, x: Tensor, y: Tensor, private: tuple[Tensor, Tensor]
) -> float | None:
    if not isinstance(evaluator, nn.Module) or not any(isinstance(part, nn.Linear) for part in evaluator.modules()):
        return None
    made = features(evaluator, x).double()
    held = torch.cat([features(evaluator, part) for part in private[0].split(256)]).double()
    apart = torch.cdist(made, held).masked_fill(private[1][None] != y[:, None], torch.inf)
    return float(apart.min(1).values.mean())
