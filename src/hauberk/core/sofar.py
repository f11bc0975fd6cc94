"""What an attack has reached so far: kept beside it, so that a budget that ends it takes nothing away."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hauberk.core.target import Target
from hauberk.core.threat import Threat

Watch = Callable[[Tensor, Tensor], None]


def limited(target: Target) -> bool:
    """Return whether a budget can end what is done with the target."""
    limits = (limit for _, budget in target._accounts for limit in (budget.queries, budget.gradients, budget.seconds))
    return any(limit is not None for limit in limits)


class SoFar:
    """The nearest points in the ball that were seen to reach the goal; the clean inputs where none was.

    An attack asks about any points in any order. For each sample the nearest point of a question that reaches its goal is looked
    at: inside the sample's ball it is an adversarial example of it, whatever the attack had in mind.

    Arguments:
        view: what the attack asks; from now on it tells of every question.
        x, y: clean inputs, shape (n, ...), and their labels.
        threat: with bounds.
        outer: is told as well: what an attack keeps that runs this one.
    """

    def __init__(self, view: Target, x: Tensor, y: Tensor, threat: Threat, outer: Watch | None = None) -> None:
        self.x, self.y, self.threat, self.view, self.outer = x, y, threat, view, outer
        self.ball, self.best = threat.around(x), x.clone()
        self.distance = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
        view._watch = self.see

    @torch.no_grad()
    def see(self, asked: Tensor, raw: Tensor) -> None:
        """Take note of a question, shape (m, ...), and the model's answer to it."""
        if self.outer is not None:
            self.outer(asked, raw)
        if not len(asked) or not len(self.x) or asked.shape[1:] != self.x.shape[1:]:
            return
        z, answer = asked.detach().to(self.x), self.view._read(raw.detach())
        goals, kind = self.y.unique(dim=0, return_inverse=True)
        won = torch.stack([self._reaches(answer, goal) for goal in goals])[kind]  # (n, m)
        far = torch.cdist(self.x.flatten(1).float(), z.flatten(1).float()).masked_fill(~won, torch.inf)
        row = far.argmin(1)
        distance = self.ball.distance(z[row])
        better = won.any(1) & (distance < self.distance) & self.ball.contains(z[row])
        self.best[better], self.distance[better] = z[row][better], distance[better]

    def _reaches(self, answer: Tensor, goal: Tensor) -> Tensor:
        y = goal.expand(len(answer), *goal.shape)
        return self.threat.success(answer, y) if answer.is_floating_point() else self.threat.reached(answer, y)
