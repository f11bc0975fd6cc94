"""A defence repeated by who knows it: reference models that were trained and protected as the owner's model was."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from hauberk.core import progress, rng
from hauberk.core.access import Access
from hauberk.core.data import Split
from hauberk.core.errors import DataError, ModelError
from hauberk.core.predictors import ModulePredictor
from hauberk.core.target import Target, as_target
from hauberk.io.sklearn_models import SklearnPredictor
from hauberk.privacy.defence.outputs import Answering, Protect, labels_alone
from hauberk.privacy.membership.matching import retrainable
from hauberk.privacy.membership.references import References, halves_of
from hauberk.privacy.membership.signals import Records, foreign, paired

Training: TypeAlias = Callable[[Split, int], nn.Module | Target]


@dataclasses.dataclass(frozen=True, eq=False)
class Repeated:
    """How a defence is repeated, so that an adversary can learn on models of his own what membership does to its answers.

    Arguments:
        train: `(records, seed) -> model`, the owner's whole procedure, from private records to the model that is given away; or
            references that `defended_references` trained so.
        protect: `(target, members, non_members) -> target`, the output defence, with a key of its own; None for none.
        plain: likewise, the training without the defence. None: `protect` alone makes the difference, and `train` is the plain
            one; without `protect`, the plain model is then not attacked by references, and the verdict says so.
        count: of reference models of each kind, even.
    """

    train: Training | References
    protect: Protect | None = None
    plain: Training | References | None = None
    count: int = 4

    def trained(self, records: Records, seed: int) -> tuple[References | None, References]:
        """Return the references without and with the defence; the former None where nothing says how they are trained."""
        made = self._made(self.train, records, seed)
        plain = made if self.protect is not None else None
        if self.plain is not None:
            plain = self._made(self.plain, records, seed)
        return plain, protected(made, self.protect)

    def _made(self, train: Training | References, records: Records, seed: int) -> References:
        if isinstance(train, References):
            return train
        return defended_references(train, records, count=self.count, seed=seed)


def defended_references(
    train: Training, records: Records, *, count: int = 4, protect: Protect | None = None, seed: int = 0
) -> References:
    """Train reference models under a defence, each by the owner's whole procedure, on complementary halves of a pool.

    Where the defence is a change of answers alone, `train_references` is quicker, and `protect` of `Repeated` adds the defence.

    Arguments:
        train: `(records, seed) -> model`: builds, trains and returns one, such as the student of a distillation. It runs with the
            global generator set from the seed.
        records: the pool, x of shape (n, ...) and y of shape (n,): what will be judged, and more of the kind where there is.
        count: of models, even.
        protect: `(target, members, non_members) -> target`, the output defence around each; None for none.
        seed: of the halves and the trainings.

    Returns:
        The references, for `variance_prior`, `lira`, `rmia` and `judge_defence`.

    Raises:
        UsageError: for an odd count.
        DataError: for fewer than 4 records, or labels that are not classes.
        ModelError: where `train` returns no model.
    """
    x, y = paired((records[0].detach(), records[1]))
    if len(x) < 4:
        raise DataError(f"the pool holds {len(x)} records", want="4 or more: each model is trained on half of them")
    if int(y.min()) < 0:
        raise foreign(y)
    inside = halves_of(x.cpu(), y.cpu(), count, seed)
    models = []
    for k, chosen in enumerate(progress.track(inside, "reference models under the defence", count)):
        own = rng.derive_seed(seed, "defended reference", k) % 2**31
        with rng.isolated(own, x.device):
            made = train(Split(x[chosen.to(x.device)], y[chosen.to(y.device)]), own)
        if not isinstance(made, nn.Module | Target):
            raise ModelError(f"train returned a {type(made).__name__}", want="the trained model: a torch module or a target")
        models.append(as_target(made.eval() if isinstance(made, nn.Module) else made))
    return protected(References(models, x.cpu(), y.cpu(), inside, torch.empty(0)), protect)


def protected(references: References, protect: Protect | None) -> References:
    """Return the references behind an output defence, each with its own members, as the adversary reads their answers."""
    x, y = references.x, references.y
    models = []
    for one, inside in zip(references.models, references.inside, strict=True):
        kept = one if protect is None else protect(one, (x[inside], y[inside]), (x[~inside], y[~inside]))
        models.append(read(kept))
    if protect is None and len(references.logits) and all(one is two for one, two in zip(models, references.models, strict=True)):
        return references
    answers = torch.stack([_answers(one, x, int(y.max()) + 1) for one in models])
    return References(models, x, y, references.inside, answers)


@dataclasses.dataclass
class Reader:
    """What who knows the rounding takes rounded scores to mean, as probabilities.

    Scores that add up to less than 1 have lost the rest: it is shared evenly. Half a step is then shared likewise, so that
    scores of 0 and 1 have finite log-odds, about as far from their neighbours as those are from each other.
    """

    target: Target
    step: float
    access: Access = Access.SCORE
    outputs: str = "probabilities"

    def __call__(self, x: Tensor) -> Tensor:
        given = self.target.logits(x.detach()).double().exp()  # not `scores`, which add up to 1 again
        whole = given + (1 - given.sum(1, keepdim=True)).clamp_min(0) / given.shape[1]
        return (1 - self.step / 2) * whole / whole.sum(1, keepdim=True) + self.step / 2 / given.shape[1]


def read(target: Target) -> Target:
    """Return a target as who knows its defence reads it: one with rounded scores behind a `Reader`, others as they are."""
    step = target.predictor.step if isinstance(target.predictor, Answering) else 0.0
    return Target(Reader(target, step), name=target.name) if step and target.access >= Access.SCORE else target


def output_defence(defended: Target, plain: Target) -> Protect | None:
    """Return what puts the defence around another model, where it changes the plain model's answers alone; else None."""
    predictor = defended.predictor
    made: Protect = _unchanged
    if isinstance(predictor, Answering):
        inner, outer = output_defence(predictor.target, plain), predictor.again
        if inner is None or outer is None:
            return None
        made = _after(inner, outer)
    elif predictor is not plain.predictor:
        # One model twice: a predictor of another kind around it may answer anything.
        known = all(type(one.predictor) in (ModulePredictor, SklearnPredictor) for one in (plain, defended))
        if not known or retrainable(defended) is not retrainable(plain):
            return None
    return _after(made, _mute) if defended.access < Access.SCORE <= plain.access else made


def _after(first: Protect, then: Protect) -> Protect:
    return lambda target, inside, outside: then(first(target, inside, outside), inside, outside)


def _unchanged(target: Target, inside: Records, outside: Records) -> Target:
    return target


def _mute(target: Target, inside: Records, outside: Records) -> Target:
    return labels_alone(target)


def _answers(target: Target, x: Tensor, classes: int) -> Tensor:
    if target.access >= Access.SCORE:
        return target.logits(x).detach().cpu().float()
    # Labels alone: attacks on scores are refused by the defended model before they look here.
    labels = target.labels(x).cpu().clamp_min(0)
    return functional.one_hot(labels, max(classes, int(labels.max()) + 1)).float()
