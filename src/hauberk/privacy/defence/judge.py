"""What a defence against membership inference is worth: against attacks that know of it, and what it costs."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping

import torch
from torch import nn

from hauberk.core.access import Access
from hauberk.core.errors import AccessDenied, DataError
from hauberk.core.finding import Interval, Table
from hauberk.core.kinds import MembershipScores
from hauberk.core.rng import generator
from hauberk.core.stats import newcombe, wilson
from hauberk.core.target import Target, as_target
from hauberk.privacy.defence.adaptive import ADAPTIVE, Informed
from hauberk.privacy.membership import confidence_membership, entropy_membership, loss_membership, modified_entropy
from hauberk.privacy.membership.measure import Exposure, exposure
from hauberk.privacy.membership.signals import Records

Inference = Callable[[Target, Records, Records], MembershipScores]
USUAL: dict[str, Inference] = {
    "loss": loss_membership, "confidence": confidence_membership, "entropy": entropy_membership,
    "modified entropy": modified_entropy,
}
BINS = 15


@dataclasses.dataclass(frozen=True)
class Row:
    """One attack on the plain and on the defended model; None where the model refuses what the attack asks for.

    Arguments:
        attack: its name.
        adaptive: whether it knows the defence.
        plain, defended: how exposed the members are, on records that the attack was not prepared on.
    """

    attack: str
    adaptive: bool
    plain: Exposure | None
    defended: Exposure | None


@dataclasses.dataclass(frozen=True)
class Utility:
    """What a model is good for on held-out records.

    Arguments:
        n: records.
        right: of them with the right label.
        calibration: expected calibration error over 15 bins; None where only labels come back.
    """

    n: int
    right: int
    calibration: float | None

    @property
    def accuracy(self) -> float:
        """The share that is right."""
        return self.right / self.n if self.n else float("nan")

    @property
    def interval(self) -> Interval:
        """Wilson's, of the accuracy."""
        return wilson(self.right, self.n)


@dataclasses.dataclass(frozen=True)
class DefenceVerdict:
    """A defence beside no defence.

    Arguments:
        rows: the attacks, those that know the defence last.
        plain, defended: utility.
    """

    rows: tuple[Row, ...]
    plain: Utility
    defended: Utility

    def strongest(self, defended: bool = True) -> Row:
        """Return the attack with the largest area against the defended (or the plain) model: a model is judged by that one."""

        def area(row: Row) -> float:
            found = row.defended if defended else row.plain
            return -1.0 if found is None else found.roc.auc

        return max(self.rows, key=area)

    @property
    def loss(self) -> Interval:
        """The accuracy given up, its interval as of two independent samples (Newcombe)."""
        return newcombe(self.plain.right, self.plain.n, self.defended.right, self.defended.n)

    def table(self, title: str = "Members told from non-members, with and without the defence") -> Table:
        """Return the attacks as a table: rates at 0.1 % and 1 % false positives and areas, with 95 % intervals."""
        columns = ("attack", "knows the defence", *(
            f"{figure}, {side}" for figure in ("TPR at 0.1 % FPR", "TPR at 1 % FPR", "AUC") for side in ("plain", "defended")
        ))
        return Table(title, columns, [
            (row.attack, "yes" if row.adaptive else "no", *(
                cell for figure in (1e-3, 1e-2, None) for cell in (_cell(row.plain, figure), _cell(row.defended, figure))
            )) for row in self.rows
        ])


def judge_defence(
    plain: Target | nn.Module, defended: Target | nn.Module, members: Records, non_members: Records, *,
    attacks: Mapping[str, Inference] | None = None, test: Records | None = None, copies: int = 16, seed: int = 0,
) -> DefenceVerdict:
    """Judge a defence by the usual attacks and by those that know it, at few false alarms, and by what it costs.

    Half of either side is what the adversary knows: the adaptive attacks are prepared on it, asking the defended model. All are
    scored on the other half. The adaptive ones are a classifier trained on the defended answers, the label alone, and the labels
    of noisy copies: no change of scores that keeps labels helps against the last two.

    Arguments:
        plain: the model without the defence.
        defended: the same behind an output defence, or another that was trained with one.
        members: records that *both* were trained on.
        non_members: records that neither was.
        attacks: others than the usual four, by name, such as `lambda target, a, b: ...`; the adaptive ones are always run.
        test: records for the utility; None takes the non-members.
        copies: noisy copies per record; 0 leaves that attack out.
        seed: of the halves, the classifier and the noise.

    Raises:
        DataError: for fewer than 8 records on a side.
    """
    if min(len(members[1]), len(non_members[1])) < 8:
        raise DataError(f"there are {len(members[1])} members and {len(non_members[1])} others", want="at least 8 of each")
    models = as_target(plain), as_target(defended)
    halves = [_halves(side, seed, name) for side, name in ((members, "members"), (non_members, "others"))]
    known, judged = tuple(half[0] for half in halves), tuple(half[1] for half in halves)
    usual = USUAL if attacks is None else attacks
    informed = Informed((known[0], known[1]), (judged[0], judged[1]), copies, seed)
    rows = [Row(name, False, *(_exposed(functools.partial(_plainly, one, judged), model) for model in models))
            for name, one in usual.items()]
    rows += [Row(name, True, *(_exposed(functools.partial(one, informed), model) for model in models))
             for name, one in ADAPTIVE.items() if copies or one is not Informed.noisy_labels]
    held = non_members if test is None else test
    return DefenceVerdict(tuple(rows), *(utility(model, held) for model in models))


def utility(target: Target | nn.Module, records: Records) -> Utility:
    """Return accuracy and calibration on records, (x, y)."""
    view = as_target(target)
    x, y = records
    if view.access < Access.SCORE:
        return Utility(len(y), int((view.labels(x).cpu() == y.cpu()).sum()), None)
    scores = view.scores(x).double().cpu()
    scores = scores / scores.sum(1, keepdim=True)
    sure, label = scores.max(1)
    right = label == y.cpu()
    # Bins of equal width over the confidence; an empty one weighs nothing (Guo et al. 2017).
    place = (sure * BINS).long().clamp(max=BINS - 1)
    gaps = torch.zeros(BINS, dtype=torch.float64).index_add(0, place, sure - right.double())
    return Utility(len(y), int(right.sum()), float(gaps.abs().sum()) / max(len(y), 1))


def _plainly(attack: Inference, judged: tuple[Records, ...], target: Target) -> MembershipScores:
    return attack(target, judged[0], judged[1])


def _exposed(attack: Callable[[Target], MembershipScores], target: Target) -> Exposure | None:
    try:
        return exposure(attack(target.fresh()))
    except AccessDenied:
        return None


def _halves(records: Records, seed: int, name: str) -> tuple[Records, Records]:
    x, y = records
    order = torch.randperm(len(y), generator=generator(seed, "defence halves", name))
    cut = len(y) // 2
    first, second = order[:cut].to(y.device), order[cut:].to(y.device)
    return (x[first], y[first]), (x[second], y[second])


def _cell(found: Exposure | None, fpr: float | None) -> str:
    if found is None:
        return "refused"
    if fpr is None:
        return f"{found.roc.auc:.3f} [{found.auc_interval.low:.3f}, {found.auc_interval.high:.3f}]"
    span = found.roc.tpr_interval(fpr)
    return f"{found.roc.tpr_at(fpr):.2%} [{span.low:.2%}, {span.high:.2%}]"


