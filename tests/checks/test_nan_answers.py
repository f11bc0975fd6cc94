"""A model that answers NaN to some samples: never right, never an error, and attacks stay finite."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import hauberk
from hauberk import Access, Data, Linf, Split, Target
from hauberk.core.finding import Status
from hauberk.robustness.attack import apgd, carlini_wagner, fmn, hop_skip_jump, pgd, square, transfer

X = torch.rand(400, 4, generator=torch.Generator().manual_seed(0))
TOTAL = X.sum(1)
Y = (TOTAL < 1.9).long()  # class 0, which an arg-max would make of NaN, is that of the broken samples
LIMIT = 2.6


class Half(nn.Module):
    """Right on all samples, but NaN from a limit of the sum on."""

    def forward(self, x: Tensor) -> Tensor:
        total = x.sum(1, keepdim=True)
        return torch.where(total < LIMIT, 5 * torch.cat([total - 1.9, 1.9 - total], 1), torch.full((len(x), 2), torch.nan))


@pytest.mark.parametrize("access", [Access.LABEL, Access.GRADIENT])
def test_nan_is_never_right(access: Access) -> None:
    broken = TOTAL >= LIMIT
    order = broken.int().argsort(stable=True)  # the samples that are looked at first answer with numbers
    probed = torch.linspace(0, 399, 16).round().long()
    places = torch.full((400,), -1)
    places[probed], rest = order[:16], order[16:]
    places[places < 0] = rest
    data = Data(Split(X[places], Y[places]), classes=2, class_names=("high", "low"))
    report = hauberk.assess(
        Target(Half(), access=access), data, threat=Linf(0.05),
        select=["robustness/clean-accuracy", "trust/class-accuracy", "robustness/random-noise", "robustness/hop-skip-jump"],
    )
    found = {one.id: one for one in report.findings}
    assert all(one.status is not Status.ERROR for one in report.findings)
    assert 0 < int(broken.sum()) < 150
    assert found["robustness/clean-accuracy"].value == 1 - float(broken.double().mean())
    high, lost = int((Y == 0).sum()), int(broken.sum())
    worst = found["trust/class-accuracy"]
    assert worst.value == pytest.approx(1 - lost / high) and worst.n == high
    assert tuple(worst.evidence[1].rows[0]) == ("high", "no label", lost, lost / high)  # type: ignore[union-attr]
    assert any("answered NaN" in one for one in report.scope["notices"])


@pytest.mark.parametrize("method", [pgd, apgd, carlini_wagner, fmn, square, hop_skip_jump, transfer])
@pytest.mark.parametrize("targeted", [False, True])
def test_attacks_stay_finite_and_know_what_nan_is_worth(method: object, targeted: bool) -> None:
    # Right, with NaN in reach; and NaN all over the ball. Class 1 is in reach of none.
    chosen = ((TOTAL > LIMIT - 0.2) & (TOTAL < LIMIT)) | (TOTAL > LIMIT + 0.45)
    x, y = X[chosen], torch.full((int(chosen.sum()),), int(targeted))
    threat = Linf(0.1) if method not in (carlini_wagner, hop_skip_jump) else hauberk.L2(0.2)
    threat = (threat.targeted() if targeted else threat).within((0.0, 1.0))
    z = method(Half(), x, y, threat)  # type: ignore[operator]
    assert bool(z.isfinite().all()) and bool(threat.around(x).contains(z).all())
    labels, lost = Target(Half()).labels(z), x.sum(1) > LIMIT
    assert 0 < int(lost.sum()) < len(x) and bool((labels[lost] == -1).all())
    reached = threat.reached(labels, y)
    assert not bool(reached.any()) if targeted else bool(reached[lost].all())
