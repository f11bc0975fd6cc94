"""Fault campaigns: what faults of every kind and place cost, how much of it goes unnoticed, and how long a model lasts."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from hauberk.core import progress, rng
from hauberk.core.errors import DataError, ModelError, UsageError, nearest
from hauberk.core.target import Target, as_target
from hauberk.integrity.faults.bits import bit_count, drawn_bits, flipped
from hauberk.integrity.faults.places import faulty_activations, faulty_inputs, faulty_weights, layers_with_weights
from hauberk.integrity.faults.values import KINDS

PLACES = ("weights", "activations", "inputs")


@dataclasses.dataclass(frozen=True)
class FaultOutcome:
    """What one kind of fault did in one place.

    Arguments:
        kind, place: of the fault; `layer` where one layer alone was struck, else empty.
        share: of the values struck in every layer, or of every sample's features.
        accuracy: of each trial, right and finite answers over all, shape (trials,).
        silent: silent data corruption of each trial: the share of answers that were right, are finite, and are wrong now.
        noticed: the share of answers of each trial that are not finite, which anybody can notice.
    """

    kind: str
    place: str
    layer: str
    share: float
    accuracy: np.ndarray
    silent: np.ndarray
    noticed: np.ndarray


def fault_campaign(
    model: Target | nn.Module, x: Tensor, y: Tensor, *, kinds: Sequence[str] = KINDS, places: Sequence[str] = PLACES,
    share: float = 0.01, trials: int = 5, seed: int = 0,
) -> list[FaultOutcome]:
    """Return what faults of every kind do in every place, all layers struck at once.

    Arguments:
        model: with GRADIENT access; its weights are put back bit by bit.
        x, y: samples, shape (n, ...), and true labels, shape (n,).
        kinds, places: those tried.
        share: of the values that are struck in each layer, or of each sample's features; one at least.
        trials: draws of places for each kind and place.
        seed: of all draws.
    """
    return _outcomes(as_target(model), x, y, [(kind, place, "") for place in places for kind in kinds], share, trials, seed)


def faults_by_layer(
    model: Target | nn.Module, x: Tensor, y: Tensor, *, kind: str = "exponent-flip", share: float = 0.01, trials: int = 5,
    seed: int = 0,
) -> list[FaultOutcome]:
    """Return what a kind of fault in the weights of one layer does, layer by layer, the last included; see `fault_campaign`."""
    target = as_target(model)
    jobs = [(kind, "weights", layer) for layer in layers_with_weights(target.module)]
    return _outcomes(target, x, y, jobs, share, trials, seed)


def time_to_failure(
    model: Target | nn.Module, x: Tensor, y: Tensor, *, until: float, most: int = 10_000, trials: int = 10, part: str = "any",
    seed: int = 0,
) -> np.ndarray:
    """Return how many random bit flips, one after the other, a model takes until its accuracy is at most `until`.

    Faults stay, as they do in a memory that nobody refreshes; counts are found by doubling, then by halving, so that a trial asks
    the model a logarithm of times. The accuracy need not fall at every flip: what is found is a count at which it is low while at
    the count tried before it was not.

    Arguments:
        model: with GRADIENT access.
        x, y: samples and true labels.
        until: the accuracy that counts as failed.
        most: flips after which a trial is given up; its count is then infinite.
        trials: independent orders of flips.
        part: which bits: `any`, `sign`, `exponent` or `mantissa`.
        seed: of the orders.

    Returns:
        Counts, shape (trials,), float64; 0 where the model fails as it is.

    Raises:
        ModelError: for a model without weights to flip.
    """
    refuse(x, y, trials)
    target = as_target(model)
    most = min(most, bit_count(target.module, part))
    if not most:
        raise ModelError(f"the model has no bits to flip (part: {part})", want="weights of a floating type or int8, most >= 1")

    def failed(bits: Sequence[tuple[str, int, int]]) -> bool:
        with flipped(target.module, bits):
            return _accuracy(target.logits(x), y) <= until

    if failed([]):
        return np.zeros(trials)
    counts = []
    for trial in progress.track(range(trials), "time to failure"):
        order = drawn_bits(target.module, most, generator=rng.generator(seed, "time to failure", trial), part=part)
        low, high = 0, 1
        while high < most and not failed(order[:high]):
            low, high = high, min(2 * high, most)
        if not failed(order[:high]):
            counts.append(np.inf)
            continue
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if failed(order[:middle]) else (middle, high)
        counts.append(float(high))
    return np.array(counts)


def _outcomes(
    target: Target, x: Tensor, y: Tensor, jobs: Sequence[tuple[str, str, str]], share: float, trials: int, seed: int
) -> list[FaultOutcome]:
    refuse(x, y, trials)
    for _, place, _ in jobs:
        if place not in PLACES:
            raise UsageError(f"place is '{place}'", want=" | ".join(PLACES), fix=nearest(place, PLACES))
    with torch.no_grad():
        before = target.logits(x)
    was_right = right_answers(before, y)
    found = []
    for kind, place, layer in progress.track(jobs, "faults"):
        rows = []
        for trial in range(trials):
            with _struck(target.module, x, kind, place, layer, share, rng.derive_seed(seed, kind, place, layer, trial)) as asked:
                logits = target.logits(asked)
            finite = logits.isfinite().all(1)
            silent = was_right & finite & (logits.argmax(1) != y)
            rows.append([_accuracy(logits, y), float(silent.double().mean()), float((~finite).double().mean())])
        accuracy, silent, noticed = np.array(rows).T
        found.append(FaultOutcome(kind, place, layer, share, accuracy, silent, noticed))
    return found


@contextlib.contextmanager
def _struck(module: nn.Module, x: Tensor, kind: str, place: str, layer: str, share: float, seed: int) -> Iterator[Tensor]:
    draws, only = rng.generator(seed, "faults"), [layer] if layer else None
    if place == "inputs":
        yield faulty_inputs(x, kind, share, generator=draws)
    elif place == "weights":
        with faulty_weights(module, kind, share, generator=draws, layers=only):
            yield x
    else:
        with faulty_activations(module, kind, share, seed=seed, layers=only):
            yield x


def refuse(x: Tensor, y: Tensor, trials: int = 1) -> None:
    """Raise DataError for no samples, or not one label for each; UsageError for no trials."""
    if len(x) != len(y) or not len(x):
        raise DataError(f"there are {len(x)} samples and {len(y)} labels", want="one sample or more, and one label for each")
    if trials < 1:
        raise UsageError(f"trials is {trials}", want="1 or more")


def right_answers(logits: Tensor, y: Tensor) -> Tensor:
    """Return which answers are right, shape (n,), bool: one that is not finite is none, whatever label its arg-max names."""
    return (logits.argmax(1) == y) & logits.isfinite().all(1)


def _accuracy(logits: Tensor, y: Tensor) -> float:
    return float(right_answers(logits, y).double().mean())
