"""How APGD chooses its steps: momentum, checkpoints at which stalled samples go back to their best point, sparsity in L1."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.core.gradients import input_gradient
from hauberk.core.threat import Ball
from hauberk.robustness.attack.climb import Climb
from hauberk.robustness.attack.pgd import ascent

_MOMENTUM = 0.75  # share of the new step against the last move
_PROGRESS = 0.75  # share of the steps between two checkpoints that must raise the loss
_SPARSER = 1.5  # in L1: the features of a step against those of the best point, and the cut of a stalled step size
_WIDER = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))  # in L1: radii in eps, and their shares of the steps
_SHORTEST = 10  # in L1: the first step size against the least


def auto_ascend(run: Climb, z: Tensor, answers: int = 1) -> None:
    """Climb from z, shape (alive, ...), for all steps of the run; it keeps the best points and drops the broken samples.

    In L1 the search goes through wider balls first, from where it falls back into the ball. `answers`: asked for at each point,
    and averaged.
    """
    if run.ball.norm != "l1" or run.steps < 10:
        _climb(run, z, run.widened(1.0), run.steps, answers, end=True)
        return
    left = run.steps
    for share, part in _WIDER:
        steps = int(part * run.steps) if share > 1 else left
        left -= steps
        wide = run.widened(share)
        z = _climb(run, wide.subset(run.alive).project(z), wide, steps, answers, end=share == 1)
        if not len(run.alive):
            return


def _climb(run: Climb, z: Tensor, whole: Ball, steps: int, answers: int, *, end: bool) -> Tensor:
    """Climb from z in the ball `whole`, and return the best point of each sample that is still under way.

    Everything remembered of a sample lies in the run's memory, so that it leaves with the sample.
    """
    marks, mark = checkpoints(steps, sparse=run.ball.norm == "l1"), 0
    for step in range(steps + end):
        height, gradient = expected(run, z, answers, step < steps)
        z, height, gradient = run.going(z, height, gradient)
        if step == steps or not len(z):
            break
        ball = whole.subset(run.alive)
        _remember(run, ball, z, height, gradient, first=step == 0)
        if step in marks:
            stalled = _stalled_sparse(run) if ball.norm == "l1" else _stalled(run, step - mark)
            mark = step
            z, gradient = (torch.where(_column(stalled, z), run.memory[name], now)
                           for name, now in (("best", z), ("best gradient", gradient)))
        before, run.memory["before"] = run.memory.get("before", z), z
        if ball.norm == "l1":
            z = ball.project(z + _sparse(run, gradient))
        else:
            there = ball.project(z + ascent(ball, z, gradient, run.memory["length"]))
            share = _MOMENTUM if step else 1.0
            z = ball.project(z + share * (there - z) + (1 - share) * (z - before))
    return run.memory.get("best", z)


def checkpoints(steps: int, *, sparse: bool) -> set[int]:
    """Return the steps at which progress is judged: at 22 % of them, then ever sooner; in L1 after every 4 %."""
    if sparse:
        return set(range(max(int(0.04 * steps), 1), steps, max(int(0.04 * steps), 1)))
    found, at, gap = set(), 0, max(int(0.22 * steps), 1)
    while at + gap < steps:
        at += gap
        found.add(at)
        gap = max(gap - max(int(0.03 * steps), 1), max(int(0.06 * steps), 1))
    return found


def expected(run: Climb, z: Tensor, answers: int, differentiate: bool) -> tuple[Tensor, Tensor]:
    """Return the mean loss over several answers at z, shape (alive,), and its gradient, shape (alive, ...), and note the point.

    It counts as broken when every answer reaches the goal: a single lucky one proves nothing.
    """
    total, heights = torch.zeros_like(z), []
    broken = torch.ones_like(run.alive, dtype=torch.bool)
    point = z
    for _ in range(answers):  # a call each: some models draw once per call, not once per sample
        leaf = z.detach().requires_grad_(differentiate)
        point = run.ball.possible(leaf)
        logits = run.target.logits(point)
        height = run.rise(logits)
        broken &= run.threat.success(logits, run.y)
        heights.append(height.detach())
        if differentiate:
            total = input_gradient(height, leaf) if answers == 1 else total + input_gradient(height, leaf) / answers
    mean = heights[0] if answers == 1 else torch.stack(heights).mean(0)
    run.note(point.detach(), mean, broken)
    return mean, total


def _remember(run: Climb, ball: Ball, z: Tensor, height: Tensor, gradient: Tensor, *, first: bool) -> None:
    """Keep, per sample, the best point of this climb with its loss and gradient, and count the steps that raised the loss."""
    memory = run.memory
    if first:
        count = torch.zeros_like(run.alive)
        free = (ball.low < ball.high).flatten(1).sum(1)
        size = ball.size.to(z.dtype)
        memory.update({
            "best": z, "best gradient": gradient, "top": height, "marked top": height, "height": height, "rises": count,
            "halved": torch.zeros_like(count, dtype=torch.bool), "length": size if ball.norm == "l1" else 2 * size,
            "full length": size, "changed": free, "features": 0.2 * free.to(z.dtype),
        })
        return
    memory["rises"] = memory["rises"] + (height > memory["height"])
    better = height > memory["top"]
    memory["best"] = torch.where(_column(better, z), z, memory["best"])
    memory["best gradient"] = torch.where(_column(better, z), gradient, memory["best gradient"])
    memory["top"] = torch.where(better, height, memory["top"])
    memory["height"] = height


def _stalled(run: Climb, window: int) -> Tensor:
    """Return which samples stall, shape (alive,), their step size halved."""
    memory = run.memory
    stalled = (memory["rises"] <= _PROGRESS * window) | (~memory["halved"] & (memory["top"] <= memory["marked top"]))
    memory["length"] = torch.where(stalled, memory["length"] / 2, memory["length"])
    memory.update({"halved": stalled, "marked top": memory["top"], "rises": torch.zeros_like(memory["rises"])})
    return stalled


def _stalled_sparse(run: Climb) -> Tensor:
    """Return which samples have a best point that got sparser: they begin anew from it; the others get a shorter step."""
    memory = run.memory
    changed = (memory["best"] != run.ball.x).flatten(1).sum(1)
    sparser = changed < 0.95 * memory["changed"]
    full = memory["full length"]
    shorter = torch.maximum(memory["length"] / _SPARSER, full / _SHORTEST)
    memory.update({
        "length": torch.where(sparser, full, shorter), "features": changed.to(full.dtype) / _SPARSER, "changed": changed,
    })
    return sparser


def _sparse(run: Climb, gradient: Tensor) -> Tensor:
    """Return a step of the L1 length, spread evenly over the features with the steepest gradient."""
    flat = (gradient * (run.ball.low < run.ball.high)).flatten(1)
    rank = flat.abs().argsort(dim=1, descending=True, stable=True).argsort(1)
    # Rounded down: two features whose steps the projection cuts alike would never come to differ.
    count = run.memory["features"].floor().clamp(min=1)
    signs = torch.where(rank < count[:, None], flat.sign(), torch.zeros_like(flat))
    return (signs * (run.memory["length"] / signs.abs().sum(1).clamp(min=1))[:, None]).view_as(gradient)


def _column(flags: Tensor, z: Tensor) -> Tensor:
    return flags.reshape((-1,) + (1,) * (z.ndim - 1))
