"""What the iterative gradient attacks share: the best point seen, the active set, and steps that stay in the ball."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hauberk.core.gradients import input_gradient
from hauberk.core.target import Target
from hauberk.core.threat import Ball, Threat
from hauberk.robustness.attack.losses import climbed, known_loss
from hauberk.robustness.attack.pgd import ascent

View = Callable[[Tensor], Tensor]
Loss = Callable[["Climb", Tensor], Tensor]


def unchanged(z: Tensor) -> Tensor:
    """Return z: the view of an attack that asks about its iterates themselves."""
    return z


class Climb:
    """One attack on one batch, cut to the samples still under way; an attack says only in which direction to go.

    Arguments:
        target, x, y, threat: as an attack gets them.
        loss: what is climbed: `ce`, `margin`, or a function of this climb and the logits (alive, classes) that returns (alive,).
        steps: gradient steps.
        step_size: length of a step in the threat's norm; None: eps / steps in Linf, where the steps just reach the border, and
            2.5 eps / steps in other norms, where a step that meets the box falls short.
        early_stop: samples leave as soon as a point of theirs in the ball reaches the goal.
    """

    def __init__(
        self, target: Target, x: Tensor, y: Tensor, threat: Threat, *, loss: str | Loss, steps: int, step_size: float | None,
        early_stop: bool,
    ) -> None:
        if isinstance(loss, str):
            known_loss(loss)
        self.target, self.loss, self.steps, self.early_stop = target, loss, steps, early_stop
        ball = threat.around(x)
        reach = (1.0 if threat.norm == "linf" else 2.5) * ball.size / max(steps, 1)
        length = reach if step_size is None else torch.full_like(ball.radius, step_size)
        self._whole = threat, ball, y, length.to(x.dtype)
        self.best = x.clone()  # of every sample, (n, ...)
        self._height = x.new_full((len(x),), -torch.inf)
        self._won = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        self.memory: dict[str, Tensor] = {}  # what the attack remembers of each sample under way, (alive, ...)
        self._take(torch.arange(len(x), device=x.device))

    def _take(self, samples: Tensor) -> None:
        threat, ball, y, length = self._whole
        self.alive, self.y, self.ball = samples, y[samples], ball.subset(samples)
        self.threat, self.length = threat.subset(samples, ball.x), length[samples]

    def set_length(self, share: float) -> None:
        """Make every step that share of eps long."""
        threat, ball, y, length = self._whole
        self._whole = threat, ball, y, (share * ball.size).to(length.dtype)
        self.length = self._whole[-1][self.alive]

    def widened(self, share: float) -> Ball:
        """Return the ball of that share of eps around all samples, those that have left included."""
        threat, ball, _, _ = self._whole
        return threat.with_eps(torch.as_tensor(threat.eps, dtype=torch.float64) * share).around(ball.x)

    def restart(self) -> None:
        """Begin again with the samples that are not broken, or with all where none leave early."""
        self.memory.clear()
        unbroken = (~self._won).nonzero()[:, 0]
        self._take(unbroken if self.early_stop else torch.arange(len(self._won), device=unbroken.device))

    def note(self, z: Tensor, height: Tensor, broken: Tensor) -> None:
        """Keep the points z that lie in the ball and are better than what was seen: broken first, then the higher loss."""
        height, before = height.detach().to(self._height.dtype), self._won[self.alive]
        better = (broken & ~before) | ((broken == before) & (height > self._height[self.alive]))
        better = better.nonzero()[:, 0]
        better = better[self.ball.subset(better).contains(z[better])]
        kept = self.alive[better]
        self.best[kept], self._height[kept], self._won[kept] = z[better], height[better], broken[better]

    def rise(self, logits: Tensor) -> Tensor:
        """Return what is climbed, shape (alive,), of logits (alive, classes)."""
        return climbed(logits, self.y, self.threat, self.loss) if isinstance(self.loss, str) else self.loss(self, logits)

    def look(self, z: Tensor) -> None:
        """Ask about z, shape (alive, ...), and note what comes of it."""
        z = self.ball.possible(z.detach())
        logits = self.target.logits(z)
        self.note(z, self.rise(logits), self.threat.success(logits, self.y))

    def gradient(
        self, z: Tensor, views: Sequence[View] = (unchanged,), aim: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Return the gradient towards z, shape (alive, ...), of the mean loss over the views of z that are asked about.

        Arguments:
            z: shape (alive, ...).
            views: differentiable functions of z. As many as fit in the target's batch size are asked about at once.
            aim: what to climb instead of the loss: a function of the logits (alive, classes) that returns (alive,).
        """
        together = max(self.target.batch_size // max(len(z), 1), 1)
        total = torch.zeros_like(z)
        for first in range(0, len(views), together):
            leaf = z.detach().requires_grad_()
            point = self.ball.possible(leaf)
            asked = [point if view is unchanged else self.ball.possible(view(point)) for view in views[first : first + together]]
            answers = self.target.logits(torch.cat(asked) if len(asked) > 1 else asked[0]).split(len(z))
            value = torch.zeros_like(answers[0][:, 0])
            for seen, logits in zip(asked, answers, strict=True):
                height = self.rise(logits)
                self.note(seen.detach(), height, self.threat.success(logits, self.y))
                value = value + (height if aim is None else aim(logits))
            total += input_gradient(value, leaf)
        return total / len(views)

    def ascend(
        self, z: Tensor, way: Callable[[Climb, Tensor], Tensor], *, sees: bool = True, fall: bool = False,
        stride: Callable[[Ball, Tensor, Tensor, Tensor], Tensor] = ascent, look: Callable[[Climb, Tensor], object] | None = None,
    ) -> Tensor:
        """Go all steps from z, shape (alive, ...), and return where they led those that are still under way.

        Arguments:
            way: returns the direction from z; it asks the target through this climb.
            sees: the way asks about z itself; else z is looked at first.
            fall: the length falls to zero by a half cosine.
            stride: makes a step of a direction and a length (alive,).
            look: how the end is looked at; None: asked about once.
        """
        for step in range(self.steps):
            if not sees:
                self.look(z)
                (z,) = self.going(z)
            if not len(z):
                return z
            z = self.step(z, way, stride, 0.5 + 0.5 * math.cos(math.pi * step / self.steps) if fall else 1.0)
        if len(z):
            (look or Climb.look)(self, z)
            (z,) = self.going(z)
        return z

    def step(
        self, z: Tensor, way: Callable[[Climb, Tensor], Tensor],
        stride: Callable[[Ball, Tensor, Tensor, Tensor], Tensor] = ascent, share: float = 1.0,
    ) -> Tensor:
        """Return where one step of that share of the length leads those that are still under way after the way has asked."""
        direction = way(self, z)
        z, direction = self.going(z, direction)
        return self.ball.project(z + stride(self.ball, z, direction, self.length * share))

    def going(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """Return the parts, shape (alive, ...) each, without the samples that are done."""
        done = self._won[self.alive]
        if not (self.early_stop and bool(done.any())):
            return parts
        self.memory = {name: value[~done] for name, value in self.memory.items()}
        self._take(self.alive[~done])
        return tuple(part[~done] for part in parts)


def with_momentum(run: Climb, gradient: Tensor, decay: float) -> Tensor:
    """Return the gradients so far, each scaled to a mean absolute value of 1, with `decay` for those before."""
    if run.threat.mask is not None:  # features that may not move must not outweigh the others
        gradient = gradient * (run.ball.low < run.ball.high)
    size = gradient.flatten(1).abs().mean(1).clamp(min=torch.finfo(gradient.dtype).tiny)
    scaled = gradient / size.reshape((-1,) + (1,) * (gradient.ndim - 1))
    before = run.memory.get("momentum")
    run.memory["momentum"] = scaled if before is None else decay * before + scaled
    return run.memory["momentum"]


def ahead(run: Climb, z: Tensor, decay: float) -> Tensor:
    """Return where the momentum alone would lead from z: the point at which Nesterov's method takes the gradient."""
    momentum = run.memory.get("momentum")
    if momentum is None or decay == 0:
        return z
    if run.ball.norm == "linf":
        return z + momentum * (decay * run.length).reshape((-1,) + (1,) * (z.ndim - 1))
    return run.ball.project(z + ascent(run.ball, z, momentum, decay * run.length))


def vicinity(run: Climb, z: Tensor, spread: float) -> Ball:
    """Return the ball of `spread` times eps around the points z, inside the bounds: where neighbours are drawn."""
    radius = torch.as_tensor(run.threat.eps, dtype=torch.float64, device=z.device)
    reach = radius * spread if spread else torch.zeros_like(radius)  # and not 0 times infinity
    return run.threat.with_eps(reach).around(z.detach())


def lowest(run: Climb) -> Tensor:
    """Return the lower bound of each feature, and zero where there is none: what black is to these inputs."""
    assert run.threat.bounds is not None
    low = torch.as_tensor(run.threat.bounds[0]).to(run.ball.x)
    return torch.where(low.isfinite(), low, torch.zeros_like(low))
