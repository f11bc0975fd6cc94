"""Privacy of the training data: can its records be told from others by the model's answers?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hauberk.checks.accuracy import correct
from hauberk.checks.context import Context, NotRun
from hauberk.core.access import Access
from hauberk.core.finding import Advice, Curve, Finding, Interval, Status, Table
from hauberk.core.kinds import MembershipScores, check
from hauberk.core.overlap import distinct, overlap
from hauberk.core.rng import generator
from hauberk.core.roc import Roc
from hauberk.core.stats import clopper_pearson, newcombe, wilson
from hauberk.core.target import Target
from hauberk.privacy.membership import confidence_membership, entropy_membership, loss_membership, modified_entropy
from hauberk.privacy.membership.loss import TAGS
from hauberk.privacy.membership.measure import Exposure, blind_auc, exposure, shuffled_auc
from hauberk.privacy.membership.signals import Records, answers, cross_entropy

THREAT = "an adversary who holds candidate records with their labels and asks the model for its scores"
ADVICE = (
    Advice("Train with more regularisation, or stop earlier: when the loss on held-out records no longer falls",
           "hauberk.fit(model, data.train, schedule=hauberk.Schedule(epochs=10, validation=data.test, patience=2))"),
    Advice("Round the scores, or answer with the label alone, once you have seen what that hides from who knows of it",
           "hauberk membership PLAN --defence rounding=1 --references 4", "AML.M0002"),
)
SAME = 0.05  # with a larger share of test samples that are training samples, the two sides are no longer two
Inference = Callable[[Target, Records, Records], MembershipScores]


@check(
    "privacy/membership-loss", pillar="privacy", unit="rate", better="lower", access=Access.SCORE, tags=TAGS, advice=ADVICE,
    question="How many training records does their low loss give away, at one false alarm in a thousand?",
    paper="Yeom et al. 2018, arXiv:1709.01604",
)
def membership_loss(context: Context) -> Finding:
    """Members recognised by their loss at 0.1 % false positives; the status rests on chance, not on the rate alone."""
    return _membership(context, {"loss": loss_membership})


@check(
    "privacy/membership-entropy", pillar="privacy", unit="rate", better="lower", access=Access.SCORE, tags=TAGS, advice=ADVICE,
    question="How many training records does a sharp answer give away, at one false alarm in a thousand?",
    paper="Song and Mittal 2021, arXiv:2003.10595",
)
def membership_entropy(context: Context) -> Finding:
    """Members recognised by the modified entropy; entropy and confidence, which need no label, stand beside it."""
    return _membership(context, {
        "modified entropy": modified_entropy, "entropy, no label": entropy_membership,
        "confidence, no label": confidence_membership,
    })


@check(
    "privacy/generalisation-gap", pillar="privacy", unit="accuracy", better="lower", access=Access.LABEL, warn=0.05, fail=0.15,
    question="How much better is the model on the records it was trained on?", tags=TAGS, advice=ADVICE[:1],
    paper="Yeom et al. 2018, arXiv:1709.01604",
)
def generalisation_gap(context: Context) -> Finding:
    """Training accuracy minus test accuracy: a gap bounds from below what a membership attack can gain."""
    classes = context.need_classes()
    train, test, unseen = context.split("train"), context.data.test, _unseen(context)
    x, y = train.sample(context.settings.scaled(2000, 20_000, 100_000), context.seed, "generalisation gap")
    hits = context.target.labels(x) == y
    right, truth = context.shared("clean correct", lambda target: correct(target, context))[unseen], test.y[unseen]
    a, n_a, b, n_b = int(hits.sum()), len(hits), int(right.sum()), len(right)
    interval = newcombe(a, n_a, b, n_b)
    gap = a / n_a - b / n_b
    names = [context.data.class_names[k] if k < len(context.data.class_names) else str(k) for k in range(classes)]
    slices = [(name, hits[y == k], right[truth == k]) for k, name in enumerate(names)]
    slices = sorted((one for one in slices if len(one[1]) and len(one[2])), key=lambda one: -_gap(one[1], one[2]))
    by_class = [
        (name, len(left), _share(left), len(other), _share(other), f"{_gap(left, other):+.1%}")
        for name, left, other in slices[:10]
    ]
    sides = [
        (side, n, f"{k / n:.2%}", f"{wilson(k, n).low:.2%} to {wilson(k, n).high:.2%}")
        for side, k, n in (("train", a, n_a), ("test", b, n_b))
    ]
    return context.finding(
        f"accuracy is {a / n_a:.1%} on training and {b / n_b:.1%} on test records: a gap of {100 * gap:+.1f} points",
        value=gap, n=n_a + n_b, interval=interval, evidence=(
            Table("Accuracy by side", ("records", "n", "accuracy", "95 % interval"), sides),
            Table("Classes with the widest gaps", ("class", "train n", "train", "test n", "test", "gap"), by_class),
        ),
    )


@dataclasses.dataclass
class Sides:
    """Members and non-members, equally many but for copies of records, which are left out, drawn by seed."""

    members: Records
    non_members: Records
    index: Tensor
    other_index: Tensor
    blind: tuple[float, Interval, Roc]


def _sides(context: Context) -> Sides:
    train, test, unseen = context.split("train"), context.data.test, _unseen(context)
    # Large inputs: no more of them than half a gigabyte a side.
    room = max(100, 2**27 // max(1, math.prod(test.shape)))
    n = min(context.settings.scaled(1000, 5000, 20_000), len(train), len(unseen), room)
    if n < 20:
        raise NotRun(f"there are {len(train)} training and {len(unseen)} test records; at least 20 of each are needed")
    index = train.pick(n, context.seed, "members")
    chosen = torch.randperm(len(unseen), generator=generator(context.seed, "pick", "non-members"))[:n].sort().values
    chosen = unseen[chosen]
    # Copies are no records of their own: counted as such, they make every interval too narrow.
    index, chosen = (place[distinct(*split.take(place))] for split, place in ((train, index), (test, chosen)))
    if min(len(index), len(chosen)) < 20:
        raise NotRun(f"there are {len(index)} training and {len(chosen)} test records that differ; at least 20 are needed")
    members, others = train.take(index), test.take(chosen)
    return Sides(members, others, index, chosen, _blind(members, others, context.seed))


def _blind(members: Records, others: Records, seed: int) -> tuple[float, Interval, Roc]:
    return blind_auc(members[0], others[0], seed=seed, labels=(members[1], others[1]))


def _unseen(context: Context) -> Tensor:
    """Return the positions of the test samples that are not in the training data, or end the check where too many are."""
    found = context.shared("test samples in train", lambda _: overlap(context.data))
    if found.share > SAME:
        raise NotRun(
            f"{found.count} of {found.test} test samples are also in the training data: records that were not trained on are "
            "needed"
        )
    if found.count:
        context.note(f"{found.count} of {found.test} test samples are also in the training data and were left out")
    return (~found.copies).nonzero()[:, 0]


def both_sides(context: Context) -> Sides:
    """Return the members and non-members that all membership checks judge, or end the check where there are none."""
    context.need_classes()
    context.split("train")
    _unseen(context)  # its note belongs to every check that rests on the sides
    return context.shared("membership sides", lambda _: _sides(context))


def _membership(context: Context, attacks: dict[str, Inference]) -> Finding:
    sides = both_sides(context)
    scores = {name: attack(context.target, sides.members, sides.non_members) for name, attack in attacks.items()}
    found = {name: exposure(one) for name, one in scores.items()}
    main, exposed = next(iter(scores)), next(iter(found.values()))
    n, others = len(scores[main].members), len(scores[main].non_members)
    if exposed.fpr > 1e-3:
        context.note(
            f"{others} non-members cannot resolve 0.1 % false positives; the rate is at {exposed.fpr:.2%}, one false alarm"
        )
    context.note(
        "warns when so many members stand out by chance less than once in a hundred, or the area is surely above .55; fails when "
        "surely ten times as many members as non-members stand out, or the area is surely above .7"
    )
    area, spread, _ = sides.blind
    if spread.low > 0.5:
        context.note(
            f"the two splits differ in themselves: a classifier that never saw the model tells them apart with an area of "
            f"{area:.3f}; part of the figure is that difference"
        )
    status = verdict(exposed, sides.blind)
    if status is not verdict(exposed):
        context.note("not attributable to the model, so that it warns at most: the records alone separate the two splits as well")
    mean, deal = shuffled_auc(scores[main], seed=context.seed)
    columns = ("rule", "TPR at 1 % FPR", "TPR at 0.1 % FPR", "AUC", "95 % interval", "balanced accuracy", "by chance")
    table = Table("Members told from non-members", columns, [_row(name, one) for name, one in found.items()])
    control = Table("Controls: .5 is right", ("control", "AUC", "95 % range"), [
        ("membership dealt at random, 200 times", f"{mean:.3f}", f"{deal.low:.3f} to {deal.high:.3f}"),
        ("inputs and labels alone, without the model", f"{area:.3f}", f"{spread.low:.3f} to {spread.high:.3f}"),
    ])
    series = [one.roc.curve("", name, floor=0.5 / n).series[0] for name, one in found.items()]
    curve = Curve(
        "Members recognised at each rate of false alarms", "false-positive rate", "true-positive rate", series, log_x=True,
        log_y=True, diagonal=True,
    )
    return context.finding(
        f"{main} recognises {exposed.tpr:.1%} of {n} members at {exposed.fpr:.2%} false alarms (AUC {exposed.roc.auc:.3f})",
        value=exposed.tpr, n=n, interval=exposed.tpr_interval, threat=THREAT, status=status,
        evidence=(table, curve, control, _most_exposed(context, sides, scores[main])),
    )


def verdict(exposed: Exposure, blind: tuple[float, Interval] | tuple[float, Interval, Roc] | None = None) -> Status:
    """Grade an exposure; `blind` is the area, with its interval and curve, of a classifier that never saw the model."""
    if exposed.auc_interval.low > 0.7 or _ahead(exposed):
        return Status.WARN if blind is not None and explained(exposed, *blind) else Status.FAIL
    return Status.WARN if exposed.auc_interval.low > 0.55 or exposed.chance < 0.01 else Status.PASS


def _ahead(exposed: Exposure) -> bool:
    """Whether surely ten times as many members as non-members stand out at the few false alarms of the headline."""
    return (exposed.tpr_interval.low > 10 * exposed.fpr or exposed.ahead > 10) and exposed.chance < 1e-3


def explained(exposed: Exposure, area: float, spread: Interval, curve: Roc | None = None) -> bool:
    """Whether the records alone tell the sides apart as well as the attack does: then nothing is shown about the model.

    Members that stand out at few false alarms are explained only by as many that the `curve` without the model finds there: a
    shift of the whole split is no reason for that.
    """
    if spread.low <= 0.5:
        return False
    if curve is not None and _ahead(exposed):
        n = exposed.roc.positives
        found, blind = (clopper_pearson(round(one * n), n) for one in (exposed.tpr, curve.tpr_at(exposed.fpr)))
        if blind.high < found.low:
            return False
    return spread.low >= exposed.roc.auc or (spread.low > 0.55 and exposed.auc_interval.low <= area)


def _row(name: str, one: Exposure) -> Sequence[str]:
    rates = []
    for fpr in (1e-2, 1e-3):
        span = one.roc.tpr_interval(fpr)
        rates.append(f"{one.roc.tpr_at(fpr):.2%} [{span.low:.2%}, {span.high:.2%}]")
    area = one.auc_interval
    return (
        name, *rates, f"{one.roc.auc:.3f}", f"{area.low:.3f} to {area.high:.3f}", f"{one.roc.balanced_accuracy:.3f}",
        f"p = {one.chance:.2g}",
    )


def _most_exposed(context: Context, sides: Sides, scores: MembershipScores) -> Table:
    """The members that the most non-members would have to be mistaken for first."""
    x, y = sides.members
    # The loss that the same model gives to other records of the class says how unusual a low loss is there.
    losses = cross_entropy(*answers(context.target, (x, y)))
    others, other_y = cross_entropy(*answers(context.target, sides.non_members)), sides.non_members[1]
    typical = {int(k): float(others[other_y == k].median()) for k in other_y.unique()}
    order = scores.members.argsort(descending=True, stable=True)[:8].tolist()
    last = scores.members[order[-1]]
    alike = int((scores.members == last).sum()) if int((scores.members >= last).sum()) > len(order) else 0
    order = [k for k in order if not alike or scores.members[k] > last]  # of equal ones not all fit: they have no order
    rows: list[tuple[str | int, ...]] = []
    for k in order:
        beyond, label = int((scores.non_members >= scores.members[k]).sum()), int(y[k])
        rows.append((int(sides.index[k]), label, f"{float(losses[k]):.3g}", f"{typical.get(label, float('nan')):.3g}", beyond))
    if alike:
        rows.append((f"{alike:,} records alike", "", "", "", int((scores.non_members >= last).sum())))
    return Table(
        "Most exposed training records", ("position in train", "label", "loss", "median loss of its class in test",
                                          "non-members that score as high"), rows,
    )


def _share(hits: Tensor) -> str:
    return f"{float(hits.double().mean()):.1%}"


def _gap(left: Tensor, right: Tensor) -> float:
    return float(left.double().mean() - right.double().mean())
