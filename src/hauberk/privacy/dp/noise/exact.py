"""Exact samplers of the discrete Laplace and Gaussian laws, one value at a time, in rational arithmetic alone.

Canonne, Kamath and Steinke 2020, arXiv:2004.00010. The vectorised samplers in `discrete.py` are tested against these.
"""

from __future__ import annotations

import math
import secrets
from fractions import Fraction
from typing import Protocol

from hauberk.core.errors import UsageError


class Dice(Protocol):
    """Uniform integers: `secrets.SystemRandom()`, or `random.Random(seed)` for tests."""

    def randrange(self, stop: int, /) -> int:
        """Return an integer uniform over 0 ... stop - 1."""
        ...


def bernoulli(p: Fraction, dice: Dice) -> bool:
    """Return true with probability p, 0 <= p <= 1."""
    return dice.randrange(p.denominator) < p.numerator


def bernoulli_exp(gamma: Fraction, dice: Dice) -> bool:
    """Return true with probability exp(-gamma), gamma >= 0."""
    while gamma > 1:
        if not bernoulli_exp(Fraction(1), dice):
            return False
        gamma -= 1
    k = 1  # the count of successes of chances gamma / k is even with probability exp(-gamma)
    while bernoulli(gamma / k, dice):
        k += 1
    return k % 2 == 1


def discrete_laplace(scale: Fraction | int, dice: Dice | None = None) -> int:
    """Return an integer x with probability in proportion to exp(-|x| / scale), exactly.

    Arguments:
        scale: above 0, a rational number.
        dice: None takes the operating system's.

    Raises:
        UsageError: for a scale that is not above 0.
    """
    wanted, dice = _above_zero(scale, "scale"), dice or secrets.SystemRandom()
    t, s = wanted.numerator, wanted.denominator
    while True:
        low = dice.randrange(t)
        if not bernoulli_exp(Fraction(low, t), dice):
            continue
        high = 0
        while bernoulli_exp(Fraction(1), dice):
            high += 1
        size, negative = (low + t * high) // s, dice.randrange(2) == 1
        if size or not negative:  # zero has one sign only
            return -size if negative else size


def discrete_gaussian(variance: Fraction | int, dice: Dice | None = None) -> int:
    """Return an integer x with probability in proportion to exp(-x^2 / (2 variance)), exactly.

    Arguments:
        variance: the parameter sigma^2, above 0, a rational number; the true variance is a little below.
        dice: None takes the operating system's.

    Raises:
        UsageError: for a variance that is not above 0.
    """
    wanted, dice = _above_zero(variance, "variance"), dice or secrets.SystemRandom()
    t = isqrt(wanted) + 1
    while True:
        x = discrete_laplace(t, dice)
        if bernoulli_exp(acceptance(x, wanted, t), dice):
            return x


def acceptance(x: int, variance: Fraction, t: int) -> Fraction:
    """Return gamma, where a discrete Laplace x of scale t is kept with probability exp(-gamma) to become Gaussian."""
    return (abs(x) - variance / t) ** 2 / (2 * variance)


def isqrt(value: Fraction) -> int:
    """Return the whole part of the root of a rational number."""
    return math.isqrt(value.numerator // value.denominator)


def _above_zero(value: Fraction | int, name: str) -> Fraction:
    if value <= 0:
        raise UsageError(f"the {name} of a discrete law is {value}", want="a rational number above 0")
    return Fraction(value)
