"""How long reference models are to be trained where the target's own training is not known, and what that costs."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from hauberk.core.predictors import evaluating
from hauberk.core.stacked import fit_stacked, logits_of
from hauberk.core.train import Schedule
from hauberk.privacy.membership.references import redrawn
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
    copied = copy.deepcopy(module).to("cpu")
    with torch.no_grad(), evaluating(copied), counter:
        copied(x[:1].detach().cpu().float())
    return max(counter.get_total_flops(), sum(one.numel() for one in module.parameters()))
