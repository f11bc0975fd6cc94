"""Membership of training records, by adversaries who train models of their own, have labels alone, or have the weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hauberk.checks.context import Context, NotRun
from hauberk.checks.privacy import ADVICE, Sides, both_sides, verdict
from hauberk.core.access import Access
from hauberk.core.errors import HauberkError
from hauberk.core.finding import Advice, Evidence, Finding, Status, Table
from hauberk.core.kinds import MembershipScores, check
from hauberk.core.overlap import fingerprints
from hauberk.core.rng import derive_seed, generator
from hauberk.core.target import Target
from hauberk.core.train import Schedule
from hauberk.privacy.membership import (
    MembershipReport,
    References,
    augmentation_membership,
    gap_membership,
    gradient_norm_membership,
    learned_membership,
    lira,
    rmia,
    train_references,
    variance_prior,
)
from hauberk.privacy.membership.loss import TAGS
from hauberk.privacy.membership.matching import matched_schedule, operations
from hauberk.privacy.membership.measure import dealt_anew
from hauberk.privacy.membership.signals import Records

PRIVATE = Advice(
    "Train with differential privacy, which bounds every membership attack: find the noise, then hauberk.privacy.dp.make_private",
    "hauberk calibrate --epsilon 3 --delta 1e-5 --n 60000 --batch 256 --epochs 20", "AML.M0007",
)
FEW = 100  # records below which no reference models are trained


@dataclasses.dataclass(frozen=True)
class Trained:
    """Reference models, and how they were made."""

    references: References
    sides: Sides
    notes: Sequence[str]


@check(
    "privacy/membership-references", pillar="privacy", unit="rate", better="lower", access=Access.SCORE, preset="standard",
    tags=TAGS, advice=(PRIVATE, *ADVICE), paper="Carlini et al. 2022, arXiv:2112.03570",
    question="How many training records does an adversary find who trains models like this one, with and without them?",
)
def membership_references(context: Context) -> Finding:
    """The strongest attacks known, on reference models of the same architecture: variance prior, LiRA, RMIA."""
    sides = both_sides(context)
    made = context.shared("membership references", lambda target: _train(context, target, sides))
    for note in made.notes:
        context.note(note)
    one, two = made.sides.members, made.sides.non_members
    scores = {
        "variance prior": variance_prior(context.target, one, two, references=made.references),
        "LiRA, online": lira(context.target, one, two, references=made.references),
        "LiRA, offline": lira(context.target, one, two, references=made.references, online=False),
        "RMIA, offline": rmia(context.target, one, two, references=made.references),
    }
    dealt = dealt_anew(
        lambda left, right: variance_prior(context.target, left, right, references=made.references), one, two, seed=context.seed
    )
    return _finding(context, made.sides, scores, "an adversary who holds candidate records, knows the architecture, and trains "
                    f"{len(made.references)} models like it", dealt)


@check(
    "privacy/membership-labels", pillar="privacy", unit="rate", better="lower", access=Access.LABEL, preset="standard",
    tags=TAGS, advice=(PRIVATE, *ADVICE[:1]), paper="Choquette-Choo et al. 2021, arXiv:2007.14321",
    question="How many training records do labels alone give away?",
)
def membership_labels(context: Context) -> Finding:
    """Members told by how many changed copies of a record keep its label; hiding the scores does not stop it."""
    sides = both_sides(context)
    scores = {
        "labels of changed copies": augmentation_membership(
            context.target, sides.members, sides.non_members, views=context.settings.scaled(8, 16, 32),
            seed=derive_seed(context.seed, "views"),
        ),
        "being right (gap)": gap_membership(context.target, sides.members, sides.non_members),
    }
    return _finding(context, sides, scores, "an adversary who holds candidate records with their labels and sees labels alone")


@check(
    "privacy/membership-learned", pillar="privacy", unit="rate", better="lower", access=Access.SCORE, preset="standard",
    tags=TAGS, advice=(PRIVATE, *ADVICE), paper="Salem et al. 2019, arXiv:1806.01246",
    question="How many further training records does an adversary find who knows half of them?",
)
def membership_learned(context: Context) -> Finding:
    """A classifier of answers, fitted on one half of the records of each side and judged on the other half."""
    sides = both_sides(context)
    halves = [_halves(one, context.seed) for one in (sides.members, sides.non_members)]
    (known_in, scored_in), (known_out, scored_out) = halves
    names = {"logistic": "logistic", "forest": "random forest", "perceptron": "perceptron", "neighbours": "nearest neighbours"}
    chosen = list(names)[: context.settings.scaled(1, 2, 4)]
    scores = {
        names[name]: learned_membership(
            context.target, _take(sides.members, scored_in), _take(sides.non_members, scored_out), classifier=name,
            known=(_take(sides.members, known_in), _take(sides.non_members, known_out)), seed=derive_seed(context.seed, name),
        )
        for name in chosen
    }
    half = Sides(
        _take(sides.members, scored_in), _take(sides.non_members, scored_out), sides.index[scored_in],
        sides.other_index[scored_out], sides.blind,
    )
    return _finding(context, half, scores, "an adversary who knows of half of the records whether they were trained on")


@check(
    "privacy/membership-gradients", pillar="privacy", unit="rate", better="lower", access=Access.GRADIENT, preset="standard",
    tags=TAGS, advice=(PRIVATE, *ADVICE[:1]), paper="Nasr et al. 2019, arXiv:1812.00910",
    question="How many training records do small gradients give away to who holds the weights?",
)
def membership_gradients(context: Context) -> Finding:
    """Members told by the norm of the gradient that each record would still cause."""
    sides = both_sides(context)
    n = context.settings.scaled(200, 1000, 5000)
    few = _fewer(sides, n, context.seed)
    try:
        scores = {"gradient norm": gradient_norm_membership(context.target, few.members, few.non_members)}
    except HauberkError as error:
        raise NotRun(f"the gradient of single records cannot be told: {error}") from error
    return _finding(context, few, scores, "an adversary who holds candidate records and the weights")


def _finding(
    context: Context, sides: Sides, scores: dict[str, MembershipScores], threat: str, dealt: MembershipScores | None = None
) -> Finding:
    report = MembershipReport(scores, *_slices(context, sides), seed=context.seed, dealt=dealt)
    exposed = report.found[report.main]
    n = len(sides.members[1])
    if exposed.fpr > 1e-3:
        context.note(
            f"{len(sides.non_members[1])} non-members cannot resolve 0.1 % false positives; the rate is at {exposed.fpr:.2%}, "
            "one false alarm"
        )
    area, spread, _ = sides.blind
    status = verdict(exposed, sides.blind)
    if status is not verdict(exposed):
        context.note("not attributable to the model, so that it warns at most: the records alone separate the two splits as well")
    blind = Table("Control: inputs and labels alone, without the model; .5 is right", ("AUC", "95 % range"), [
        (f"{area:.3f}", f"{spread.low:.3f} to {spread.high:.3f}"),
    ])
    if report.broken:
        status = Status.WARN
        mean = report.control[0] if report.leak is None else report.leak[0]
        context.note(f"membership dealt at random gives an area of {mean:.3f}: the evaluation itself is broken")
    evidence: tuple[Evidence, ...] = (*report.evidence(sides.index, sides.members[1]), blind)
    area = exposed.roc.auc
    return context.finding(
        f"{report.main} recognises {exposed.tpr:.1%} of {n} members at {exposed.fpr:.2%} false alarms (AUC {area:.3f})",
        value=exposed.tpr, n=n, interval=exposed.tpr_interval, threat=threat, status=status, evidence=evidence,
    )


def _slices(context: Context, sides: Sides) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Sequence[str]]]:
    """Return the classes and the groups of both sides, and what they are called."""
    train, test = context.split("train"), context.data.test
    slices = {"class": (sides.members[1].cpu(), sides.non_members[1].cpu())}
    words: dict[str, Sequence[str]] = {"class": context.data.class_names}
    for name in train.groups.keys() & test.groups.keys():
        slices[name] = (train.groups[name][sides.index], test.groups[name][sides.other_index])
        words[name] = context.data.group_names.get(name, ())
    return slices, words


def _train(context: Context, target: Target, sides: Sides) -> Trained:
    """Train references as far as the budget of the preset goes, or end the check with what stands against it."""
    predictor = target.predictor
    module, estimator = getattr(predictor, "module", None), getattr(predictor, "estimator", None)
    count = context.settings.scaled(2, 4, 16)
    seed = derive_seed(context.seed, "references")
    if estimator is not None:
        pool = _pool(sides)
        try:
            made = train_references(estimator, pool, count=count, schedule=Schedule(seed=seed))
        except Exception as error:  # an estimator may refuse in its own words
            raise NotRun(f"the estimator cannot be trained anew ({error})") from error
        return Trained(made, sides, (_pool_note(context, pool, count), "each is a clone of the estimator, fitted anew"))
    if not isinstance(module, nn.Module):
        raise NotRun(
            "the model cannot be trained anew from here: give a torch module or an estimator, or train references yourself "
            "(hauberk.privacy.membership.train_references)"
        )
    longest = context.settings.scaled(10, 80, 80)
    try:
        each = 3 * operations(module, sides.members[0])
        # Half the pool for each reference, and for pilots that take up to twice the longest schedule.
        room = int(context.settings.scaled(10**10, 2 * 10**12, 10**14) / (each * longest * (count / 2 + 1)))
        if room < FEW:
            raise NotRun(
                f"{count} models of {each / 3e9:.2g} GFLOP a record are beyond the budget of the preset "
                f"'{context.settings.preset}': train them yourself (hauberk membership --references {count}, or "
                "hauberk.privacy.membership.train_references)"
            )
        few = _fewer(sides, room // 2, context.seed)
        pool = _pool(few)
        right = float((target.labels(few.members[0]).cpu() == few.members[1].cpu()).double().mean())
        schedule, reached = matched_schedule(module, pool, right, seed=seed, longest=longest)
        made = train_references(module, pool, count=count, schedule=schedule)
    except (HauberkError, RuntimeError, NotImplementedError) as error:
        raise NotRun(f"the model cannot be trained anew ({error})") from error
    notes = [_pool_note(context, pool, count)]
    notes.append(
        f"they were trained for {schedule.epochs} epochs with Adam: a pilot then fits {reached:.1%} of its records, the model "
        f"{right:.1%} of its own"
    )
    return Trained(made, few, tuple(notes))


def _pool_note(context: Context, pool: Records, count: int) -> str:
    half, whole = len(pool[0]) // 2, len(context.split("train"))
    less = f"; the model had {whole} training records: with as many the adversary is stronger" if half < whole else ""
    return f"{count} reference models were trained, each on {half} records drawn from both sides{less}"


def _pool(sides: Sides) -> Records:
    return torch.cat([sides.members[0], sides.non_members[0]]), torch.cat([sides.members[1], sides.non_members[1]])


def _fewer(sides: Sides, n: int, seed: int) -> Sides:
    """Return at most n records of each side, drawn by seed."""
    if n >= max(len(sides.members[1]), len(sides.non_members[1])):
        return sides
    keep = [
        torch.randperm(len(one[1]), generator=generator(seed, "fewer", side))[:n].sort().values
        for side, one in enumerate((sides.members, sides.non_members))
    ]
    return Sides(
        _take(sides.members, keep[0]), _take(sides.non_members, keep[1]), sides.index[keep[0]], sides.other_index[keep[1]],
        sides.blind,
    )


def _halves(records: Records, seed: int) -> tuple[Tensor, Tensor]:
    """Return the positions of two halves; copies of one record would fall on one side alone, by what they hold."""
    marks = fingerprints(records[0])
    _, kind = torch.unique(marks, return_inverse=True)
    order = torch.randperm(int(kind.max()) + 1, generator=generator(seed, "halves"))
    first = (order % 2 == 0)[kind]
    return first.nonzero()[:, 0], (~first).nonzero()[:, 0]


def _take(records: Records, index: Tensor) -> Records:
    return records[0][index], records[1][index]
