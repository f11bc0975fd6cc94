"""How long reference models are to be trained where the target's own training is not known, and what that costs."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import torch
from torch import Tensor, nn

from hauberk.core.errors import UsageError
from hauberk.core.predictors import evaluating
from hauberk.core.rng import derive_seed
from hauberk.core.stacked import fit_stacked, logits_of
from hauberk.core.target import Target
from hauberk.core.train import Schedule
from hauberk.privacy.membership.references import References, redrawn, train_references
from hauberk.privacy.membership.signals import Records

ROUNDS = (5, 10, 20, 40, 80)


def matched_schedule(
    module: nn.Module, records: Records, accuracy: float, *, seed: int = 0, lr: float = 1e-3, longest: int = ROUNDS[-1],
) -> tuple[Schedule, float]:
    """Return the shortest schedule that fits half of the records as well as the target fits its own, and how well it does.

    Arguments:
        module: whose architecture is trained.
        records: the pool, x of shape (n, ...) and y of shape (n,).
        accuracy: of the target on its members; a pilot within .01 of it is near enough.
        seed: of the pilot, and of the schedule.
        lr: of Adam.
        longest: the most epochs, tried last.
    """
    held = next(iter(module.parameters()), records[0])
    exact = torch.float32 if held.dtype in (torch.float16, torch.bfloat16) else held.dtype  # as `redrawn` makes them
    x, y = records[0].detach().to(held.device, exact), records[1].to(held.device).long()
    half = torch.arange(0, len(x), 2, device=held.device)
    reached = 0.0
    rounds = [*(epochs for epochs in ROUNDS if epochs < longest), longest]
    schedule = Schedule(epochs=rounds[0], batch_size=64, seed=seed)
    for epochs in rounds:
        schedule = Schedule(epochs=epochs, batch_size=64, seed=seed)
        pilot = redrawn(module, seed)
        fit_stacked([pilot], x, y, [half], schedule=schedule, lr=lr)
        reached = float((logits_of([pilot], x[half])[0].argmax(1) == y[half]).double().mean())
        if reached >= accuracy - 0.01:
            break
    return schedule, reached


def operations(module: nn.Module, x: Tensor) -> int:
    """Return the floating-point operations of one forward pass of one record, from shapes alone.

    Arguments:
        x: records, shape (n, ...), of which the first is asked.
    """
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    copied = copy.deepcopy(module).to("cpu", torch.float32)
    with torch.no_grad(), evaluating(copied), counter:
        copied(x[:1].detach().cpu().float())
    return max(counter.get_total_flops(), sum(one.numel() for one in module.parameters()))


@dataclasses.dataclass(frozen=True)
class Like:
    """Reference models that are to be trained like a target.

    Arguments:
        count: of models, even.
        epochs: of their training; None takes what `matched_schedule` finds.
        lr: of Adam.
        seed: of the halves, weights and training.
        workers: processes for what cannot be trained side by side.
        keep: a folder of finished models, as for `train_references`.
    """

    count: int
    epochs: int | None = None
    lr: float = 1e-3
    seed: int = 0
    workers: int = 1
    keep: Path | None = None


def references_like(target: Target, members: Records, non_members: Records, wanted: Like) -> tuple[References, str]:
    """Return reference models of a target's kind, trained on halves of all records, and how long they were trained.

    Arguments:
        target: of a torch module, whose architecture is drawn anew, or of an estimator, which is cloned.
        members, non_members: the pool, (x, y) each.
        wanted: how many, and how trained.

    Returns:
        The references, and a sentence about their training, empty where there is nothing to say.

    Raises:
        UsageError: for a target that cannot be trained anew.
        ModelError: for a module with weights that cannot be drawn.
    """
    pool = torch.cat([members[0], non_members[0]]), torch.cat([members[1], non_members[1]])
    schedule, said = Schedule(epochs=wanted.epochs or 40, batch_size=64, seed=derive_seed(wanted.seed, "references")), ""
    made = retrainable(target)
    if made is None:
        raise UsageError("--references needs a model that can be trained anew", want="a torch module or an estimator")
    if isinstance(made, nn.Module) and wanted.epochs is None:
        right = float((target.labels(members[0]).cpu() == members[1].cpu()).double().mean())
        found, reached = matched_schedule(made, pool, right, seed=schedule.seed, lr=wanted.lr)
        schedule = dataclasses.replace(schedule, epochs=found.epochs)
        said = f"references train for {found.epochs} epochs: {reached:.1%} right on their records, the model {right:.1%}"
    return train_references(
        made, pool, count=wanted.count, schedule=schedule, lr=wanted.lr, workers=wanted.workers, keep=wanted.keep
    ), said


def retrainable(target: Target) -> object | None:
    """Return the torch module or the estimator behind a target; None where there is neither."""
    module, estimator = (getattr(target.predictor, name, None) for name in ("module", "estimator"))
    return estimator if estimator is not None else module if isinstance(module, nn.Module) else None
