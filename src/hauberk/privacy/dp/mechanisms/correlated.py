"""What noise that is correlated from step to step has in common: memory by tensor, steps in order, one clip for the whole run."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hauberk.core.errors import UsageError
from hauberk.privacy.dp.accounting import Release
from hauberk.privacy.dp.noise import Source
from hauberk.privacy.dp.noise.mechanism import checked_multiplier, checked_sensitivity


class CorrelatedNoise(abc.ABC):
    """Gaussian noise of which later steps take back part of what earlier ones added, so that their sum stays small.

    Used as any mechanism: `noise.at(step).add_(total, clip, source)` for each tensor of a step, the tensors in the same order at
    every step. The run as a whole is what is released (`releases`), not each step: adding them up again would count double.

    The privacy rests on the sum of independent Gaussians being exact; unlike `Gaussian.add_` no grid closes the gaps of floating
    point here (Mironov 2012).
    """

    norm = 2
    name: str

    def __init__(self, noise_multiplier: float) -> None:
        self.noise_multiplier = checked_multiplier(noise_multiplier)
        self.step = 0
        self._memory: list[list[Tensor | None]] = []  # by tensor
        self._sensitivity: float | None = None

    @property
    @abc.abstractmethod
    def releases(self) -> tuple[Release, ...]:
        """What the ledger records for the steps so far, all together."""

    @abc.abstractmethod
    def _scale(self) -> float:
        """Standard deviation of an independent draw over the sensitivity."""

    @abc.abstractmethod
    def _draw(self, memory: list[Tensor | None], step: int, like: Tensor, source: Source) -> Tensor:
        """Return the noise that the step adds, in units of a draw, and bring the memory up to date."""

    @abc.abstractmethod
    def _plan(self) -> dict[str, Any]:
        """Return what may not change while the noise runs, as plain values."""

    @abc.abstractmethod
    def _check(self, step: int) -> None:
        """Raise UsageError where there is no such step."""

    def at(self, step: int) -> Step:
        """Return the noise of that step, from 0.

        Raises:
            UsageError: when it is not the next one, or there are no more.
        """
        if step != self.step:
            raise UsageError(f"noise of step {step} was asked for", want=f"step {self.step}: correlated noise goes in order")
        self._check(step)
        self.step += 1
        return Step(self, step)

    def add_(self, total: Tensor, sensitivity: float, source: Source) -> Tensor:
        """Add the noise of the next step to its only tensor, in place."""
        return self.at(self.step).add_(total, sensitivity, source)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs. It holds noise: keep it as secret as the data."""
        return {
            "plan": self._plan(), "step": self.step, "sensitivity": self._sensitivity,
            "memory": [list(one) for one in self._memory],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            UsageError: for that of noise with another plan: what the steps before were counted as would no longer be true.
        """
        if (before := state.get("plan")) != self._plan():
            raise UsageError(f"the noise so far was planned as {before}", want=f"noise of the same plan, not {self._plan()}")
        self.step, self._sensitivity = int(state["step"]), state["sensitivity"]
        self._memory = [list(one) for one in state["memory"]]

    def _add(self, slot: int, step: int, total: Tensor, sensitivity: float, source: Source) -> Tensor:
        checked_sensitivity(sensitivity)
        self._sensitivity = self._sensitivity or sensitivity
        if sensitivity != self._sensitivity:
            raise UsageError(f"the clip is {sensitivity} at step {step}", want=f"{self._sensitivity}, that of the steps before")
        if slot == len(self._memory):
            if step:
                raise UsageError(f"step {step} has more than {slot} tensors", want="as many as the first step, in the same order")
            self._memory.append([])
        like = torch.empty_like(total, dtype=torch.float64 if total.dtype == torch.float64 else torch.float32)
        made = self._draw(self._memory[slot], step, like, source)
        return total.add_(made.to(total.dtype), alpha=self._scale() * sensitivity)


class Step:
    """The noise of one step."""

    norm = 2

    def __init__(self, noise: CorrelatedNoise, step: int) -> None:
        self._noise, self._step, self._slot = noise, step, 0
        self.name, self.noise_multiplier = noise.name, noise.noise_multiplier

    def add_(self, total: Tensor, sensitivity: float, source: Source) -> Tensor:
        """Add to the next tensor of the step, in place, and return it."""
        self._slot += 1
        return self._noise._add(self._slot - 1, self._step, total, sensitivity, source)

    def at(self, step: int) -> Step:
        """Return itself; `CorrelatedNoise.at` goes on."""
        return self
