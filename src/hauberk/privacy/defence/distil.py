"""Distillation for privacy: the model given away never sees the answers that its training records were learnt by heart with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hauberk.core import rng
from hauberk.core.data import Split
from hauberk.core.errors import DataError, UsageError
from hauberk.core.target import evaluating
from hauberk.core.train import Loss, Schedule, class_logits, fit

Build = Callable[[], nn.Module]
Train = Callable[[nn.Module, Split], Any]


def dmp(
    teacher: nn.Module, student: nn.Module, reference: Tensor, *, keep: float = 1.0, temperature: float = 1.0,
    schedule: Schedule | None = None, seed: int = 0,
) -> nn.Module:
    """Train a student on what an unprotected teacher says of reference inputs that nobody trained on.

    Distillation for membership privacy (Shejwalkar and Houmansadr 2021, arXiv:1906.06589): the student sees no private record. It
    is safer, and less accurate, the fewer and the surer the reference inputs are.

    Arguments:
        teacher: trained on the private records.
        student: untrained; trained in place.
        reference: inputs like the private ones, without labels, shape (m, ...).
        keep: share of them that is used, those of the lowest entropy first: uncertain answers tell more of the members.
        temperature: by which the teacher's logits are divided.
        schedule: of the student's training.
        seed: of the student's training, where the schedule is None.

    Returns:
        The student.

    Raises:
        DataError: for no reference inputs.
        UsageError: for a share outside (0, 1], or a temperature that is not above 0.
    """
    if not 0 < keep <= 1 or not temperature > 0:
        raise UsageError(f"keep is {keep} and temperature {temperature}", want="a share above 0 up to 1, and above 0")
    if len(reference) < 2:
        raise DataError(f"there are {len(reference)} reference inputs", want="at least 2")
    soft = _answers(teacher, reference, temperature)
    order = torch.special.entr(soft).sum(1).argsort(stable=True)[: max(2, round(keep * len(soft)))].sort().values
    return learn_from(student, reference[order], soft[order], schedule=schedule or Schedule(seed=seed))


def learn_from(student: nn.Module, x: Tensor, soft: Tensor, *, schedule: Schedule | None = None) -> nn.Module:
    """Train a student, in place, towards answers given as probabilities, shape (n, classes), and return it."""
    fit(student, Split(x, torch.arange(len(x))), loss=towards(soft), schedule=schedule)
    return student


def towards(soft: Tensor) -> Loss:
    """Return the cross-entropy against the rows of `soft`, shape (n, classes), that the labels are positions of."""

    def loss(model: nn.Module, x: Tensor, place: Tensor) -> Tensor:
        log_p = class_logits(model(x)).log_softmax(1)
        return -(soft.to(log_p)[place.to(log_p.device)] * log_p).sum(1).mean()

    return loss


@dataclasses.dataclass
class Selena:
    """What SELENA made.

    Arguments:
        student: the model to give away.
        soft: what it learnt of each training record, shape (n, classes): the mean answer of models not trained on it.
        outside: which model was not trained on which record, shape (n, models), bool.
        models: the partial models; private.
    """

    student: nn.Module
    soft: Tensor
    outside: Tensor
    models: list[nn.Module]


def selena(
    build: Build, data: Split, *, models: int = 10, outside: int = 3, train: Train = fit, schedule: Schedule | None = None,
    seed: int = 0,
) -> Selena:
    """Train partial models that each leave out records, and a student on what is said of each record by those that left it out.

    Split-AI and self-distillation (Tang et al. 2022, arXiv:2110.08324): the student learns of a record what models say of one
    they have never seen, so that its answer looks like that to a non-member.

    Arguments:
        build: returns a new, untrained classifier.
        data: the private records.
        models: partial models; the paper takes 25.
        outside: of these, how many leave out each record, drawn by record; the paper takes 10.
        train: trains a partial model in place: `fit`, or a call of it with options of your own.
        schedule: of the student's training.
        seed: of the draws, first weights and training.

    Returns:
        The student and what it rests on.

    Raises:
        UsageError: where a record would be left out by none or by all.
        DataError: for no records.
    """
    if not 0 < outside < models:
        raise UsageError(f"outside is {outside} of {models} models", want="at least 1, and fewer than there are models")
    if not len(data):
        raise DataError("there are no records", want="at least one")
    dice = torch.rand(len(data), models, generator=rng.generator(seed, "selena"))
    left = torch.zeros(len(data), models, dtype=torch.bool).scatter(1, dice.argsort(1)[:, :outside], True)
    made: list[nn.Module] = []
    total: Tensor | None = None
    x, _ = data.tensors()
    for index in range(models):
        used = (~left[:, index]).nonzero()[:, 0]
        with rng.isolated(rng.derive_seed(seed, "selena model", index)):
            model = build()
            train(model, Split(*data.take(used)))
        answers = _answers(model, x, 1.0)
        total = torch.zeros_like(answers) if total is None else total
        total = total + answers * left[:, index : index + 1].to(answers)
        made.append(model.eval())
    assert total is not None
    soft = total / outside
    with rng.isolated(rng.derive_seed(seed, "selena student")):
        student = build()
    plan = schedule or Schedule(seed=rng.derive_seed(seed, "selena student"))
    return Selena(learn_from(student, x, soft, schedule=plan), soft, left, made)


def _answers(model: nn.Module, x: Tensor, temperature: float) -> Tensor:
    with torch.no_grad(), evaluating(model):
        parts = [class_logits(model(part)).cpu() for part in x.split(256)]
    return (torch.cat(parts).double() / temperature).softmax(1)
