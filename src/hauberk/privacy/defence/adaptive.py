"""Membership attacks that know of a defence: prepared on the defended model's own answers, or asking for labels alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from hauberk.core import rng
from hauberk.core.access import Access
from hauberk.core.kinds import MembershipScores
from hauberk.core.roc import roc
from hauberk.core.target import Target
from hauberk.privacy.inference.learners import fitted
from hauberk.privacy.membership.signals import Records, both_sides

SCALES = (0.05, 0.15, 0.4)  # of the noise, in deviations of the records; the one that tells the known records best is used


@dataclasses.dataclass(frozen=True)
class Informed:
    """An adversary who knows the defence, and of some records whether they are members.

    Arguments:
        known: members and non-members that are known, (x, y) each.
        judged: members and non-members to be told apart.
        copies: noisy copies asked about per record.
        seed: of the classifier and the noise.
    """

    known: tuple[Records, Records]
    judged: tuple[Records, Records]
    copies: int
    seed: int

    def trained(self, target: Target) -> MembershipScores:
        """Score records by a forest trained on the target's answers to the known ones: it learns to see through any transform."""
        rows = [_answers(target, side) for side in (*self.known, *self.judged)]
        side = torch.cat([torch.ones(len(rows[0])), torch.zeros(len(rows[1]))]).long()
        found = fitted("forest", torch.cat(rows[:2]), side, torch.cat(rows[2:]), 2, self.seed)
        odds = found[:, 1] - found[:, 0]
        return both_sides(odds[: len(rows[2])], odds[len(rows[2]) :])

    def right_labels(self, target: Target) -> MembershipScores:
        """Score records by whether their label is given (Yeom et al. 2018): the gap in accuracy, which needs no scores."""
        return both_sides(*(_right(target, x, y) for x, y in self.judged))

    def noisy_labels(self, target: Target) -> MembershipScores:
        """Score records by how many noisy copies keep the label (Choquette-Choo et al. 2021): far from the boundary, more do."""
        pool = torch.cat([side[0] for side in self.known]).flatten(1).double()
        spread = float(pool.std(0).mean()) or 1.0
        best, most = SCALES[0] * spread, -1.0
        for scale in SCALES:
            found = [self._robust(target, side, scale * spread) for side in self.known]
            area = roc(found[0].numpy(), found[1].numpy()).auc
            if area > most:
                best, most = scale * spread, area
        return both_sides(*(self._robust(target, side, best) for side in self.judged))

    def _robust(self, target: Target, records: Records, scale: float) -> Tensor:
        x, y = records
        draw = rng.generator(self.seed, "noisy labels", scale, len(y))
        total = _right(target, x, y)
        for _ in range(self.copies):
            noise = torch.randn(x.shape, generator=draw).to(x)
            total = total + _right(target, x + scale * noise, y)
        return total


def _right(target: Target, x: Tensor, y: Tensor) -> Tensor:
    return (target.labels(x).cpu() == y.cpu()).double()


def _answers(target: Target, records: Records) -> Tensor:
    """Return what a record's answer tells, shape (n, features): the sorted scores and the label's own, on a log scale."""
    x, y = records
    y = y.cpu()
    if target.access < Access.SCORE:
        return torch.stack([_right(target, x, y), y.double()], 1)
    log_p = target.logits(x).double().cpu().log_softmax(1).clamp_min(-50)
    own = log_p.gather(1, y[:, None])
    # Scores rounded to 1 hide their tail in the others: the sum of those is told too, to its full precision.
    rest = log_p.scatter(1, y[:, None], -torch.inf).logsumexp(1, keepdim=True).clamp_min(-50)
    right = (log_p.argmax(1, keepdim=True) == y[:, None]).double()
    return torch.cat([log_p.sort(1, descending=True).values, own, rest, right, y[:, None].double()], 1)


ADAPTIVE: dict[str, Callable[[Informed, Target], MembershipScores]] = {
    "classifier trained on its answers": Informed.trained,
    "label alone": Informed.right_labels,
    "labels of noisy copies": Informed.noisy_labels,
}
