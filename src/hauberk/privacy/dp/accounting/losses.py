"""Distributions of privacy losses on a grid: made by connecting the dots, composed by one Fourier transform, read upward.

Every step errs towards the greater loss: what the window cuts off counts as infinite, what wraps around lands above its place,
negative rounding is set to zero, and the total is refused where it is no distribution.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy import fft
from scipy.signal import lfilter

Array = npt.NDArray[np.float64]
TAIL = 1e-15  # mass beyond the window of a composition
FACTORS = (1 / 32, 1 / 8, 1 / 4, 1 / 2, 0.71, 1.0, 1.41, 2.0)


class Unsound(ArithmeticError):
    """Double precision does not hold this composition."""


class TooWide(ArithmeticError):
    """The grid is too fine for the room there is."""


@dataclasses.dataclass(frozen=True, eq=False)
class Losses:
    """Probabilities of losses `(low + i) · step`, and of an infinite one.

    Arguments:
        step: of the grid.
        low: the least loss, in steps.
        probs: shape (n,).
        infinite: the probability of an infinite loss.
    """

    step: float
    low: int
    probs: Array
    infinite: float

    def grid(self) -> Array:
        """Return the losses, shape (n,)."""
        return (self.low + np.arange(len(self.probs), dtype=np.float64)) * self.step

    def above(self) -> tuple[Array, Array]:
        """Return, for each loss l, the mass above it and the sum of p(m) e^(l − m) over the losses m above it, shapes (n,)."""
        shifted = np.concatenate([[0.0], self.probs[:0:-1]])  # from the greatest down; nothing lies above that
        shrink = math.exp(-self.step)
        lower = lfilter([shrink], [1.0, -shrink], shifted)
        return np.cumsum(shifted)[::-1], np.asarray(lower)[::-1]

    def delta(self, epsilon: float) -> float:
        """Return δ at an ε."""
        gap = np.minimum(epsilon - self.grid(), 0.0)
        return self.infinite + float(np.dot(self.probs, -np.expm1(gap)))

    def epsilon(self, delta: float) -> float:
        """Return the least ε of 0 or more at δ; infinite where δ is below the mass at infinity."""
        if self.infinite > delta:
            return math.inf
        mass, lower = self.above()
        over = np.flatnonzero(self.infinite + mass - lower > delta)
        if not len(over):  # the least loss is as far down as a curve is known
            return max(0.0, self.low * self.step)
        place = int(over[-1])
        # Between two losses δ is straight in e^ε.
        grown = (self.infinite + mass[place] - delta) / lower[place] if lower[place] > 0 else math.inf
        rise = min(math.log(grown), self.step) if 0 < grown < math.inf else self.step
        return max(0.0, (self.low + place) * self.step + rise)


def connect(step: float, low: int, above: Array, below: Array) -> Losses:
    """Return the least loss on a grid whose δ is nowhere below a curve that is given at its points.

    Arguments:
        step: of the grid, which goes from `low` steps, below 0, to somewhere above 0.
        low: minus the number of points below 0.
        above: δ at 0 and the points above, falling.
        below: δ(ε) − (1 − e^ε) at the points from `low` up to 0, rising: what it is above that of certain answers, which
            is straight in e^ε and needs no mass. Left out of the differences, it cannot drown them.

    Paper: Doroshenko et al. 2022, arXiv:2207.04380, algorithm 1.
    """
    above = np.minimum.accumulate(np.clip(above, 0.0, 1.0))
    below = np.maximum.accumulate(np.clip(below, 0.0, above[0]))
    grown = math.expm1(step)
    falls, rises = np.diff(above), np.diff(below)
    upper = np.append(falls, 0.0) / grown  # slopes by e^ε, times e^ε at the left end
    lower = np.concatenate([[0.0], rises]) / grown * math.exp(step)  # the same, at the right end
    probs = np.empty(len(above) + len(below) - 1)
    zero = len(below) - 1
    probs[zero] = 1 + upper[0] - lower[-1]
    probs[zero + 1 :] = upper[1:] - falls / grown * math.exp(step)
    probs[1:zero] = rises[1:] / grown - lower[1:-1]
    probs[0] = rises[0] / grown - below[0]
    probs = np.maximum(probs, 0.0)
    infinite = float(above[-1])
    return Losses(step, low, probs, infinite + max(0.0, 1 - infinite - float(probs.sum())))


def compose(parts: Sequence[tuple[Losses, int]], most: int) -> Losses:
    """Return the losses of all parts one after the other, each so many times.

    Arguments:
        parts: on one grid, and their counts.
        most: points of the result.

    Raises:
        TooWide: for a result of more points.
        Unsound: for one whose mass is not 1.
    """
    if len(parts) == 1 and parts[0][1] == 1:
        return parts[0][0]
    step = parts[0][0].step
    low, high = _window(parts)
    if high - low >= most:
        raise TooWide(f"{high - low} points")
    size = int(fft.next_fast_len(max(high - low + 1, 16), real=True))
    total = np.ones(size // 2 + 1, dtype=np.complex128)
    for one, count in parts:
        total *= fft.rfft(_folded(one, size)) ** float(count)
    probs = np.roll(fft.irfft(total, size), -low)
    keep = -math.expm1(sum(count * math.log1p(-min(one.infinite, 1 - 1e-16)) for one, count in parts))
    mass = float(probs.sum()) + keep
    if not np.isfinite(probs).all() or not 0.999 < mass < 1.01:
        raise Unsound(f"a mass of {mass}")
    return Losses(step, low, np.maximum(probs, 0.0), min(1.0, keep + 2 * TAIL + max(0.0, 1 - mass)))


def _folded(one: Losses, size: int) -> Array:
    """Return the probabilities around a circle, a loss of 0 in place 0."""
    start = one.low % size
    laps = np.zeros(-(-(start + len(one.probs)) // size) * size)
    laps[start : start + len(one.probs)] = one.probs
    folded: Array = laps.reshape(-1, size).sum(0)
    return folded


def _window(parts: Sequence[tuple[Losses, int]]) -> tuple[int, int]:
    """Return between which losses, in steps, all but a mass of `TAIL` at either end lies (Chernoff)."""
    places = [one.low + np.arange(len(one.probs), dtype=np.float64) for one, _ in parts]
    low = sum(one.low * count for one, count in parts)
    high = sum((one.low + len(one.probs) - 1) * count for one, count in parts)
    spread = sum(count * float(one.probs @ at**2) for (one, count), at in zip(parts, places, strict=True))
    order = math.sqrt(2 * math.log(1 / TAIL) / max(spread, 1e-300))
    for factor in FACTORS:
        for sign in (-1, 1):
            tilt = sign * factor * order
            with np.errstate(over="ignore", invalid="ignore"):
                logs = [count * np.log(one.probs @ np.exp(tilt * at)) for (one, count), at in zip(parts, places, strict=True)]
            reach = (math.fsum(logs) + math.log(1 / TAIL)) / tilt if np.isfinite(logs).all() else math.inf
            if math.isfinite(reach) and sign > 0:
                high = min(high, math.ceil(reach))
            elif math.isfinite(reach):
                low = max(low, math.floor(reach))
    return int(low), max(int(high), int(low))
