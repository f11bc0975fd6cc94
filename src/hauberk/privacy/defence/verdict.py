"""The verdict on a defence against membership inference: every attack with and without it, the strongest, and the cost."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from hauberk.core.access import Access
from hauberk.core.finding import Interval, Table
from hauberk.core.stats import paired_difference, wilson
from hauberk.core.target import Target
from hauberk.privacy.defence.change import Change
from hauberk.privacy.membership.measure import Exposure
from hauberk.privacy.membership.signals import Records

BINS = 15
REFUSED, NOT_RUN = "refused", "not run"


@dataclasses.dataclass(frozen=True)
class Row:
    """One attack on the plain and on the defended model; None where there is no figure.

    Arguments:
        attack: its name.
        adaptive: whether it knows the defence.
        plain, defended: how exposed the members are, on records that the attack was not prepared on.
        absent: why there is no figure, for the plain and the defended model.
    """

    attack: str
    adaptive: bool
    plain: Exposure | None
    defended: Exposure | None
    absent: tuple[str, str] = (REFUSED, REFUSED)

    def against(self, defended: bool) -> Exposure | None:
        """Return the exposure of the defended, or of the plain model."""
        return self.defended if defended else self.plain


@dataclasses.dataclass(frozen=True, eq=False)
class Utility:
    """What a model is good for on held-out records.

    Arguments:
        hits: which of them got the right label, shape (n,), bool.
        calibration: expected calibration error over 15 bins; None where only labels come back.
    """

    hits: Tensor
    calibration: float | None

    @property
    def n(self) -> int:
        """How many records there are."""
        return len(self.hits)

    @property
    def right(self) -> int:
        """How many got the right label."""
        return int(self.hits.sum())

    @property
    def accuracy(self) -> float:
        """The share that is right."""
        return self.right / self.n if self.n else float("nan")

    @property
    def interval(self) -> Interval:
        """Wilson's, of the accuracy."""
        return wilson(self.right, self.n)


@dataclasses.dataclass(frozen=True, eq=False)
class DefenceVerdict:
    """A defence beside no defence.

    Arguments:
        rows: the attacks, those that know the defence last.
        plain, defended: utility.
        change: what the strongest attack finds with the defence, less what it finds without.
        unheard: whether reference models under the defence, the strongest attack known, were not run on the defended model.
        notes: what to know of the verdict.
    """

    rows: tuple[Row, ...]
    plain: Utility
    defended: Utility
    change: Change
    unheard: bool
    notes: tuple[str, ...] = ()

    def strongest(self, defended: bool = True) -> Row:
        """Return the attack that a model, the defended or the plain one, is judged by.

        It tells the most members at the lowest false-positive rate that the records resolve (0.1 %, or one false alarm); of
        equals the one with the largest area.
        """

        def rank(row: Row) -> tuple[float, float]:
            found = row.against(defended)
            return (-1.0, -1.0) if found is None else (found.tpr, found.roc.auc)

        return max(self.rows, key=rank)

    def interval(self, defended: bool = True) -> Interval:
        """Return the interval of the strongest attack's true-positive rate; it allows for the choice of the best (Bonferroni)."""
        found, tried = self.strongest(defended).against(defended), self._tried(defended)
        return Interval(0.0, 1.0, "none") if found is None else found.roc.tpr_interval(found.fpr, 1 - 0.05 / tried)

    @property
    def helps(self) -> bool | None:
        """Whether the defence surely hides members; None where the strongest attack known was not run, so that none can tell."""
        surely = self.change.interval.high < 0
        return None if surely and self.unheard else surely

    @property
    def loss(self) -> Interval:
        """The accuracy given up, its interval paired over records."""
        before, after = self.plain.hits, self.defended.hits
        return paired_difference(int((before & ~after).sum()), int((after & ~before).sum()), self.plain.n)

    @property
    def summary(self) -> str:
        """The verdict in two sentences: what the strongest attacks find, and what the defence costs."""
        told = []
        for defended in (True, False):
            row, span = self.strongest(defended), self.interval(defended)
            found = row.against(defended)
            assert found is not None
            told.append(f"{row.attack} finds {found.tpr:.1%} [{span.low:.1%}, {span.high:.1%}] of members at {found.fpr:.2%} "
                        f"false alarms {'with' if defended else 'without'} the defence (best of {self._tried(defended)} attacks)")
        span, gained = self.change.interval, self.defended.accuracy - self.plain.accuracy
        words = {True: "it helps", False: "it is not shown to help", None: "nothing is shown: the strongest attack was not run"}
        if span.low > 0:
            words[False] = "it harms"
        return (
            f"{told[0]}, {told[1]}. At {self.change.fpr:.2%} it changes the best by {100 * self.change.value:+.1f} points "
            f"[{100 * span.low:+.1f}, {100 * span.high:+.1f}]: {words[self.helps]}; accuracy {100 * gained:+.1f} points "
            f"[{-100 * self.loss.high:+.1f}, {-100 * self.loss.low:+.1f}]."
        )

    def table(self, title: str = "Members told from non-members, with and without the defence") -> Table:
        """Return the attacks as a table: rates at 0.1 % and 1 % false positives and areas, with 95 % intervals of each alone."""
        columns = ("attack", "knows the defence", *(
            f"{figure}, {side}" for figure in ("TPR at 0.1 % FPR", "TPR at 1 % FPR", "AUC") for side in ("plain", "defended")
        ))
        return Table(title, columns, [
            (row.attack, "yes" if row.adaptive else "no", *(
                _cell(row.against(bool(side)), figure, row.absent[side]) for figure in (1e-3, 1e-2, None) for side in (0, 1)
            )) for row in self.rows
        ])

    def _tried(self, defended: bool) -> int:
        return sum(row.against(defended) is not None for row in self.rows) or 1


def utility(view: Target, records: Records) -> Utility:
    """Return accuracy and calibration on records, (x, y)."""
    x, y = records
    if view.access < Access.SCORE:
        return Utility(view.labels(x).cpu() == y.cpu(), None)
    scores = view.scores(x).double().cpu()
    scores = scores / scores.sum(1, keepdim=True)
    sure, label = scores.max(1)
    right = label == y.cpu()
    # Bins of equal width over the confidence; an empty one weighs nothing (Guo et al. 2017).
    place = (sure * BINS).long().clamp(max=BINS - 1)
    gaps = torch.zeros(BINS, dtype=torch.float64).index_add(0, place, sure - right.double())
    return Utility(right, float(gaps.abs().sum()) / max(len(y), 1))


def _cell(found: Exposure | None, fpr: float | None, absent: str) -> str:
    if found is None:
        return absent
    if fpr is None:
        return f"{found.roc.auc:.3f} [{found.auc_interval.low:.3f}, {found.auc_interval.high:.3f}]"
    span = found.roc.tpr_interval(fpr)
    return f"{found.roc.tpr_at(fpr):.2%} [{span.low:.2%}, {span.high:.2%}]"
