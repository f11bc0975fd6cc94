"""Expectation over transformation: a model that answers at random, averaged, so that every attack sees what it does at large."""

from __future__ import annotations

import contextlib

from torch import Tensor, nn

from hauberk.core.errors import UsageError
from hauberk.core.rng import isolated
from hauberk.core.target import Target, as_target
from hauberk.robustness.attack.ensemble import averaged, known_average


def eot(
    model: nn.Module | Target, *, draws: int = 10, average: str = "logits", seed: int | None = None
) -> nn.Module:
    """Return a module that answers with the average over several random answers of a model.

    Every attack run on it climbs the expectation (Athalye et al. 2018, arXiv:1802.00420). The model itself keeps its modes, hooks
    and weights. A query of the module is `draws` queries of the model: a ledger of the module has to be multiplied, that of a
    target given as the model counts them all.

    Arguments:
        model: a module that answers at random, with logits or probabilities, shape (n, classes); or a target, with GRADIENT
            access, made of one.
        draws: answers averaged, one call each: some models draw once per call, not once per sample.
        average: of the `logits`, the `probabilities` or the `loss`, as `ensemble` has them.
        seed: None draws afresh at every call, from the random state that an attack sets from its own seed. A number draws the
            same at every call: what is attacked is then one fixed sample of the randomness, and answers can be compared.

    Returns:
        A module: inputs (n, ...) to logits (n, classes).

    Raises:
        UsageError: for fewer draws than 1, or an average of another name.
    """
    known_average(average)
    if draws < 1:
        raise UsageError(f"draws is {draws}", want="1 or more")
    return _Expectation(model, draws, average, seed)


class _Expectation(nn.Module):
    """The average of several answers of one module."""

    def __init__(self, model: nn.Module | Target, draws: int, average: str, seed: int | None) -> None:
        super().__init__()
        self._target = as_target(model)
        self.model, self.draws, self.average, self.seed = self._target.module, draws, average, seed
        self.training = False  # of this shell alone: nobody has to put the model into another mode

    def forward(self, x: Tensor) -> Tensor:
        """Return the averaged logits, shape (n, classes), of x, shape (n, ...)."""
        drawn = contextlib.nullcontext() if self.seed is None else isolated(self.seed, x.device)
        with drawn:
            answers = [self._target.logits(x) for _ in range(self.draws)]
        return averaged(answers, [1 / self.draws] * self.draws, self.average)
