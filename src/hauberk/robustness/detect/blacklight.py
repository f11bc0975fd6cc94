"""Blacklight: a stateful defence that remembers what was asked, and refuses queries that look like earlier ones."""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict

import numpy as np
import torch
from torch import Tensor, nn

from hauberk.core.errors import DataError, UsageError
from hauberk.core.target import Target, as_target
from hauberk.core.threat import Bounds


class Blacklight:
    """Notice queries that share much with an earlier one, by hashes of coarse pieces (Li et al. 2022, arXiv:2006.14042).

    A black-box attack asks about many points near each other; honest users do not. Each query is rounded coarsely, cut into all
    runs of `window` neighbouring features, hashed with a secret, and the largest hashes are kept as its fingerprint.

    Arguments:
        window: features per piece.
        quantum: step of the rounding, as a share of the range of the inputs; the paper's is 50/255.
        keep: hashes of a fingerprint.
        threshold: share of the fingerprint in common with one earlier query from which on a query is flagged.
        bounds: lowest and highest input.
        memory: queries remembered; the oldest are forgotten beyond that.
        secret: key of the hashes and of the offsets before rounding; None draws one. Whoever knows it can evade the defence.
    """

    def __init__(
        self, *, window: int = 20, quantum: float = 50 / 255, keep: int = 50, threshold: float = 0.5,
        bounds: Bounds = (0.0, 1.0), memory: int = 1_000_000, secret: bytes | None = None,
    ) -> None:
        if window < 1 or keep < 1 or memory < 1 or quantum <= 0 or not 0 < threshold <= 1:
            raise UsageError(
                f"window is {window}, keep {keep}, memory {memory}, quantum {quantum}, threshold {threshold}",
                want="whole numbers of 1 or more, quantum above 0, 0 < threshold <= 1",
            )
        self.window, self.quantum, self.keep, self.threshold = window, quantum, keep, threshold
        self.bounds, self.memory = bounds, memory
        self._secret = hashlib.sha256(secret if secret is not None else os.urandom(32)).digest()
        self.forget()

    def forget(self) -> None:
        """Forget all queries, as a service that changes its secret does."""
        self._owners: defaultdict[bytes, set[int]] = defaultdict(set)  # hash: the queries that have it
        self._prints: dict[int, list[bytes]] = {}
        self._next = 0

    def score(self, x: Tensor) -> Tensor:
        """Return the largest share of its fingerprint that each query has in common with one before it, shape (n,).

        Queries are taken in order, those of the same batch as well, and remembered: asking is what this defence sees.
        """
        return torch.tensor([self._shared(one) for one in self._fingerprints(x)], dtype=torch.float64, device=x.device)

    def flag(self, x: Tensor) -> Tensor:
        """Return which queries look like an earlier one, shape (n,), bool; all are remembered."""
        return self.score(x) >= self.threshold

    def _fingerprints(self, x: Tensor) -> list[list[bytes]]:
        low, high = (torch.as_tensor(end, dtype=torch.float64, device=x.device) for end in self.bounds)
        if not bool((high > low).all() & (high - low).isfinite().all()):
            raise UsageError(f"bounds are {self.bounds}", want="finite bounds, the lower below the higher")
        values = ((x.detach().double() - low) / (high - low)).flatten(1).cpu().numpy()
        if not np.isfinite(values).all():
            raise DataError("a query holds NaN or infinite values", want="finite inputs")
        # Offsets that only the owner knows: where the steps of the rounding lie cannot be guessed.
        draw = np.random.default_rng(int.from_bytes(self._secret[:8], "little"))
        coarse = np.floor(values / self.quantum + draw.random(values.shape[1])).astype(np.int32)
        return [self._fingerprint(row) for row in coarse]

    def _fingerprint(self, row: np.ndarray[tuple[int, ...], np.dtype[np.int32]]) -> list[bytes]:
        wide = min(self.window, len(row))
        pieces = (row[start : start + wide].tobytes() for start in range(len(row) - wide + 1))
        hashes = {hashlib.blake2b(piece, digest_size=16, key=self._secret).digest() for piece in pieces}
        return sorted(hashes, reverse=True)[: self.keep]

    def _shared(self, hashes: list[bytes]) -> float:
        counts = Counter(owner for one in hashes for owner in self._owners.get(one, ()))
        most = counts.most_common(1)[0][1] if counts else 0
        for one in hashes:
            self._owners[one].add(self._next)
        self._prints[self._next] = hashes
        self._next += 1
        if len(self._prints) > self.memory:
            oldest = next(iter(self._prints))
            for one in self._prints.pop(oldest):
                self._owners[one].discard(oldest)
                if not self._owners[one]:
                    del self._owners[one]
        return most / max(len(hashes), 1)


def refusing(target: Target | nn.Module, defence: Blacklight) -> Target:
    """Return a view of a target at SCORE access that refuses flagged queries and does not ask the model about them.

    A refusal is a row of minus infinity: no class has any weight. It reaches no adversary's goal.

    Arguments:
        target: the model to guard, with SCORE access.
        defence: sees every query.
    """
    guarded = as_target(target)
    bounds = guarded.bounds if guarded.bounds is not None else defence.bounds

    def answer(x: Tensor) -> Tensor:
        flagged = defence.flag(x)
        passed = guarded.logits(x[~flagged]) if not bool(flagged.all()) else guarded.logits(x[:0])
        answers = passed.new_full((len(x), passed.shape[1]), -torch.inf)
        answers[~flagged] = passed
        return answers

    return Target(answer, outputs="logits", bounds=bounds, batch_size=guarded.batch_size, name=f"{guarded.name}, guarded")
