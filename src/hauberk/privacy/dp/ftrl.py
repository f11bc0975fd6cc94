"""make_private_ftrl: private training on data in a fixed order, correlated noise in place of sampling (DP-FTRL, BandMF)."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from hauberk.core import rng
from hauberk.core.errors import UsageError
from hauberk.privacy.dp.accounting import Release
from hauberk.privacy.dp.batches import Batches
from hauberk.privacy.dp.distributed import world
from hauberk.privacy.dp.mechanisms import BandedNoise, CorrelatedNoise, TreeNoise
from hauberk.privacy.dp.options import PrivateOptions, population
from hauberk.privacy.dp.private import Private


def make_private_ftrl(
    model: nn.Module, optimizer: torch.optim.Optimizer, data: Any, *, batch_size: int, noise: TreeNoise | BandedNoise,
    clip: float = 1.0, delta: float | None = None, options: PrivateOptions | None = None,
) -> PrivateFtrl:
    """Prepare private training whose guarantee needs no random batches: the data comes in one order, the same in every pass.

    Used as `make_private`. With plain SGD the sum of noise in the weights is that of the tree or the matrix; any optimizer is as
    private.

    Arguments:
        model: any module whose examples do not mix.
        optimizer: over its parameters.
        data: what is trained on: a `Split`, a tuple of tensors `(x, y)`, or a dataset.
        batch_size: examples of a step.
        noise: `TreeNoise(z, steps, trees=epochs)` with the steps of one epoch, or `BandedNoise(z, strategy, all steps,
            participations=epochs, separation=steps of one epoch)`; fresh, for this run alone.
        clip: greatest L2 norm of one example's gradient, the same for the whole run.
        delta: δ of the guarantee; None takes 1e-5, or 1/n where that is less.
        options: what seldom has to be changed; its sampling and mechanism do not count. A seed also shuffles the order.

    Returns:
        What hands out batches, makes steps and keeps account. Its guarantee is about one example's part being left out, the
        places of the others staying as they are.

    Raises:
        UsageError: for values out of range, or noise that is planned for another order of participation.
        ModelError: for a layer whose examples mix, or that nobody can treat.

    Paper: Kairouz et al. 2021, arXiv:2103.00039; Choquette-Choo et al. 2023, arXiv:2306.08153.
    """
    return PrivateFtrl(model, optimizer, data, batch_size, noise, clip, delta, options or PrivateOptions())


class PrivateFtrl(Private):
    """Private gradients with correlated noise; made by `make_private_ftrl`."""

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, data: Any, batch_size: int, noise: TreeNoise | BandedNoise,
        clip: float, delta: float | None, options: PrivateOptions,
    ) -> None:
        if not isinstance(noise, (TreeNoise, BandedNoise)):
            raise UsageError(f"the noise is {type(noise).__name__}", want="TreeNoise or BandedNoise")
        if isinstance(clip, bool) or not isinstance(clip, (int, float)):
            raise UsageError(f"the clip is a {type(clip).__name__}", want="a number: the clip of the whole run")
        if noise.step:
            raise UsageError(f"the noise has made {noise.step} steps already", want="fresh noise for every run")
        self.noise: CorrelatedNoise = noise
        self._started = False
        kept = dataclasses.replace(options, mechanism=self._of_step)
        super().__init__(model, optimizer, data, batch_size, noise.noise_multiplier, float(clip), delta, kept)
        self.draws = _InOrder(data, population(data), batch_size, kept, noise)
        self._started = True

    def state_dict(self) -> dict[str, Any]:
        """Return account, draws and the noise that later steps take back: as secret as the data."""
        return {**super().state_dict(), "noise": self.noise.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up what `state_dict` returned."""
        self.noise.load_state_dict(state["noise"])
        super().load_state_dict(state)

    def _said(self) -> list[str]:
        said = (
            "zero-out: neighbouring data sets differ in whether one example's part is left out, the others keeping their places; "
            "adding or removing one would move them"
        )
        return [*super()._said(), said]

    def _of_step(self, _: float) -> Any:
        return self.noise.at(self.steps) if self._started else self.noise


class _InOrder(Batches):
    """Deals the examples out in one order, the same in every pass, and counts the noise as the whole that it is."""

    def __init__(self, data: Any, n: int, batch_size: int, options: PrivateOptions, noise: TreeNoise | BandedNoise) -> None:
        super().__init__(data, n, batch_size, options)
        self.noise, self.per_epoch = noise, -(-n // batch_size)
        # Not drawn from a secure source: the guarantee is for any order, and a resumed run has to find it again.
        self.order = torch.randperm(n, generator=rng.generator(options.seed or 0, "ftrl", "order"))
        if isinstance(noise, TreeNoise):
            if noise.steps != self.per_epoch:
                raise UsageError(f"the tree has {noise.steps} leaves", want=f"{self.per_epoch}, the steps of one epoch")
            return
        passes = -(-noise.steps // self.per_epoch)
        if passes > noise.participations or (passes > 1 and noise.separation > self.per_epoch):
            raise UsageError(
                f"the noise is planned for {noise.participations} participations, {noise.separation} steps apart",
                want=f"{passes} participations, {self.per_epoch} steps apart: {noise.steps} steps, {self.per_epoch} an epoch",
            )

    def release(self, seen: int, noise: float, mechanism: str) -> Release:
        """Return what this step adds to the account: a whole tree or run where one begins, else nothing.

        Raises:
            UsageError: for a batch from elsewhere, one used twice, or a part of one.
        """
        if self._open != seen:
            raise UsageError(f"a step saw {seen} examples that are not the next batch", want="each of `batches` once, as a whole",
                             fix="Correlated noise is private for the order it hands out only")
        self._open = -1
        begun = (self.noise.step - 1) % self.noise.steps == 0
        if isinstance(self.noise, TreeNoise):
            return Release(mechanism, noise, count=int(begun), population=self.noise.steps)
        return Release(mechanism, noise, count=int(begun), population=self.n)

    def state_dict(self) -> dict[str, Any]:
        """Return how far the draws are, and in which order."""
        return {**super().state_dict(), "order": self._digest()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the draws were, in the same order: in another one an example would take part out of turn."""
        if state.get("order") != self._digest():
            raise ValueError("the run dealt its examples out in another order: give the options the same seed")
        super().load_state_dict(state)

    def _digest(self) -> str:
        return hashlib.blake2b(self.order.numpy().tobytes(), digest_size=16).hexdigest()

    def expected(self, noise: float, mechanism: str) -> Release:
        """Return the whole tree or run, which the next step may begin."""
        return Release(mechanism, noise, population=self.noise.steps if isinstance(self.noise, TreeNoise) else self.n)

    def _draw(self) -> Tensor:
        first = self.drawn % self.per_epoch * self.batch_size
        self.drawn += 1
        rank, processes = world()
        return self.order[first : first + self.batch_size][rank::processes]
