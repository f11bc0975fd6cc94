"""How good adversarial examples are: how often they succeed, how surely, how visibly, and what survives of them."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hauberk.core import geometry
from hauberk.core.attacks import Attack
from hauberk.core.errors import DataError
from hauberk.core.target import Target, as_target
from hauberk.core.threat import REFUSED, Bounds, Threat, labels_of
from hauberk.robustness.evaluate.figure import NOTHING, Figure, mean, one_class, share
from hauberk.robustness.evaluate.image_quality import psnr, ssim
from hauberk.robustness.natural import gaussian_blur, jpeg

NAMES = {
    "success": "misclassification rate (MR)", "acac": "confidence in the adversarial class (ACAC)",
    "actc": "confidence in the true class (ACTC)", "l0": "features changed (ALD L0)", "l2": "length of the change (ALD L2)",
    "linf": "largest change (ALD Linf)", "relative_l0": "share of features changed", "relative_l2": "L2, relative to the sample",
    "relative_linf": "Linf, relative to the sample", "ass": "structural similarity (ASS)", "psnr": "PSNR in dB",
    "nte": "lead over the second class (NTE)", "rgb": "robust to Gaussian blur (RGB)", "ric": "robust to JPEG (RIC)",
    "queries": "queries per sample", "seconds": "seconds per sample",
}


@dataclasses.dataclass(frozen=True)
class AttackMetrics:
    """The metrics of DEEPSEC (Ling et al. 2019) for one attack.

    All but `success` are means over the samples it succeeded on; where there are none they are not measured.

    Arguments:
        success: share of the samples with the right answer undisturbed on which the attack reached its goal.
        acac, actc: probability that the model gives the adversarial class, and the true one, at the adversarial example.
        l0, l2, linf: size of the change in input units; L0 counts changed features.
        relative_l0: share of all features that changed.
        relative_l2, relative_linf: size of the change over that of the sample; samples that are all zero take no part.
        ass, psnr: structural similarity of images, and peak signal-to-noise ratio in dB; not measured within infinite bounds.
        nte: distance between the largest and the second largest probability: the noise the example tolerates.
        rgb, ric: share of the examples that still succeed after Gaussian blur, and after JPEG compression.
        transfer: by name of another model, share of the examples that reach the goal there too, among those whose clean sample
            that model gets right.
        queries: mean per sample over all samples attacked; `median_queries` and `query_counts` over the successes.
        seconds: mean per sample.
    """

    success: Figure
    acac: Figure
    actc: Figure
    l0: Figure
    l2: Figure
    linf: Figure
    relative_l0: Figure
    relative_l2: Figure
    relative_linf: Figure
    nte: Figure
    psnr: Figure
    ass: Figure = NOTHING
    rgb: Figure = NOTHING
    ric: Figure = NOTHING
    transfer: Mapping[str, Figure] = dataclasses.field(default_factory=dict)
    queries: Figure = NOTHING
    median_queries: float | None = None
    query_counts: tuple[int, ...] = ()
    seconds: Figure = NOTHING

    def rows(self) -> list[tuple[str, str, str, int]]:
        """Return name, value, 95 % interval and n of each metric, as text."""
        named = [(NAMES[key], getattr(self, key)) for key in NAMES]
        named += [(f"transfers to {name}", one) for name, one in self.transfer.items()]
        return [(name, one.words(), _span(one), one.n) for name, one in named]

    def outline(self) -> dict[str, float | None]:
        """Return the metrics that are shares, each turned so that 1 is best for the adversary: the axes of a radar chart."""
        turned = None if self.actc.value is None else 1 - self.actc.value
        likeness = None if self.ass.value is None else max(0.0, self.ass.value)
        axes = {
            "success": self.success.value, "confidence": self.acac.value, "true class gone": turned, "lead": self.nte.value,
            "likeness": likeness, "survives blur": self.rgb.value, "survives JPEG": self.ric.value,
        }
        return axes | {f"transfers to {name}": one.value for name, one in self.transfer.items()}

    def success_by_queries(self) -> tuple[list[int], list[float]]:
        """Return the curve of success against queries: after so many a sample, the share of samples that are broken."""
        steps = sorted(set(self.query_counts))
        attacked = max(self.success.n, 1)
        return [0, *steps], [0.0, *(sum(one <= step for one in self.query_counts) / attacked for step in steps)]


def attack_metrics(
    target: Target | nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, *, wanted: Tensor | None = None,
    others: Mapping[str, Target | nn.Module] | None = None, spent: Spent | None = None, severity: int = 2,
) -> AttackMetrics:
    """Measure adversarial examples; the model is asked about x, x_adv and, for images, their blurred and compressed forms.

    Arguments:
        target: with SCORE access.
        x, x_adv: clean and adversarial inputs, shape (n, ...).
        y: true labels, shape (n,).
        wanted: the labels a targeted attack was to reach, shape (n,); None for an untargeted one.
        others: other models by name, to which the examples may transfer.
        spent: what `one_by_one` counted for each sample.
        severity: of blur and JPEG, 1 to 5 as the corruptions have them; images alone.

    Returns:
        The metrics, over the samples that the target gets right undisturbed.

    Raises:
        DataError: where the shapes do not fit, or x_adv is not finite.
        UsageError: for a multi-label model.
    """
    target, aim = as_target(target), y if wanted is None else wanted
    known = {name: as_target(one) for name, one in (others or {}).items()}
    for one in (target, *known.values()):
        one_class(one, "attack_metrics")
    _fit(x, x_adv, y, wanted)
    # Wrong undisturbed, or an aim that is the true label: the adversary had nothing to do, and its figures say nothing.
    right = target.labels(x) == y if wanted is None else (target.labels(x) == y) & (wanted != y)
    logits = target.logits(x_adv)
    labels = labels_of(logits)
    hit = right & _reached(labels, aim, wanted is not None)
    z, clean, p = x_adv[hit], x[hit], logits[hit].double().softmax(1)
    change, size = (z.double() - clean.double()).flatten(1), clean.double().flatten(1)
    top = p.topk(min(2, p.shape[1]), dim=1).values if len(p) else p.new_zeros(0, 2)
    length = {norm: geometry.norms(change, norm) for norm in ("l0", "l2", "linf")}
    # An infinite ratio (a sample of zeros) is left out of the mean.
    ratio = {norm: length[norm] / geometry.norms(size, norm) for norm in ("l2", "linf")}
    bounds = target.bounds if target.bounds is not None else (0.0, 1.0)
    targeted = wanted is not None
    likeness, blurred, compressed = _seen(target, z, clean, aim[hit], targeted, severity, bounds)
    metrics = AttackMetrics(
        success=share(hit[right]), acac=mean(p.gather(1, labels[hit].clamp(min=0)[:, None])[:, 0]),
        actc=mean(p.gather(1, y[hit][:, None])[:, 0]), l0=mean(length["l0"]), l2=mean(length["l2"]), linf=mean(length["linf"]),
        relative_l0=mean(length["l0"] / max(change.shape[1], 1)), relative_l2=mean(ratio["l2"]),
        relative_linf=mean(ratio["linf"]), nte=mean(top[:, 0] - top[:, -1]),
        psnr=mean(psnr(clean, z, bounds=bounds)) if _ranged(bounds) else NOTHING,
        ass=likeness, rgb=blurred, ric=compressed,
        transfer={
            name: _transferred(one, clean, z, y[hit], aim[hit], targeted) for name, one in known.items()
        },
    )
    return metrics if spent is None else _with_spending(metrics, spent, right, hit)


@dataclasses.dataclass(frozen=True)
class Spent:
    """What an attack spent on each sample: shape (n,) each; `x_adv` is what it returned, shape (n, ...)."""

    x_adv: Tensor
    queries: Tensor
    gradients: Tensor
    seconds: Tensor


def one_by_one(
    attack: Attack, target: Target | nn.Module, x: Tensor, y: Tensor, threat: Threat, **options: Any
) -> Spent:
    """Run an attack on one sample at a time, so that every query has an owner; slower than a batch, and exact.

    Arguments:
        attack: any attack; the options are its own.
        target, x, y, threat: as the attack takes them.
    """
    whole, found, counted = as_target(target), [], []
    for index in torch.arange(len(x), device=x.device).split(1):
        view, began = whole.fresh(), time.perf_counter()
        found.append(attack(view, x[index], y[index], threat.subset(index, x), **options))
        counted.append((view.ledger.queries, view.ledger.gradients, time.perf_counter() - began))
    table = torch.tensor(counted, dtype=torch.float64).reshape(-1, 3)
    made = torch.cat(found) if found else x.clone()
    return Spent(made, table[:, 0].long(), table[:, 1].long(), table[:, 2])


def _seen(
    target: Target, z: Tensor, clean: Tensor, aim: Tensor, targeted: bool, severity: int, bounds: Bounds
) -> tuple[Figure, Figure, Figure]:
    """Return the metrics that images alone have: likeness, and what survives blur and JPEG."""
    if z.ndim != 4 or min(z.shape[2:]) < 3 or not len(z) or not _ranged(bounds):
        return NOTHING, NOTHING, NOTHING
    blurred, compressed = (
        share(_reached(target.labels(change(z, severity, bounds=bounds)), aim, targeted)) for change in (gaussian_blur, jpeg)
    )
    return mean(ssim(clean, z, bounds=bounds)), blurred, compressed


def _transferred(other: Target, clean: Tensor, z: Tensor, y: Tensor, aim: Tensor, targeted: bool) -> Figure:
    if not len(z):
        return Figure()
    knows = other.labels(clean) == y
    return share(_reached(other.labels(z), aim, targeted)[knows])


def _with_spending(metrics: AttackMetrics, spent: Spent, right: Tensor, hit: Tensor) -> AttackMetrics:
    counts = sorted(spent.queries[hit.cpu()].tolist())
    middle = (counts[(len(counts) - 1) // 2] + counts[len(counts) // 2]) / 2 if counts else None
    attacked = right.cpu()
    return dataclasses.replace(
        metrics, queries=mean(spent.queries[attacked].double()), seconds=mean(spent.seconds[attacked]), median_queries=middle,
        query_counts=tuple(counts),
    )


def _reached(labels: Tensor, aim: Tensor, targeted: bool) -> Tensor:
    return labels == aim if targeted else (labels != aim) & (labels != REFUSED)


def _fit(x: Tensor, x_adv: Tensor, y: Tensor, wanted: Tensor | None) -> None:
    if x.shape != x_adv.shape:
        raise DataError(f"x has shape {tuple(x.shape)} and x_adv {tuple(x_adv.shape)}", want="two of the same shape")
    if not bool(x_adv.isfinite().all()):
        raise DataError("x_adv holds values that are NaN or infinite", want="finite inputs")
    names: Sequence[tuple[str, Tensor | None]] = (("y", y), ("wanted", wanted))
    for name, labels in names:
        if labels is not None and (labels.shape != x.shape[:1] or labels.is_floating_point()):
            raise DataError(f"{name} has shape {tuple(labels.shape)} of {labels.dtype}", want=f"({len(x)},): one class each")


def _ranged(bounds: Bounds) -> bool:
    """Whether the inputs have a range, of which likeness and noise are shares."""
    low, high = (torch.as_tensor(end, dtype=torch.float64) for end in bounds)
    return 0 < float((high - low).max()) < math.inf


def _span(figure: Figure) -> str:
    return "" if figure.interval is None else f"{figure.interval.low:.3f} to {figure.interval.high:.3f}"
