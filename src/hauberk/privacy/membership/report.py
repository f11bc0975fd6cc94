"""The report of membership attacks: rates at few false alarms, slices, the most exposed records, and a control."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hauberk.core.errors import DataError
from hauberk.core.finding import Curve, Evidence, Interval, Table, plain_values
from hauberk.core.kinds import MembershipScores
from hauberk.core.roc import Roc, auc_interval, roc
from hauberk.core.stats import Floats, benjamini_hochberg
from hauberk.privacy.membership.measure import Exposure, exposure, shuffled_auc

RATES = (1e-2, 1e-3, 1e-4)
FEW = 20  # records of a slice and side below which it gets no row


@dataclasses.dataclass(frozen=True)
class Slice:
    """How exposed the members of one slice are.

    Arguments:
        name: of the slice.
        members, others: how many records it has.
        auc, auc_interval: the area within the slice.
        tpr, tpr_interval: members of the slice beyond the threshold that 1 % of all non-members pass.

    The intervals of all slices of a slicing hold together with 95 % (Bonferroni): the most exposed one was picked among them.
    """

    name: str
    members: int
    others: int
    auc: float
    auc_interval: Interval
    tpr: float
    tpr_interval: Interval


@dataclasses.dataclass(frozen=True)
class MembershipReport:
    """What several attacks found about the same records.

    Arguments:
        scores: by attack; the first is the main one.
        slices: by name, the slice of each record: codes of the members, shape (m,), and of the others, (k,).
        words: by slicing, what each code is called; codes without one are shown as numbers.
        seed: of the shuffled control.
        dealt: what the main attack says of the same records when they are dealt to two sides at random (`dealt_anew`): an attack
            whose scores depend on the side is found out by it. None leaves that control out.
        blind: the area, with its interval, at which the records alone tell the sides apart (`blind_auc`): above .5 the splits
            differ in themselves, and part of every figure is that. None leaves that control out.
    """

    scores: Mapping[str, MembershipScores]
    slices: Mapping[str, tuple[Tensor, Tensor]] = dataclasses.field(default_factory=dict)
    words: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    seed: int = 0
    dealt: MembershipScores | None = None
    blind: tuple[float, Interval] | tuple[float, Interval, Roc] | None = None

    def __post_init__(self) -> None:
        sizes = {(len(one.members), len(one.non_members)) for one in self.scores.values()}
        if len(sizes) != 1 or 0 in next(iter(sizes)):
            raise DataError(f"the attacks scored {sorted(sizes)} members and others", want="the same records, some of each side")
        broken = [name for name, one in self.scores.items() if bool(torch.cat([one.members, one.non_members]).isnan().any())]
        if broken:
            raise DataError(f"scores of '{broken[0]}' are NaN", want="numbers; the lowest where a model answers nothing")
        for name, (inside, outside) in self.slices.items():
            if (len(inside), len(outside)) not in sizes:
                raise DataError(f"the slice '{name}' has {len(inside)} and {len(outside)} codes", want="one for each record")

    @property
    def main(self) -> str:
        """The attack that slices and records are judged by."""
        return next(iter(self.scores))

    @functools.cached_property
    def found(self) -> dict[str, Exposure]:
        """How exposed the members are, by attack."""
        return {name: exposure(one) for name, one in self.scores.items()}

    @functools.cached_property
    def control(self) -> tuple[float, Interval]:
        """The mean area and its 95 % range when membership is dealt at random: .5 unless the evaluation is broken."""
        return shuffled_auc(self.scores[self.main], seed=self.seed)

    @functools.cached_property
    def leak(self) -> tuple[float, Interval] | None:
        """The area, with its 99.9 % interval, of the main attack on a membership dealt at random; None where it was not tried."""
        if self.dealt is None:
            return None
        sides = self.dealt.members.numpy(), self.dealt.non_members.numpy()
        return roc(*sides).auc, auc_interval(*sides, confidence=0.999)

    @property
    def broken(self) -> bool:
        """Whether a control is surely off .5: then the evaluation is broken, and its figures mean nothing."""
        spans = [self.control[1], *([] if self.leak is None else [self.leak[1]])]
        return not all(span.low <= 0.5 <= span.high for span in spans)

    @functools.cached_property
    def risk(self) -> Floats:
        """For each member the least false-positive rate at which the main attack finds it, shape (m,): small is exposed.

        The share of non-members that score as high, where the record itself counts as one more: never below 1 / (k + 1).
        """
        one = self.scores[self.main]
        others = np.sort(one.non_members.numpy())
        above = len(others) - np.searchsorted(others, one.members.numpy(), side="left")
        made: Floats = (above + 1.0) / (len(others) + 1)
        return made

    @functools.cached_property
    def wrong(self) -> Floats:
        """For each member the share of wrong finds to expect among all that score as high, shape (m,): the false discovery rate.

        Where the model remembers nothing some record is the first all the same, at a small false-positive rate; this is then near
        1. Benjamini and Hochberg's over all members, each with `risk` for its p-value (Bates et al. 2023, arXiv:2104.08279).
        """
        return benjamini_hochberg(self.risk.tolist())

    def most_exposed(self, count: int = 10) -> list[int]:
        """Return the positions of the members that are the easiest to find, the easiest first; ties by position."""
        order = torch.argsort(self.scores[self.main].members, descending=True, stable=True)
        chosen: list[int] = order[:count].tolist()
        return chosen

    def sliced(self, by: str) -> list[Slice]:
        """Return the exposure of each slice with at least 20 records a side, the most exposed first."""
        one, (inside, outside) = self.scores[self.main], self.slices[by]
        codes = [
            code for code in torch.unique(torch.cat([inside, outside])).tolist()
            if min(int((inside == code).sum()), int((outside == code).sum())) >= FEW
        ]
        sure = 1 - 0.05 / max(1, len(codes))
        made = []
        for code in codes:
            left, right = one.members[inside == code].numpy(), one.non_members[outside == code].numpy()
            among = roc(left, one.non_members.numpy())
            names = self.words.get(by, ())
            name = names[int(code)] if 0 <= int(code) < len(names) else f"{by} {int(code)}"
            made.append(Slice(
                name, len(left), len(right), roc(left, right).auc, auc_interval(left, right, sure), among.tpr_at(1e-2),
                among.tpr_interval(1e-2, sure),
            ))
        return sorted(made, key=lambda slice_: -slice_.auc)

    def rates_table(self) -> Table:
        """Return one row per attack: rates at 1 %, .1 % and .01 % false alarms, area, balanced accuracy, all with intervals."""
        rows = []
        for name, one in self.found.items():
            balanced = one.roc.balanced_interval()
            rows.append((
                name, *(_band(one.roc.tpr_at(fpr), one.roc.tpr_interval(fpr), "%") for fpr in RATES),
                _band(one.roc.auc, one.auc_interval), _band(one.roc.balanced_accuracy, balanced), f"{one.chance:.2g}",
            ))
        heads = ("attack", *(f"TPR at {100 * fpr:.4g} % FPR" for fpr in RATES), "AUC", "balanced accuracy", "p")
        return Table("Members told from non-members, with 95 % intervals", heads, rows)

    def curve(self) -> Curve:
        """Return the ROC of every attack on log axes."""
        floor = 0.5 / len(self.scores[self.main].non_members)
        series = [one.roc.curve("", name, floor=floor).series[0] for name, one in self.found.items()]
        return Curve(
            "Members recognised at each rate of false alarms", "false-positive rate", "true-positive rate", series, log_x=True,
            log_y=True, diagonal=True,
        )

    def slices_table(self, by: str, count: int = 10) -> Table:
        """Return the most exposed slices."""
        rows = [
            (one.name, one.members, one.others, _band(one.auc, one.auc_interval), _band(one.tpr, one.tpr_interval, "%"))
            for one in self.sliced(by)[:count]
        ]
        heads = ("slice", "members", "others", "AUC", "TPR at 1 % FPR of all")
        return Table(f"The most exposed by {by}, {self.main}, with intervals that hold for all slices at once", heads, rows)

    def exposed_table(self, position: Tensor | None = None, y: Tensor | None = None, count: int = 10) -> Table:
        """Return the most exposed members; those that share a score and do not all fit are one row: they have no order.

        Arguments:
            position: where each member stands in the training data, shape (m,); None counts from 0.
            y: labels of the members, shape (m,).
            count: how many.
        """
        members = self.scores[self.main].members
        chosen, alike = self.most_exposed(count), 0
        rows: list[tuple[str | int, ...]] = []
        if chosen and int((members >= members[chosen[-1]]).sum()) > len(chosen):
            last = chosen[-1]
            alike = int((members == members[last]).sum())
            chosen = [k for k in chosen if members[k] > members[last]]
        for k in chosen:
            place = k if position is None else int(position[k])
            rows.append((place, "" if y is None else int(y[k]), *self._told(k)))
        if alike:
            rows.append((f"{alike:,} records alike", "", *self._told(last)))
        return Table(
            f"Most exposed training records, {self.main}",
            ("position in train", "label", "score", "false alarms at which it is found", "wrong among those found so"), rows,
        )

    def _told(self, k: int) -> tuple[str, str, str]:
        return f"{float(self.scores[self.main].members[k]):.4g}", f"{self.risk[k]:.2%}", f"{self.wrong[k]:.1%}"

    def control_table(self) -> Table:
        """Return the control."""
        mean, span = self.control
        rows = [("membership dealt at random, 200 times", f"{mean:.3f}", f"{span.low:.3f} to {span.high:.3f}")]
        if self.leak is not None:
            area, reach = self.leak
            rows.append((f"{self.main}, run on sides dealt at random", f"{area:.3f}", f"{reach.low:.3f} to {reach.high:.3f}"))
        if self.blind is not None:
            alone, sure, *_ = self.blind
            rows.append(("inputs and labels alone, without the model", f"{alone:.3f}", f"{sure.low:.3f} to {sure.high:.3f}"))
        return Table("Control: .5 is right", ("control", "AUC", "95 % range (99.9 % of a run)"), rows)

    def evidence(self, position: Tensor | None = None, y: Tensor | None = None) -> tuple[Evidence, ...]:
        """Return all tables and the curve, as a finding shows them."""
        sliced = [table for by in self.slices if (table := self.slices_table(by)).rows]
        return (self.rates_table(), self.curve(), self.control_table(), *sliced, self.exposed_table(position, y))

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        mean, span = self.control
        attacks = {
            name: {
                "auc": one.roc.auc, "auc_interval": dataclasses.asdict(one.auc_interval),
                "balanced_accuracy": one.roc.balanced_accuracy,
                "balanced_interval": dataclasses.asdict(one.roc.balanced_interval()), "chance": one.chance,
                "tpr": [
                    {"fpr": fpr, "tpr": one.roc.tpr_at(fpr), "interval": dataclasses.asdict(one.roc.tpr_interval(fpr))}
                    for fpr in RATES
                ],
            }
            for name, one in self.found.items()
        }
        first = self.scores[self.main]
        plain = plain_values({
            "members": len(first.members), "non_members": len(first.non_members), "main": self.main, "attacks": attacks,
            "shuffled": {"auc": mean, "range": dataclasses.asdict(span)},
            "dealt": None if self.leak is None else {"auc": self.leak[0], "interval": dataclasses.asdict(self.leak[1])},
            "blind": None if self.blind is None else {"auc": self.blind[0], "interval": dataclasses.asdict(self.blind[1])},
            "slices": {by: [dataclasses.asdict(one) for one in self.sliced(by)] for by in self.slices},
            # Members of one score stand in the order of their positions, which says nothing: `alike` tells how many there are.
            "most_exposed": [
                {"member": k, "score": float(first.members[k]), "fpr": self.risk[k], "fdr": self.wrong[k],
                 "alike": int((first.members == first.members[k]).sum())}
                for k in self.most_exposed()
            ],
        })
        assert isinstance(plain, dict)
        return plain


def _band(value: float, span: Interval, unit: str = "") -> str:
    if unit == "%":
        return f"{value:.2%} [{span.low:.2%}, {span.high:.2%}]"
    return f"{value:.3f} [{span.low:.3f}, {span.high:.3f}]"
