"""Objectives: what counts as a failure of the model on a mutant."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hauberk.core.errors import UsageError, nearest
from hauberk.core.target import Target
from hauberk.robustness.fuzz.coverage.reading import Reading


@dataclasses.dataclass
class Case:
    """A batch of mutants and what was answered.

    Arguments:
        x: mutants, shape (n, ...).
        reading: answers and neurons of them.
        y: true labels or values of their seeds, shape (n,).
        clean: what the model answered to their seeds, shape of `reading.answers`.
        target: the model, for relations that have to ask again.
    """

    x: Tensor
    reading: Reading
    y: Tensor
    clean: Tensor
    target: Target


@dataclasses.dataclass(frozen=True)
class Objective:
    """A way to fail.

    Arguments:
        name: as the results call it.
        fails: `case -> flags`, shape (n,), bool. It is asked about the seeds as well; seeds that fail unchanged are left out.
    """

    name: str
    fails: Callable[[Case], Tensor]


def misclassification() -> Objective:
    """Return the objective of a wrong label; an answer that holds NaN is left to `not_a_number`."""
    return Objective("misclassification", lambda case: (case.reading.labels != case.y) & (case.reading.labels >= 0))


def label_invariance() -> Objective:
    """Return the metamorphic relation that a valid mutation must not change the label; true labels are not needed."""
    return Objective("label-invariance", lambda case: case.reading.labels != case.clean.argmax(1))


def disagreement(other: Target, *, name: str = "disagreement") -> Objective:
    """Return the objective of another label by a second model: quantised, exported, pruned, or trained apart.

    Pei et al. 2017 (DeepXplore), arXiv:1705.06640; Odena et al. 2019 (TensorFuzz), arXiv:1807.10875.

    Arguments:
        other: the second model; its own ledger counts what it is asked.
        name: as the results call it.
    """
    return Objective(name, lambda case: other.labels(case.x).to(case.x.device) != case.reading.labels)


def bounded_change(*, factor: float = 5.0, mse: float) -> Objective:
    """Return the metamorphic relation of regression: the squared error of a mutant is at most `factor` times the original MSE.

    Tian et al. 2018 (DeepTest), arXiv:1708.08559, equation 3.

    Arguments:
        factor: the paper's lambda.
        mse: the mean squared error on clean data.
    """
    def fails(case: Case) -> Tensor:
        error = (case.reading.answers[:, 0].double() - case.y.double()).square()
        return error > factor * mse

    return Objective("bounded-change", fails)


def batch_invariance(*, tolerance: float = 1e-4, most: int = 8) -> Objective:
    """Return the relation that a sample is answered alone as in a batch, up to a tolerance of the scores.

    Arguments:
        tolerance: of the largest difference, relative to the largest score (1 at least).
        most: samples of each batch that are asked again alone.
    """

    def fails(case: Case) -> Tensor:
        flags = torch.zeros(len(case.x), dtype=torch.bool, device=case.x.device)
        if not len(case.x):
            return flags
        with torch.no_grad():
            together = case.target.predictor(case.x).reshape(len(case.x), -1).double()
            for row, one in enumerate(case.x[:most].split(1)):
                alone, beside = case.target.predictor(one).reshape(-1).double(), together[row]
                finite = beside[beside.isfinite()]
                scale = max(1.0, float(finite.abs().max())) if len(finite) else 1.0
                # NaN answers a sample alone and in the batch, or neither: it is no number that is near to another.
                flags[row] = not torch.allclose(alone, beside, rtol=0.0, atol=tolerance * scale, equal_nan=True)
        return flags

    return Objective("batch-invariance", fails)


def monotone(feature: int, *, step: float, label: int | None = None, rising: bool = True) -> Objective:
    """Return the relation that raising one feature never lowers (or never raises) the score of a class, or a predicted number.

    Arguments:
        feature: its position in a flattened sample.
        step: what is added, in input units; samples that leave the target's bounds by it are not judged.
        label: the class, 1 where None; of a regression the position of the number, 0 where None.
        rising: whether the score has to rise with the feature.
    """

    def fails(case: Case) -> Tensor:
        raised = case.x.flatten(1).clone()
        if not 0 <= feature < raised.shape[1]:
            raise UsageError(f"feature is {feature}", want=f"a position from 0 to {raised.shape[1] - 1} in a flattened sample")
        raised[:, feature] += step
        raised = raised.reshape(case.x.shape)
        high = torch.as_tensor(case.target.bounds[1] if case.target.bounds is not None else torch.inf).to(case.x)
        judged = (raised <= high).flatten(1)[:, feature]
        with torch.no_grad():
            before, after = (_column(case, one, label) for one in (case.x, raised))
        change = after - before if rising else before - after
        return (change < -1e-6) & judged

    return Objective(f"monotone-{feature}", fails)


def _column(case: Case, x: Tensor, label: int | None) -> Tensor:
    """Return the score of a class, or the raw number of a regression (whose scores would be a softmax), shape (n,)."""
    if case.y.is_floating_point():
        rows, place = case.target.predictor(x).reshape(len(x), -1), label or 0
        case.target.ledger.queries += len(x)
    else:
        rows, place = case.target.scores(x), 1 if label is None else label
    if not 0 <= place < rows.shape[1]:
        raise UsageError(f"label is {place}", want=f"0 to {rows.shape[1] - 1}: the model gives {rows.shape[1]} for a sample")
    return rows[:, place].double()


def not_a_number() -> Objective:
    """Return the objective of an answer that holds NaN or infinity."""
    return Objective("not-a-number", lambda case: ~case.reading.answers.isfinite().all(1))


NAMED: dict[str, Callable[[], Objective]] = {
    "misclassification": misclassification, "label-invariance": label_invariance, "not-a-number": not_a_number,
    "batch-invariance": batch_invariance,
}


# What needs figures: how it is written, how many figures there are, and what they make.
FIGURED: dict[str, tuple[str, int, Callable[..., Objective]]] = {
    "monotone": ("monotone:FEATURE:STEP", 2, lambda feature, step: monotone(_place(feature), step=step)),
    "falling": ("falling:FEATURE:STEP", 2, lambda feature, step: monotone(_place(feature), step=step, rising=False)),
    "bounded-change": ("bounded-change:MSE", 1, lambda mse: bounded_change(mse=mse)),
}


def named(names: Sequence[str]) -> list[Objective]:
    """Return the objectives of those names; those that need figures are written with them: `monotone:3:0.05`.

    Raises UsageError for an unknown one, or figures that are missing or wrong.
    """
    found = []
    for name in names:
        head, *figures = name.split(":")
        if head in FIGURED:
            shape, count, make = FIGURED[head]
            values = [_number(one) for one in figures]
            if len(values) != count or not all(map(math.isfinite, values)) or values[-1] <= 0:
                raise UsageError(f"the objective is '{name}'", want=f"{shape}, with numbers, the last of them above 0")
            found.append(make(*values))
        elif name in NAMED:
            found.append(NAMED[name]())
        else:
            known, hint = [*NAMED, *(shape for shape, *_ in FIGURED.values())], nearest(head, [*NAMED, *FIGURED])
            fix = hint if hint.startswith("Did") else ""
            raise UsageError(f"there is no objective '{name}'", want=" | ".join(known), fix=fix)
    return found


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _place(feature: float) -> int:
    if feature != int(feature):
        raise UsageError(f"feature is {feature}", want="the position of a feature in a flattened sample, a whole number")
    return int(feature)
