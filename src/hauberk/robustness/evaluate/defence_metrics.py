"""What a defence changes on undisturbed data: right and wrong answers gained and lost, and the answers themselves."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn

from hauberk.core.errors import DataError
from hauberk.core.finding import Interval
from hauberk.core.stats import mcnemar
from hauberk.core.target import Target, as_target
from hauberk.core.threat import labels_of
from hauberk.robustness.evaluate.figure import Figure, mean, one_class, share


@dataclasses.dataclass(frozen=True)
class DefenceMetrics:
    """The metrics of DEEPSEC (Ling et al. 2019) for a defence; `cav` is always `crr` - `csr`.

    Arguments:
        cav: accuracy with the defence minus accuracy without; its interval is that of a paired difference.
        crr: share of all samples that only the defended model gets right.
        csr: share of all samples that only the undefended model gets right.
        ccv: mean change, in size, of the probability of the true class, over samples that both get right.
        cos: mean Jensen-Shannon divergence of the two answers in nats, at most ln 2, over the same samples.
        p_value: of both being right equally often (exact McNemar test); NaN where there are no samples.
    """

    cav: Figure
    crr: Figure
    csr: Figure
    ccv: Figure
    cos: Figure
    p_value: float

    def rows(self) -> list[tuple[str, str, int]]:
        """Return name, value and n of each metric, as text."""
        names = {
            "cav": "change of accuracy (CAV)", "crr": "mistakes mended (CRR)", "csr": "right answers lost (CSR)",
            "ccv": "change of confidence (CCV)", "cos": "divergence of the answers (COS)",
        }
        return [(told, getattr(self, name).words(), getattr(self, name).n) for name, told in names.items()]


def defence_metrics(raw: Target | nn.Module, defended: Target | nn.Module, x: Tensor, y: Tensor) -> DefenceMetrics:
    """Compare a model with its defended form on the same undisturbed samples.

    Arguments:
        raw, defended: with SCORE access.
        x: inputs, shape (n, ...).
        y: true labels, shape (n,).

    Raises:
        DataError: where labels and inputs, or the classes of the two models, do not fit.
        UsageError: for a multi-label model.
    """
    targets = [as_target(one) for one in (raw, defended)]
    for one in targets:
        one_class(one, "defence_metrics")
    if y.shape != x.shape[:1]:
        raise DataError(f"y has shape {tuple(y.shape)} for {len(x)} samples", want=f"({len(x)},): one label each")
    if not len(x):
        return DefenceMetrics(Figure(), Figure(), Figure(), Figure(), Figure(), math.nan)
    before, after = (one.logits(x).double() for one in targets)
    if before.shape != after.shape:
        raise DataError(f"the models answer {before.shape[1]} and {after.shape[1]} classes", want="two models of the same task")
    was, now = labels_of(before) == y, labels_of(after) == y
    gained, lost = ~was & now, was & ~now
    both, p, q = was & now, before.softmax(1), after.softmax(1)
    own = y[both][:, None]
    return DefenceMetrics(
        cav=_difference(gained, lost), crr=share(gained), csr=share(lost),
        ccv=mean((q[both].gather(1, own) - p[both].gather(1, own)).abs()[:, 0]), cos=mean(jensen_shannon(p[both], q[both])),
        p_value=mcnemar(int(gained.sum()), int(lost.sum())),
    )


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """Return the Jensen-Shannon divergence of each pair of rows in nats, shape (n,), float64: 0 for the same, at most ln 2."""
    p, q = p.double(), q.double()
    middle = (p + q) / 2
    # Where an entry is zero its part is zero: `xlogy` knows.
    halves = (torch.xlogy(one, one) - torch.xlogy(one, middle) for one in (p, q))
    return (sum(halves, torch.zeros_like(p)).sum(1) / 2).clamp(min=0)


def _difference(gained: Tensor, lost: Tensor) -> Figure:
    """Return gained minus lost as a share, with Wald's interval of a paired difference, a pseudo-count of one half each way."""
    n, up, down = len(gained), int(gained.sum()), int(lost.sum())
    spread = 1.96 * ((up + down + 1 - (up - down) ** 2 / n) ** 0.5) / n
    value = (up - down) / n
    return Figure(value, n, Interval(max(-1.0, value - spread), min(1.0, value + spread), "wald-paired"))
