"""Membership attacks that know of a defence: prepared on the defended answers, or on models under the same defence."""

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
from hauberk.privacy.defence.outputs import Answering
from hauberk.privacy.defence.repeated import read
from hauberk.privacy.inference.learners import fitted
from hauberk.privacy.membership.evidence import Evidence
from hauberk.privacy.membership.lira import lira
from hauberk.privacy.membership.references import References
from hauberk.privacy.membership.rmia import rmia
from hauberk.privacy.membership.signals import Records, both_sides
from hauberk.privacy.membership.variance_prior import prior_ratio, variance_prior

SCALES = (0.05, 0.15, 0.4, 1.0)  # of the noise, in deviations of the records; the one that tells the known records best is used


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
    _scales: dict[int, float] = dataclasses.field(default_factory=dict, init=False, repr=False, compare=False)

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
        scale = self.scale(target)
        return both_sides(*(self._robust(target, side, scale) for side in self.judged))

    def prior(self, target: Target, references: References) -> MembershipScores:
        """Score records by the variance prior on reference models under the defence."""
        return variance_prior(read(target), *self.judged, references=references)

    def likelihood(self, target: Target, references: References) -> MembershipScores:
        """Score records by LiRA, online, on reference models under the defence."""
        return lira(read(target), *self.judged, references=references)

    def relative(self, target: Target, references: References) -> MembershipScores:
        """Score records by RMIA, offline, on reference models under the defence."""
        return rmia(read(target), *self.judged, references=references)

    def noisy_labels_against(self, target: Target, references: References) -> MembershipScores:
        """Score records by how many noisy copies keep the label, against models that did and did not see the record.

        The log-odds of that count, one half added to either side so that all and none are finite, take the place of the score's
        in the variance prior: it needs labels alone.
        """
        scale = self.scale(target)
        pool = tuple(torch.cat([one[part] for one in self.judged]) for part in (0, 1))
        told = torch.stack([
            torch.cat([self._robust(one, side, scale) for side in self.judged]) for one in (target, *references.models)
        ])
        odds = (told + 0.5).log() - (self.copies + 1.5 - told).log()
        inside = references.holding((pool[0], pool[1])).numpy()
        found = Evidence(odds[0].numpy(), odds[1:].numpy(), inside, len(self.judged[0][1])).need(inside=True)
        return found.split(prior_ratio(found))

    def scale(self, target: Target) -> float:
        """Return the standard deviation of the noise that tells the known records best; found once for a model."""
        held = self._scales.get(id(target.predictor))
        if held is not None:
            return held
        spread = float(torch.cat([side[0] for side in self.known]).flatten(1).double().std(0).mean()) or 1.0
        most = -1.0
        for scale in SCALES:
            found = [self._robust(target, side, scale * spread) for side in self.known]
            area = roc(found[0].numpy(), found[1].numpy()).auc
            if area > most:
                self._scales[id(target.predictor)], most = scale * spread, area
        return self._scales[id(target.predictor)]

    def _robust(self, target: Target, records: Records, scale: float) -> Tensor:
        x, y = records
        draw = rng.generator(self.seed, "noisy labels", scale, len(y))
        total = _right(target, x, y)
        for _ in range(self.copies):
            noise = torch.randn(x.shape, generator=draw).to(x)
            total = total + _right(target, x + scale * noise, y)
        return total


def _right(target: Target, x: Tensor, y: Tensor) -> Tensor:
    predictor = target.predictor
    # Where no label ever changes, its answers are those of the model behind it, and cost no search for a change.
    asked = predictor.target if isinstance(predictor, Answering) and predictor.same_labels else target
    return (asked.labels(x).cpu() == y.cpu()).double()


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
REFERENCED: dict[str, Callable[[Informed, Target, References], MembershipScores]] = {
    "variance prior, references": Informed.prior,
    "LiRA, references": Informed.likelihood,
    "RMIA, references": Informed.relative,
    "labels of noisy copies, references": Informed.noisy_labels_against,
}
