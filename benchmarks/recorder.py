"""A model that keeps an account of an attack on it: passes forward and backward per sample, and the best point ever seen."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor, nn

from hauberk.core.geometry import norms


class Exhausted(BaseException):
    """Every sample that was right has had its passes. Not an `Exception`: attacks that catch those must not go on."""


class Recorder(nn.Module):
    """Answers as the model does, and notes for each sample what was spent on it and the nearest adversarial point asked about.

    What counts is what the attack saw, not what it returns: an attack that loses its best point loses nothing here. Points
    outside the box, and those asked about when the budget is spent, do not count.

    Arguments:
        model: the net.
        x, y: the samples under attack, shape (n, ...) and (n,).
        norm: of distances.
        budget: passes per sample, forward and backward counted as one each.
    """

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor, norm: str, budget: int) -> None:
        super().__init__()
        self.model, self.x, self.y, self.norm, self.budget = model, x, y, norm, budget
        with torch.no_grad():
            right = model(x).argmax(1) == y
        self.distance = torch.where(right, torch.inf, 0.0).double()
        self.forwards, self.backwards = torch.zeros(len(x), dtype=torch.long), torch.zeros(len(x), dtype=torch.long)
        self.seconds = 0.0  # what keeping the account has cost
        self.eval()

    @property
    def spent(self) -> Tensor:
        """Passes per sample, shape (n,)."""
        return self.forwards + self.backwards

    def forward(self, z: Tensor) -> Tensor:
        """Return the logits of z, shape (m, ...)."""
        logits: Tensor = self.model(z)
        began = time.process_time()
        rows = self._owners(z.detach())
        count = torch.bincount(rows, minlength=len(self.x))
        self._note(z.detach(), logits.detach(), rows)
        self._charge(self.forwards, count)
        if logits.requires_grad:
            logits.register_hook(lambda _: self._backward(count))
        self.seconds += time.process_time() - began
        # A sample that was wrong from the beginning needs no attack, and many ask it nothing.
        if bool(((self.spent >= self.budget) | (self.distance == 0)).all()):
            raise Exhausted
        return logits

    def _backward(self, count: Tensor) -> None:
        began = time.process_time()
        self._charge(self.backwards, count)
        self.seconds += time.process_time() - began

    def _charge(self, account: Tensor, count: Tensor) -> None:
        # What a sample is still asked while others have passes left finds nothing that counts, and costs nothing either.
        account += torch.minimum(count, (self.budget - self.spent).clamp(min=0))

    def _note(self, z: Tensor, logits: Tensor, rows: Tensor) -> None:
        hit = (logits.argmax(1) != self.y[rows]) & (self.spent[rows] < self.budget)
        # A rounding error outside is forgiven: x + (1 - x) can be a hair above 1.
        hit &= ((z >= -1e-6) & (z <= 1 + 1e-6)).flatten(1).all(1)
        if bool(hit.any()):
            far = norms((z[hit] - self.x[rows[hit]]).flatten(1), self.norm)
            self.distance.scatter_reduce_(0, rows[hit], far, "amin")

    def _owners(self, z: Tensor) -> Tensor:
        """Return whose point each row is, shape (m,).

        A batch of all samples, or of several copies of them, is in their order, and a smaller one holds some of them in their
        order, if that explains the rows about as well as the nearest samples do; else each row is its nearest sample's.
        """
        n, m = len(self.x), len(z)
        away = torch.cdist(z.flatten(1).double(), self.x.flatten(1).double())  # (m, n)
        if self.norm == "l0":  # a few large changes may lead near another sample, but change few of the own one's features
            away = away / (1 + away) + torch.cdist(z.flatten(1).double(), self.x.flatten(1).double(), p=0)
        least, nearest = away.min(1)
        most = 1.5 * float(least.sum()) + 1e-9
        if m % n == 0:
            copies = torch.arange(n).repeat(m // n)
            return copies if m == n or float(away.gather(1, copies[:, None]).sum()) <= most else nearest
        if m > n:
            return nearest
        ordered, cost = in_order(away.numpy())
        return torch.from_numpy(ordered) if cost <= most else nearest


def in_order(away: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the strictly rising columns, one per row, with the least sum, and that sum; `away` has shape (m, n), m <= n."""
    m, n = away.shape
    best, came = away[0].copy(), np.zeros((m, n), dtype=np.int64)
    for row in range(1, m):
        least = np.minimum.accumulate(best)
        first = np.maximum.accumulate(np.where(best <= least, np.arange(n), 0))  # where the least of the columns so far is
        came[row, 1:] = first[:-1]
        best = np.concatenate([[np.inf], least[:-1] + away[row, 1:]])
    at = int(best.argmin())
    cost, columns = float(best[at]), np.empty(m, dtype=np.int64)
    for row in range(m - 1, -1, -1):
        columns[row] = at
        at = came[row, at]
    return columns, cost
