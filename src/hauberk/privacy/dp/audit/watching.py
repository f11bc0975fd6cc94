"""What an adversary sees of training: the gradients that an optimizer is given, whoever wrote the loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from hauberk.core.errors import ModelError
from hauberk.privacy.dp.audit.canaries import ProbeModel


class Transcript:
    """What one run let out, step by step.

    Attributes: `gradients`, a row of the probe's canaries for each step; `scales`, the logarithm of the deviation of its spare
    weights; `seen`, which canaries took part in each step.
    """

    def __init__(self, model: ProbeModel) -> None:
        self.model = model
        self.gradients: list[Tensor] = []
        self.scales: list[float] = []
        self.seen: list[set[int]] = []
        self._weight = self._now()

    def note(self, gradient: Tensor | None) -> None:
        """Add a step; without a gradient the weights tell how they were moved."""
        moved = self._weight - self._now()
        shown = moved if gradient is None else gradient.detach().reshape(-1).double().cpu()
        known = self.model.numbers.numel()
        self.gradients.append(shown[:known].clone())
        spare = shown[known:]
        self.scales.append(float(spare.std().clamp_min(1e-30).log()) if len(spare) > 1 else 0.0)
        self.seen.append(set(self.model.seen))
        self.model.seen.clear()
        self._weight = self._now()

    def close(self) -> None:
        """Where no step of an optimizer was seen, add what became of the weights as the only one.

        Raises:
            ModelError: when they did not move either.
        """
        if self.gradients:
            return
        if torch.equal(self._weight, self._now()):
            raise ModelError(
                "the trainer left the model as it was", want="a trainer that trains the model it is given, in place",
                fix="Train all parameters of the model passed in, not a copy of it",
            )
        self.note(None)

    def _now(self) -> Tensor:
        return self.model.probe.weight.detach().reshape(-1).double().cpu().clone()


@contextmanager
def watch(model: ProbeModel) -> Iterator[Transcript]:
    """Record every step that any optimizer makes on the probe of `model` inside the block."""
    transcript = Transcript(model)

    def hook(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
        weight = model.probe.weight
        if any(one is weight for group in optimizer.param_groups for one in group["params"]):
            transcript.note(weight.grad)

    # After the step: what made the gradient private may itself be a hook before it.
    handle = register_optimizer_step_post_hook(hook)
    try:
        yield transcript
        transcript.close()
    finally:
        handle.remove()


def likelihood_ratios(transcripts: Sequence[Transcript], coins: Tensor) -> NDArray[np.float64]:
    """Return for each run and canary the log-likelihood ratio of in over out, shape (runs, canaries).

    The adversary is granted what the trainer is configured with: the size of a canary in a step, that of the noise, and the
    rate at which records take part. They are read off all canaries together. Where every canary that is in takes part in every
    step, or nobody knows, that comes down to the sum over the steps.

    Arguments:
        transcripts: of the runs.
        coins: which canaries were in, shape (runs, canaries), bool.
    """
    kept = [torch.stack(one.gradients) for one in transcripts]  # (steps, canaries) each
    part = [torch.zeros(one.shape, dtype=torch.bool) for one in kept]
    for here, transcript in zip(part, transcripts, strict=True):
        for step, seen in enumerate(transcript.seen):
            here[step, torch.tensor(sorted(seen), dtype=torch.long) - 1] = True
    values, took = torch.cat([one.flatten() for one in kept]), torch.cat([one.flatten() for one in part])
    possible = sum(len(one) * int(inside.sum()) for one, inside in zip(kept, coins, strict=True))
    rate = int(took.sum()) / max(possible, 1)
    if not 0 < rate < 0.99 or bool(took.all()):
        return np.array([one.sum(0).numpy() for one in kept])
    size, spread = float(values[took].mean()), float(values[~took].std().clamp_min(1e-9 * values.abs().max()))
    known = (size / spread**2) * (values - size / 2)
    ratios = torch.logaddexp(torch.tensor(np.log1p(-rate)), np.log(rate) + known)
    lengths = [one.numel() for one in kept]
    return np.array([one.reshape(-1, coins.shape[1]).sum(0).numpy() for one in ratios.split(lengths)])


def ordered(transcript: Transcript, earlier: Transcript) -> NDArray[np.float64]:
    """Return the gradients of each canary summed over the steps in which it took part in another run, if it did in one.

    A trainer whose batches follow from the order of the records has its canaries where they were; one that draws them afresh
    gives such a sum no meaning, and no harm.
    """
    total = torch.zeros(transcript.model.numbers.numel(), dtype=torch.float64)
    for gradient, seen in zip(transcript.gradients, earlier.seen, strict=False):
        places = torch.tensor(sorted(seen), dtype=torch.long) - 1
        total[places] += gradient[places]
    return total.numpy()
