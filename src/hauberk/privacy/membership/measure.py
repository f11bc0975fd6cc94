"""What membership scores are worth: rates at few false alarms, chance, and controls that catch a misleading evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from hauberk.core.finding import Interval
from hauberk.core.kinds import MembershipScores
from hauberk.core.overlap import fingerprints
from hauberk.core.rng import generator, numpy_generator
from hauberk.core.roc import Roc, auc_interval, roc
from hauberk.privacy.membership.signals import Records

Attack = Callable[[Records, Records], MembershipScores]


@dataclasses.dataclass(frozen=True)
class Exposure:
    """How far members can be told from non-members.

    Arguments:
        roc: of the scores.
        auc_interval: of the area, by DeLong.
        fpr: the false-positive rate of the headline: the one asked for, or the lowest that these records can resolve.
        tpr: members recognised at that rate.
        tpr_interval: of the rate that the attack really has there; its threshold is estimated too, see `Roc.tpr_interval`.
        chance: probability that so many members would be recognised if membership left no trace.
        ahead: how many times as many members as non-members surely stand out there, see `Roc.surely_ahead`.
    """

    roc: Roc
    auc_interval: Interval
    fpr: float
    tpr: float
    tpr_interval: Interval
    chance: float
    ahead: float = 0.0


def exposure(scores: MembershipScores, fpr: float = 1e-3) -> Exposure:
    """Return how exposed the members are at a low false-positive rate.

    Arguments:
        scores: of both sides, each at least one long.
        fpr: the false-positive rate wanted. With fewer than 1 / fpr non-members one false alarm is already more, and the rate
            of one false alarm, 1 / k, is taken in its place.
    """
    members, others = scores.members.numpy(), scores.non_members.numpy()
    curve = roc(members, others)
    asked = max(fpr, 1 / len(others))
    tpr = curve.tpr_at(asked)
    return Exposure(
        curve, auc_interval(members, others), asked, tpr, curve.tpr_interval(asked),
        chance_of(round(tpr * len(members)), int(asked * len(others) + 1e-9), len(members), len(others)),
        curve.surely_ahead(asked),
    )


def chance_of(hits: int, alarms: int, members: int, others: int) -> float:
    """Return how likely at least `hits` members outrank all but `alarms` of the others if both sides are exchangeable.

    Exact (negative hypergeometric): so many members come before the next non-member just when the first hits + alarms places hold
    at most `alarms` non-members.
    """
    if hits <= 0:
        return 1.0
    return float(stats.hypergeom.cdf(alarms, members + others, others, hits + alarms))


def shuffled_auc(scores: MembershipScores, *, seed: int, draws: int = 200) -> tuple[float, Interval]:
    """Return the mean area and its 95 % range when membership is dealt at random: .5 unless the evaluation itself is broken."""
    pool = torch.cat([scores.members, scores.non_members]).numpy()
    dealer, cut = numpy_generator(seed, "shuffled membership"), len(scores.members)
    # The area of a deal is its members' rank sum: ranks are taken once, not per deal.
    ranks = stats.rankdata(pool)
    others = len(pool) - cut
    areas = [
        (ranks[dealer.permutation(len(pool))[:cut]].sum() - cut * (cut + 1) / 2) / (cut * others) for _ in range(draws)
    ]
    low, high = np.quantile(areas, [0.025, 0.975])
    return float(np.mean(areas)), Interval(float(low), float(high), "permutation")


def dealt_anew(attack: Attack, members: Records, non_members: Records, *, seed: int) -> MembershipScores:
    """Return what an attack says when the records of both sides are dealt to two sides at random: an area of .5 is right.

    An attack is told the sides and must not use them. One that does (a lower threshold for who comes first, a model fitted to one
    side) tells these sides apart as well, though nothing else does.

    Arguments:
        attack: `(members, non-members) -> scores`.
        members, non_members: records, (x, y) each.
        seed: of the deal.
    """
    x, y = (torch.cat([one, other.to(one.device)]) for one, other in zip(members, non_members, strict=True))
    order, cut = torch.randperm(len(y), generator=generator(seed, "dealt anew")).to(y.device), len(members[1])
    first, second = order[:cut], order[cut:]
    return attack((x[first.to(x.device)], y[first]), (x[second.to(x.device)], y[second]))


def blind_auc(
    members: Tensor, non_members: Tensor, *, seed: int, folds: int = 5, labels: tuple[Tensor, Tensor] | None = None
) -> tuple[float, Interval, Roc]:
    """Return how well the two sides can be told apart from the records alone, without the model: area, interval and curve.

    A ridge classifier on the inputs (projected to 64 random directions where there are more features) and labels, scored on
    records it was not fitted to. Above .5 the two splits differ in themselves, and a membership figure is in part that difference
    (Das et al. 2024, arXiv:2406.16201).

    Arguments:
        members, non_members: inputs, shapes (m, ...) and (k, ...).
        seed: of the folds and the projection.
        folds: each is scored by a classifier fitted to the others.
        labels: of both sides, (m,) and (k,): every attack sees them, and they may be mixed otherwise. None leaves them out.
    """
    rows = torch.cat([members, non_members]).flatten(1)
    if rows.shape[1] > 64:
        draw = torch.randn(rows.shape[1], 64, generator=generator(seed, "blind projection"))
        # In parts: large images in float64, all at once, would take more memory than the model.
        x = torch.cat([part.cpu().float() @ draw for part in rows.split(256)]).double()
    else:
        x = rows.cpu().double()
    if labels is not None:
        codes = torch.unique(torch.cat([one.cpu() for one in labels]), return_inverse=True)[1]
        known = torch.nn.functional.one_hot(codes).double()
        if known.shape[1] > 64:
            known = known @ torch.randn(known.shape[1], 64, generator=generator(seed, "blind labels")).double()
        x = torch.cat([x, known], 1)
    side = torch.cat([torch.ones(len(members)), -torch.ones(len(non_members))]).double()
    x = (x - x.mean(0)) / x.std(0).clamp(min=1e-9)
    x = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], 1)
    scores = torch.zeros(len(x), dtype=torch.float64)
    kind = torch.unique(fingerprints(rows), return_inverse=True)[1]
    kind = kind if int(kind.max()) + 1 < len(x) else torch.arange(len(x))
    # Copies of a record are in one fold: it is not to be fitted to what it judges.
    fold = (torch.randperm(int(kind.max()) + 1, generator=generator(seed, "blind folds")) % folds)[kind]
    for held in range(folds):
        fit, out = fold != held, fold == held
        gram = x[fit].T @ x[fit] + len(x) * 1e-3 * torch.eye(x.shape[1], dtype=torch.float64)
        scores[out] = x[out] @ torch.linalg.solve(gram, x[fit].T @ side[fit])
    left, right = scores[: len(members)].numpy(), scores[len(members) :].numpy()
    curve = roc(left, right)
    return curve.auc, auc_interval(left, right), curve
