"""Properties of the training data as a whole: does the model tell what share of it a group has?"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from hauberk.checks.context import Context, NotRun
from hauberk.checks.privacy import SAME
from hauberk.core.access import Access
from hauberk.core.data import Split
from hauberk.core.errors import HauberkError, ModelError
from hauberk.core.finding import Advice, Finding, Interval, Status, Table
from hauberk.core.kinds import check
from hauberk.core.overlap import overlap
from hauberk.core.rng import derive_seed, generator
from hauberk.core.stacked import fit_stacked, logits_of
from hauberk.core.stats import holm, wilson
from hauberk.core.target import Target
from hauberk.privacy.inference import judge_property, property_by_answers, property_inference
from hauberk.privacy.inference.properties import PropertyVerdict
from hauberk.privacy.membership.estimators import Fitting, fit_estimator, fresh_estimator
from hauberk.privacy.membership.matching import matched_schedule, operations
from hauberk.privacy.membership.references import redrawn

TAGS = ("aisec:data-recovery-in-the-model", "atlas:AML.T0024", "nist:NISTAML.032")
HIGH, LOW = 0.75, 0.25  # the shares that are told apart
FEW = 50  # records in a draw below which a property is left out
ADVICE = (
    Advice("Train on a draw in which the groups have shares that anybody may know, such as equal ones",
           "import torch; (group,) = list(data.train.groups.values())[:1]; "
           "draw = torch.multinomial(1 / group.bincount().float()[group], len(group), replacement=True); "
           "hauberk.fit(model, hauberk.Split(*data.train.take(draw)), epochs=10)"),
    Advice("Give out labels alone, and the weights to nobody: what is not seen cannot be read", "", "AML.M0002"),
)


@dataclasses.dataclass(frozen=True)
class Property:
    """That a share of the training records is of a group.

    Arguments:
        name: of it, in words.
        theirs, ours: whether each record of the owner's pool and of the adversary's is of the group.
        true: the group's share of the training data; None where it is not at hand.
        control: the share of a class, which every classifier is made to learn.
    """

    name: str
    theirs: Tensor
    ours: Tensor
    true: float | None
    control: bool = False


@dataclasses.dataclass(frozen=True)
class Told:
    """What one attack says of a property: over models like the target, and of the target itself."""

    about: Property
    attack: str
    verdict: PropertyVerdict
    target: float


@dataclasses.dataclass(frozen=True)
class Trainer:
    """Trains models like the target, each on its own rows of a pool; `cost` is in operations per record and epoch, or None."""

    train: Callable[[Split, Sequence[Tensor], int], list[nn.Module | Target]]
    epochs: int
    cost: int | None
    fits: str


@check(
    "privacy/property-inference", pillar="privacy", unit="accuracy", better="lower", access=Access.SCORE, preset="thorough",
    tags=TAGS, advice=ADVICE, paper="Ateniese et al. 2015, arXiv:1306.4447; Ganju et al. 2018, CCS",
    question="Do models like this one tell what share of their training data a group of people has?",
)
def property_inference_check(context: Context) -> Finding:
    """How often a classifier of models tells a share of three quarters from one of a quarter; the best of the named groups."""
    context.need_classes()
    if not context.data.test.groups:
        raise NotRun("no groups are named whose share could be told (plan: data.groups)")
    owner, own = _pools(context)
    named = _properties(context, owner, own)
    told: list[Told] = []
    made = _trainer(context, owner)
    for about in named:
        found = context.shared(("property inference", about.name), lambda target, one=about: _try(  # type: ignore[misc]
            target, context, made, one, owner, own
        ))
        told += found
    judged = [one for one in told if not one.about.control]
    if not judged:
        raise NotRun(f"of no named group are there enough records for draws of {FEW} with shares of {LOW:.0%} and {HIGH:.0%}")
    chances = [float(p) for p in holm([one.verdict.p for one in judged])]
    best = max(range(len(judged)), key=lambda k: judged[k].verdict.accuracy)
    main, chance, m = judged[best], chances[best], len(judged)
    hits = round(main.verdict.accuracy * main.verdict.n)
    interval = wilson(hits, main.verdict.n, 1 - 0.05 / m)
    status = Status.PASS if chance >= 0.05 else Status.FAIL if interval.low > 0.8 else Status.WARN
    _notes(context, told, m, made)
    rows = [_row(one, chances[judged.index(one)] if one in judged else None, m) for one in told]
    return context.finding(
        f"of {main.verdict.n} models like this one, {main.attack} tell for {main.verdict.accuracy:.0%} whether {main.about.name} "
        f"is {HIGH:.0%} or {LOW:.0%} of the training data; one half is chance (p = {chance:.2g})",
        value=main.verdict.accuracy, n=main.verdict.n, interval=interval, status=status,
        threat="an adversary who knows the architecture, holds records of the kind, trains models like it, and sees its scores"
        + (" and weights" if context.target.access >= Access.GRADIENT else ""),
        evidence=(Table(
            "Shares of the training data told from models",
            ("share of", "read from", "told right", "interval", "by chance (Holm)", "this model: high, p", "true share"), rows,
        ),),
    )


def _notes(context: Context, told: Sequence[Told], tried: int, made: Trainer) -> None:
    context.note(
        f"{_counts(context)[1]} models were judged, each trained on the owner's records with one share or the other, by a "
        f"classifier fitted to {_counts(context)[0]} that the adversary trained on the test records; {made.fits}"
    )
    context.note(
        f"the largest of {tried} accuracies is shown, its interval at {1 - 0.05 / tried:.1%} (Bonferroni); warns when Holm's p "
        "is below .05, fails when the accuracy is surely above .8"
    )
    controls = [one.verdict for one in told if one.about.control]
    if controls and min(one.p for one in controls) >= 0.05:
        context.note("control: not even the share of a class is told, so that the attack is weak here and a pass says little")
    context.note(
        f"what is read off this very model supposes a share of {HIGH:.0%} or {LOW:.0%}: of another share it is a leaning, no more"
    )


def _counts(context: Context) -> tuple[int, int]:
    """Return how many models the adversary trains, and how many are judged."""
    return context.settings.scaled(12, 32, 48), context.settings.scaled(8, 24, 32)


def _pools(context: Context) -> tuple[Split, Split]:
    """Return the owner's records and the adversary's: train and test where train has the groups too, else halves of test."""
    test, train = context.data.test, context.data.train
    if train is not None and set(train.groups) & set(test.groups):
        if context.shared("test samples in train", lambda _: overlap(context.data)).share <= SAME:
            return train, test
        context.note("train and test share samples: halves of the test split stand for both sides")
    order = torch.randperm(len(test), generator=generator(context.seed, "property halves"))
    halves = [rows.sort().values for rows in (order[: len(order) // 2], order[len(order) // 2 :])]
    owner, own = (Split(*test.take(rows), {name: group[rows] for name, group in test.groups.items()}) for rows in halves)
    return owner, own


def _properties(context: Context, owner: Split, own: Split) -> list[Property]:
    """Return the shares to tell: of each value of each group, the commonest first (of two values one), and of a class."""
    found, train = [], context.data.train
    for group in owner.groups.keys() & own.groups.keys():
        codes, counts = own.groups[group].unique(return_counts=True)
        values = codes[counts.argsort(descending=True, stable=True)].tolist()
        words = context.data.group_names.get(group, ())
        for value in values[1:] if len(values) == 2 else values if len(values) > 2 else []:
            word = words[value] if 0 <= value < len(words) else str(value)
            true = None
            if train is not None and group in train.groups:
                true = float((train.groups[group] == value).double().mean())
            found.append((group, Property(f"{group} {word}", owner.groups[group] == value, own.groups[group] == value, true)))
    found.sort(key=lambda one: list(own.groups).index(one[0]))
    most = context.settings.scaled(1, 4, 8)
    if len(found) > most:
        context.note(f"{most} of {len(found)} shares were tried")
    label = int(own.y.bincount().argmax())
    names = context.data.class_names
    word = names[label] if label < len(names) else str(label)
    true = None if train is None else float((train.y == label).double().mean())
    control = Property(f"class {word} (control)", owner.y == label, own.y == label, true, control=True)
    return [*(one for _, one in found[:most]), control]


def _trainer(context: Context, owner: Split) -> Trainer:
    """Return how models like the target are trained, or end the check with what stands against it."""
    predictor, seed = context.target.predictor, derive_seed(context.seed, "property models")
    module, estimator = getattr(predictor, "module", None), getattr(predictor, "estimator", None)
    classes = context.need_classes()
    if estimator is not None:
        def fitted(pool: Split, draws: Sequence[Tensor], number: int) -> list[nn.Module | Target]:
            fresh = [fresh_estimator(estimator, derive_seed(seed, number, k) % 2**32) for k in range(len(draws))]
            made = [fit_estimator(Fitting(one, *pool.take(rows), classes)) for one, rows in zip(fresh, draws, strict=True)]
            return [Target(one, outputs="probabilities") for one in made]

        return Trainer(fitted, 1, None, "each is a clone of the estimator, fitted anew")
    held = next(module.parameters(), None) if isinstance(module, nn.Module) else None
    if not isinstance(module, nn.Module) or held is None:
        raise NotRun("the model cannot be trained anew from here: give a torch module with weights, or an estimator")
    pool = owner.sample(context.settings.scaled(200, 500, 2000), context.seed, "property pilot")
    right = float((context.target.labels(pool[0]).cpu() == pool[1].cpu()).double().mean())
    longest = context.settings.scaled(10, 20, 40)
    try:
        cost = 3 * operations(module, pool[0])
        if cost * len(pool[1]) * longest > context.settings.scaled(10**10, 10**12, 10**14):
            raise NotRun(_dear(context, cost))
        schedule, reached = matched_schedule(module, pool, right, seed=seed, longest=longest)
    except (HauberkError, RuntimeError, NotImplementedError) as error:
        raise NotRun(f"the model cannot be trained anew ({error})") from error

    def trained(pool: Split, draws: Sequence[Tensor], number: int) -> list[nn.Module | Target]:
        made = [redrawn(module, derive_seed(seed, number, k)) for k in range(len(draws))]
        held_rows = torch.cat(list(draws)).unique()
        x, y = pool.take(held_rows)
        index = [torch.searchsorted(held_rows, rows).to(held.device) for rows in draws]
        own, exact = dataclasses.replace(schedule, seed=derive_seed(seed, number)), next(made[0].parameters()).dtype
        fit_stacked(made, x.to(held.device, exact), y.to(held.device), index, schedule=own)
        return list(made)

    return Trainer(trained, schedule.epochs, cost, f"trained for {schedule.epochs} epochs with Adam, where a pilot fits "
                   f"{reached:.1%} of its records and the model {right:.1%}")


def _dear(context: Context, cost: int) -> str:
    return (
        f"models of {cost / 3e9:.2g} GFLOP a record are beyond the budget of the preset '{context.settings.preset}': train "
        "shadows yourself (hauberk.privacy.inference.shadow_models) and judge them with property_inference"
    )


def _try(target: Target, context: Context, made: Trainer, about: Property, owner: Split, own: Split) -> list[Told]:
    """Return what each attack says of one property; nothing where there are too few records, or it is too dear."""
    shadows, victims = _counts(context)
    rare = min(int(side.sum()) for mask in (about.theirs, about.ours) for side in (mask, ~mask))
    size = min(int(rare / HIGH), context.settings.scaled(200, 400, 1000))
    if made.cost is not None:
        room = context.settings.scaled(10**10, 10**12, 10**14)
        size = min(size, int(room / (made.cost * made.epochs * (shadows + victims))))
    if size < FEW:
        context.note(f"{about.name}: draws of {size} records are all that the data or the budget allow; it was left out")
        return []
    seed = derive_seed(context.seed, "property", about.name)
    holds, truth = torch.arange(shadows) % 2 == 1, torch.arange(victims) % 2 == 1
    ours = made.train(own, [_draw(about.ours, size, bool(one), seed, "ours", k) for k, one in enumerate(holds)], seed)
    draws = [_draw(about.theirs, size, bool(one), seed, "theirs", k) for k, one in enumerate(truth)]
    theirs = made.train(owner, draws, derive_seed(seed, "theirs"))
    x, _ = own.sample(context.settings.scaled(100, 200, 500), context.seed, "property queries")
    asked = [_answers(one, x) for one in (ours, [*theirs, target])]
    scores = {"the answers": property_by_answers(asked[1], asked[0], holds)}
    modules = [one for one in (*ours, *theirs) if isinstance(one, nn.Module)]
    if target.access >= Access.GRADIENT and len(modules) == shadows + victims:
        try:
            held = getattr(target.predictor, "module")  # noqa: B009
            scores["the weights"] = property_inference(
                [*modules[shadows:], held], modules[:shadows], holds, meta="sorted", seed=seed
            )
        except ModelError as error:
            context.note(f"the weights were not read: {error.problem}")
    return [
        Told(about, attack, judge_property(one[:-1].cpu(), truth), float(one[-1])) for attack, one in scores.items()
    ]


def _draw(mask: Tensor, size: int, high: bool, seed: int, *names: object) -> Tensor:
    """Return sorted positions, drawn without replacement, of which the share that `mask` marks is high or low."""
    draws, inside = generator(seed, "property draw", *names), round(size * (HIGH if high else LOW))
    return torch.cat([
        places[torch.randperm(len(places), generator=draws)[:count]]
        for places, count in ((mask.nonzero()[:, 0], inside), ((~mask).nonzero()[:, 0], size - inside))
    ]).sort().values


def _answers(models: Sequence[nn.Module | Target], x: Tensor) -> Tensor:
    """Return logits of each model, shape (models, n, classes), on the CPU."""
    found = []
    for one in models:
        found.append(one.logits(x) if isinstance(one, Target) else logits_of([one], x)[0])
    return torch.stack([one.double().cpu() for one in found]).clamp(-1e6, 1e6)


def _row(one: Told, p: float | None, tried: int) -> tuple[object, ...]:
    n, accuracy = one.verdict.n, one.verdict.accuracy
    span: Interval = wilson(round(accuracy * n), n, 1 - 0.05 / tried)
    return (
        one.about.name, one.attack, f"{accuracy:.0%} of {n}", f"{span.low:.0%} to {span.high:.0%}",
        f"{p:.2g}" if p is not None else f"{one.verdict.p:.2g} (not judged)", f"{one.target:.0%}",
        "–" if one.about.true is None else f"{one.about.true:.0%}",
    )
