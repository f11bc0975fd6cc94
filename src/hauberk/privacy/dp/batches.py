"""Batches drawn as the account assumes, and the releases that follow from how a batch was really drawn."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from hauberk.core.data import Split
from hauberk.core.errors import UsageError
from hauberk.privacy.dp.accounting import Release
from hauberk.privacy.dp.accounting.calibrate import steps_per_epoch
from hauberk.privacy.dp.distributed import count, first_ones, world
from hauberk.privacy.dp.noise import SecureSource, SeededSource
from hauberk.privacy.dp.options import PrivateOptions
from hauberk.privacy.dp.sampling import fixed_batch, poisson_batch


class Batches:
    """Draws batches, remembers whether a step used what was drawn, and says what the step has to be accounted as."""

    def __init__(self, data: Any, n: int, batch_size: int, options: PrivateOptions) -> None:
        self.data, self.n, self.batch_size, self.options = data, n, batch_size, options
        self._last: str | None = None  # how the last step's batch was drawn
        self.drawn = 0  # batches drawn so far: the name of the next draw
        self._open: int | None = None  # examples of the batch handed out; -1 once a step has used it; None outside
        self._passed: list[int] = []  # sizes of the batches that were drawn and went by without a step
        self._used = False  # whether a step was made on any batch that was drawn here

    def steps(self, epochs: float | None, steps: int | None) -> int:
        """Return how many batches that is: an epoch is n over the expected batch, rounded up."""
        if (epochs is None) == (steps is None):
            raise UsageError(f"epochs is {epochs} and steps is {steps}", want="one of the two")
        if not math.isfinite(epochs or 0) or (steps or 0) % 1 != 0:
            raise UsageError(f"epochs is {epochs} and steps is {steps}", want="a finite number of epochs, or whole steps")
        number = steps if steps is not None else round((epochs or 0) * steps_per_epoch(self.batch_size / self.n))
        if number < 0:
            raise UsageError(f"{number} steps are asked for", want="at least 0")
        return number

    def batches(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield x and y of so many batches."""
        if isinstance(self.data, int):
            raise UsageError("only the number of examples is known", want="the data itself",
                             fix="Pass the split or dataset to make_private, or take batches of your own")
        return map(self._take, self._hand_out(number))

    def positions(self, number: int) -> Sequence[Tensor]:
        """Return so many batches of positions, each drawn when it is asked for."""
        return _Positions(self, number)

    def release(self, seen: int, noise: float, mechanism: str) -> Release:
        """Return what a step on `seen` examples in this process releases, for the way its batch was drawn.

        Of a batch from elsewhere nothing is taken for granted, unless `options.loader` says so: each example may be in it.

        Raises:
            UsageError: for a batch used twice or in part, or one from elsewhere that is larger than expected.
        """
        sampling: str = self.options.sampling
        if self._open == -1:
            raise UsageError("a second step on the same batch", want="one step on each batch: the account is for fresh draws")
        if self._open is not None:
            if seen != self._open:
                raise UsageError(f"a step saw {seen} examples of a batch of {self._open}", want="the batch as it was drawn",
                                 fix="Pass a batch larger than memory in parts by options.micro_batch")
            self._used = True
            self._refuse_passed()
            self._open = -1
        else:
            everywhere = count(seen)
            if everywhere > self.batch_size:
                raise UsageError(f"a batch holds {everywhere} examples", want=f"at most the batch size {self.batch_size}")
            sampling = self._elsewhere()
        self._last = sampling
        return self._made(mechanism, noise, sampling)

    def expected(self, noise: float, mechanism: str) -> Release:
        """Return what a step to come releases, if its batch is drawn as the last one was.

        Before any, a batch comes from elsewhere unless one of ours is handed out right now: never less than the step will cost.
        """
        if self._open is not None:
            return self._made(mechanism, noise, self.options.sampling)
        return self._made(mechanism, noise, self._last or self._elsewhere())

    def _elsewhere(self) -> str:
        return "any" if self.options.loader is None else "shuffled"

    def time_first(self, shape: tuple[int, ...]) -> bool:
        """Whether a batch looks like examples of the data with their first dimension, the time, before the examples."""
        own = self._example()
        return len(own) > 0 and len(shape) == len(own) + 1 and shape[1:] != own and shape[0] == own[0] and shape[2:] == own[1:]

    def _example(self) -> tuple[int, ...]:
        """Return the shape of one example, empty where that is not known."""
        if isinstance(self.data, Split):
            return self.data.shape
        if isinstance(self.data, tuple) and isinstance(self.data[0], Tensor):
            return tuple(self.data[0].shape[1:])
        return ()

    def _made(self, mechanism: str, noise: float, sampling: str) -> Release:
        if sampling == "any":
            return Release(mechanism, noise, "any", population=self.n)
        try:
            return Release(mechanism, noise, sampling, self.batch_size / self.n, 1, self.n)
        except UsageError:  # no amplification is known for this pair: a bound without
            return Release(mechanism, noise, "full" if sampling == "poisson" else "any", population=self.n)

    def state_dict(self) -> dict[str, Any]:
        """Return how far the draws are."""
        return {"n": self.n, "batch_size": self.batch_size, "drawn": self.drawn, "last": self._last, "used": self._used,
                "passed": [*self._passed]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the draws were."""
        if (state["n"], state["batch_size"]) != (self.n, self.batch_size):
            raise ValueError(f"the run had {state['n']} examples and batches of {state['batch_size']}")
        self.drawn = int(state["drawn"])
        self._last = state.get("last", self.options.sampling if self.drawn else None)
        self._used, self._passed = bool(state.get("used", self.drawn > 0)), [*state.get("passed", ())]

    def _hand_out(self, number: int) -> Iterator[Tensor]:
        try:
            for _ in range(number):
                batch = self._draw()
                self._open = len(batch)
                yield batch
                if self._open != -1:
                    self._passed.append(len(batch))
                self._refuse_passed()
        finally:
            self._open = None

    def _refuse_passed(self) -> None:
        """Refuse to leave out some steps and not others, in one call of `batches` or in many of one batch each."""
        if not self._passed or not self._used:
            return
        size, self._passed = self._passed[0], []  # said once: whoever only looked at a batch may go on
        raise UsageError(
            f"no step was made on a batch of {size} examples, and one on others",
            want="a step on every batch that is drawn",
            fix="Hand every batch to private.step, an empty one too: its step is noise alone. To leave out a step "
            "because of what was drawn, or that none was, tells of the data, and no account covers it",
        )

    def _draw(self) -> Tensor:
        rank, processes = world()
        here = torch.arange(rank, self.n, processes)
        seed, name = self.options.seed, self.drawn
        self.drawn += 1
        if self.options.sampling == "poisson":
            # Each process draws from its own part: together that is one Poisson sample of all.
            source = SecureSource() if seed is None else SeededSource(seed, "sampling", name, rank)
            return here[poisson_batch(len(here), self.batch_size / self.n, source)]
        batch = fixed_batch(self.n, self.batch_size, SecureSource() if seed is None else SeededSource(seed, "sampling", name))
        first_ones([batch])
        return batch[rank::processes]

    def _take(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        data = self.data
        if isinstance(data, Split):
            return data.take(batch)
        if isinstance(data, tuple):
            return data[0][batch], data[1][batch]
        listed = batch.tolist()
        x, y = torch.utils.data.default_collate([data[i] for i in (listed or [0])])
        return x[: len(listed)], y[: len(listed)]


class _Positions(Sequence[Tensor]):
    """A sequence of batches that draws while it is walked through, once."""

    def __init__(self, batches: Batches, count: int) -> None:
        self._batches, self._count = batches, count

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Tensor]:
        return self._batches._hand_out(self._count)

    def __getitem__(self, index: Any) -> Any:
        raise TypeError("batches are drawn in order, one at a time")
