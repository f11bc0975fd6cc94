"""The GAN attack in joint training: would a participant draw a class that only another one holds?"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterator

import torch
from scipy import stats
from torch import Tensor, nn

from hauberk.checks.context import Context, NotRun
from hauberk.checks.gradient_inversion import need_logits
from hauberk.checks.inversion import evaluator_of, weakest
from hauberk.core.access import Access
from hauberk.core.data import Split
from hauberk.core.errors import HauberkError
from hauberk.core.finding import Advice, Finding, Gallery, Picture, Status, Table
from hauberk.core.kinds import check
from hauberk.core.picture import picture
from hauberk.core.rng import derive_seed, generator
from hauberk.core.stats import wilson
from hauberk.core.target import Target
from hauberk.core.train import Schedule, class_logits, fit
from hauberk.privacy.inversion.trial import scalar_bounds
from hauberk.privacy.membership.matching import operations
from hauberk.privacy.membership.references import redrawn
from hauberk.privacy.model_inversion import federated_gan
from hauberk.privacy.model_inversion.descent import TAGS

THREAT = (
    "a participant of joint training who sees the model after every round, sends what a generator makes under a false label, and "
    "asks for a class that another participant alone holds"
)
TRIALS, ROUNDS, STEPS, IMAGES, RECORDS = 10, 20, 30, 64, 600
BUDGET = 10**14  # operations of all trials
DRAWN = 0.5  # share of a trial's images that the evaluator must assign to the class
ADVICE = (
    Advice("Train in one place, where no participant sees the model between rounds",
           "hauberk.fit(model, data.train, schedule=hauberk.Schedule(epochs=10))"),
    Advice("Where you train jointly, let every participant hold some of each class, average many of them at a time, and look at "
           "what a single one sends; noise per record hides a record, not what a class looks like"),
)


@dataclasses.dataclass(frozen=True)
class Trial:
    """One class asked for, in one joint training.

    Arguments:
        label: the class.
        known, control: share of the images made that the evaluator assigns to it, where the other participant held the class
            and where nobody did.
        accuracy: of the joint model at the end, on all records.
        nearest, blind: RMS distance to the nearest private image of the class, of what was made (mean) and of the mean image.
        image: one of those made.
    """

    label: int
    known: float
    control: float
    accuracy: float
    nearest: float
    blind: float
    image: Tensor


@check(
    "privacy/federated-gan", pillar="privacy", unit="rate", better="lower", access=Access.GRADIENT, preset="thorough", tags=TAGS,
    advice=ADVICE, question="If this model is trained jointly, can a participant draw a class that only another one holds?",
    paper="Hitaj et al. 2017, arXiv:1702.07464",
)
def federated_gan_check(context: Context) -> Finding:
    """Share of joint trainings, simulated anew, in which an independent classifier recognises the class that was drawn."""
    classes = context.need_classes()
    context.need_images()
    if context.settings.preset != "thorough":
        raise NotRun(f"it simulates {2 * TRIALS} joint trainings of this architecture: at the preset 'thorough' alone")
    if classes < 3:
        raise NotRun("there are 2 classes: a participant without one of them has nothing to train on")
    train = context.split("train")
    need_logits(context.target, train.first(1)[0], classes)
    x, y = train.sample(RECORDS, context.seed, "joint training")
    present = [label for label in range(classes) if int((y == label).sum()) >= 8]
    if len(present) < 3:
        raise NotRun(f"{len(present)} classes have 8 of {len(y)} training records or more; at least 3 are needed")
    evaluator, able = evaluator_of(context, classes, (x, y))
    trials = context.shared("joint trainings", lambda target: _trials(target, context, (x, y), present, evaluator))
    reached = sum(one.accuracy for one in trials) / len(trials)
    if reached < weakest(classes):
        raise NotRun(f"joint training reaches {reached:.0%} in the simulation: too weak for anything to be drawn from it")
    drawn, also = ([one.known > DRAWN for one in trials], [one.control > DRAWN for one in trials])
    only, other = (sum(a and not b for a, b in zip(*pair, strict=True)) for pair in ((drawn, also), (also, drawn)))
    p = float(stats.binomtest(only, only + other, alternative="greater").pvalue) if only + other else 1.0
    n, hits = len(trials), sum(drawn)
    context.note(
        f"simulated: two participants with {len(y) // 2} records each, {ROUNDS} rounds of averaging, the architecture drawn "
        f"anew; the joint model ends right on {reached:.0%}. Your own joint training may differ in all of this"
    )
    context.note(
        f"a class counts as drawn where the evaluator, right on {able:.0%} of training samples, assigns it more than "
        f"{DRAWN:.0%} of {IMAGES} images; in the control nobody holds the class ({sum(also)} of {n} drawn). Warns when drawn "
        f"oftener than in the control (p = {p:.2g}, exact)"
    )
    context.note("speaks of models that are trained jointly by parties who do not trust each other; others are not concerned")
    rows = [(one.label, f"{one.known:.0%}", f"{one.control:.0%}", f"{one.nearest:.3g}", f"{one.blind:.3g}", f"{one.accuracy:.0%}")
            for one in trials]
    return context.finding(
        f"in {hits} of {n} joint trainings a participant draws a class that only another holds; in {sum(also)} where nobody does",
        value=hits / n, n=n, interval=wilson(hits, n), threat=THREAT, status=Status.WARN if p < 0.05 else Status.PASS,
        evidence=(
            Table("Classes drawn", ("class", "recognised", "in the control", "RMS distance to the nearest of the class",
                                    "of the mean image", "accuracy of the joint model"), rows),
            Gallery("What was drawn, beside a training sample of the class", _pictures(trials, (x, y), context)),
        ),
    )


def _trials(
    target: Target, context: Context, records: tuple[Tensor, Tensor], present: list[int], evaluator: nn.Module
) -> list[Trial]:
    x, y = records
    module = target.module
    if next(module.parameters(), None) is None:
        raise NotRun("the model has no weights that could be trained")
    try:
        cost = 3 * operations(module, x) * 2 * TRIALS * ROUNDS * (len(y) + STEPS * IMAGES)
        if cost > BUDGET:
            raise NotRun(
                f"{2 * TRIALS} joint trainings of this model cost {cost / 1e12:.0f} TFLOP, more than the budget of "
                f"{BUDGET / 1e12:.0f}: run hauberk.privacy.model_inversion.federated_gan on your own rounds"
            )
        redrawn(module, 0)
    except (HauberkError, RuntimeError) as error:
        raise NotRun(f"the model cannot be trained anew from here ({error})") from error
    order = torch.randperm(len(present), generator=generator(context.seed, "classes drawn")).tolist()
    made = []
    for number in range(TRIALS):
        label = present[order[number % len(present)]]
        seed = derive_seed(context.seed, "joint training", number)
        images, accuracy = _played(module, records, label, True, seed, context)
        control, _ = _played(module, records, label, False, seed, context)
        with torch.no_grad():
            known, never = (float((evaluator(one).argmax(1) == label).double().mean()) for one in (images, control))
        own, size = x[y == label].flatten(1).double(), math.sqrt(x[0].numel())
        nearest, blind = (
            float(torch.cdist(one.flatten(1).double(), own).min(1).values.mean()) / size
            for one in (images, x.mean(0, keepdim=True))
        )
        made.append(Trial(label, known, never, accuracy, nearest, blind, images[0]))
    return made


def _played(
    module: nn.Module, records: tuple[Tensor, Tensor], label: int, held: bool, seed: int, context: Context
) -> tuple[Tensor, float]:
    """Return what the participant draws of the class, which the other one holds or nobody does, and the joint accuracy."""
    x, y = records
    order = torch.randperm(len(y), generator=generator(seed, "participants"))
    honest, own = order[0::2], order[1::2]
    own = own[y[own] != label]
    honest = honest if held else honest[y[honest] != label]
    wrong = int(y[own].mode().values)  # what the adversary calls what it makes: a class of its own
    shared = redrawn(module, seed)
    place = next(shared.parameters())  # of single precision where the model has less
    sent: list[Tensor] = []

    def rounds() -> Iterator[nn.Module]:
        for number in range(ROUNDS):
            states = []
            for rows in (honest, own):
                images, labels = x[rows], y[rows]
                if rows is own and sent:
                    images = torch.cat([images, sent[-1]])
                    labels = torch.cat([labels, torch.full((len(sent[-1]),), wrong)])
                client = copy.deepcopy(shared)
                learn = torch.optim.Adam(client.parameters(), lr=3e-3)
                schedule = Schedule(epochs=1, batch_size=32, seed=derive_seed(seed, number))
                fit(client, Split(images.to(place), labels.to(place.device)), optimizer=learn, schedule=schedule)
                states.append(client.state_dict())
            shared.load_state_dict({
                name: (one + states[1][name]) / 2 if one.is_floating_point() else one for name, one in states[0].items()
            })
            yield shared

    found = federated_gan(
        rounds(), label, shape=tuple(x.shape[1:]), send=lambda made: sent.append(made.cpu()), steps=STEPS, images=IMAGES,
        bounds=scalar_bounds(context.data.bounds), seed=seed,
    )
    with torch.no_grad():
        right = torch.cat([class_logits(shared(part.to(place))).argmax(1).cpu() for part in x.split(256)]) == y
    return found.x.detach().to(x), float(right.double().mean())


def _pictures(trials: list[Trial], records: tuple[Tensor, Tensor], context: Context) -> list[Picture]:
    x, y = records
    pictures = []
    for one in trials:
        pictures.append(picture(one.image, f"class {one.label}, drawn", bounds=context.data.bounds))
        pictures.append(picture(x[y == one.label][0], "training sample", bounds=context.data.bounds))
    return pictures
