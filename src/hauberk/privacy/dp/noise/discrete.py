"""Vectorised samplers of the discrete Laplace and Gaussian laws: float64 where it can decide, exact arithmetic where not."""

from __future__ import annotations

import decimal
import math
from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor

from hauberk.core.errors import UsageError
from hauberk.privacy.dp.noise.exact import acceptance, isqrt
from hauberk.privacy.dp.noise.source import Source

LARGEST = 1 << 40  # scale: products with it stay far inside int64
MARGIN = 2.0**-36  # a chance known to this share is compared in float64; a draw nearer than that is decided exactly
_LOW_63 = (1 << 63) - 1
_GEOMETRIC = [math.floor(Fraction(math.exp(-k)) * 2**63) for k in range(1, 46)]  # to within float64; see _geometric


def sample_laplace(n: int, scale: Fraction | int, source: Source) -> Tensor:
    """Return n integers x with probability in proportion to exp(-|x| / scale).

    Arguments:
        n: how many.
        scale: a rational number above 0 whose numerator is below 2^40.
        source: of randomness.

    Returns:
        int64, shape (n,), on the CPU.

    Raises:
        UsageError: for a scale out of range.

    Paper: Canonne, Kamath and Steinke 2020, arXiv:2004.00010, algorithm 2.
    """
    wanted = _in_range(Fraction(scale))
    return _collect(n, lambda m: _laplace_candidates(m, wanted, source))


def sample_gaussian(n: int, variance: Fraction | int, source: Source) -> Tensor:
    """Return n integers x with probability in proportion to exp(-x^2 / (2 variance)).

    Arguments:
        n: how many.
        variance: the parameter sigma^2, a rational number above 0 and below 2^78.
        source: of randomness.

    Returns:
        int64, shape (n,), on the CPU.

    Raises:
        UsageError: for a variance out of range.

    Paper: Canonne, Kamath and Steinke 2020, arXiv:2004.00010, algorithm 3.
    """
    wanted = Fraction(variance)
    if wanted <= 0:
        raise UsageError(f"the variance of a discrete law is {variance}", want="a rational number above 0")
    t = int(_in_range(Fraction(isqrt(wanted) + 1)))
    shift, double = float(wanted / t), float(2 * wanted)

    def candidates(m: int) -> Tensor:
        x = _laplace_candidates(m, Fraction(t), source)
        gamma = (x.abs().double() - shift).square() / double
        return x[_below_exp(gamma, lambda i: acceptance(int(x[i]), wanted, t), source)]

    return _collect(n, candidates)


def _laplace_candidates(m: int, scale: Fraction, source: Source) -> Tensor:
    t, s = scale.numerator, scale.denominator
    low = _below(m, t, source)
    low = low[_below_exp(low.double() / t, lambda i: Fraction(int(low[i]), t), source)]
    size = (low + t * _geometric(len(low), source)) // s
    negative = source.bits(len(size)) < 0
    return torch.where(negative, -size, size)[(size != 0) | ~negative]  # zero has one sign only


def _below(m: int, stop: int, source: Source) -> Tensor:
    """About m integers, each uniform over 0 ... stop - 1, exactly: what would favour the small ones is thrown away."""
    bits = source.bits(m) & _LOW_63
    return bits[bits <= 2**63 // stop * stop - 1] % stop


def _geometric(m: int, source: Source) -> Tensor:
    """How often in a row a chance of exp(-1) succeeds, m times: the largest k for which a uniform value is below exp(-k)."""
    bits = source.bits(m) & _LOW_63
    bounds = torch.tensor(_GEOMETRIC[::-1])
    k = len(_GEOMETRIC) - torch.searchsorted(bounds, bits, right=True)
    nearest = torch.minimum(
        (bits - bounds[(len(_GEOMETRIC) - k - 1).clamp_min(0)]).abs(), (bits - bounds[(len(_GEOMETRIC) - k).clamp_max(44)]).abs()
    )
    unsure = nearest.double() <= bits.double() * MARGIN + 2.0**13
    for i in unsure.nonzero().flatten().tolist():
        uniform, k[i] = _Uniform(int(bits[i]), source), 0
        while uniform.below_exp(Fraction(int(k[i]) + 1)):
            k[i] += 1
    return k


def _below_exp(gamma: Tensor, exact: Callable[[int], Fraction], source: Source) -> Tensor:
    """True with probability exp(-gamma) for each entry, where gamma[i] is `exact(i)` to within float64."""
    bits = source.bits(len(gamma)) & _LOW_63
    drawn, chance = bits.double(), torch.exp(-gamma) * 2.0**63
    found = drawn < chance
    unsure = (drawn - chance).abs() <= chance * MARGIN + 2.0**13
    for i in unsure.nonzero().flatten().tolist():
        found[i] = _Uniform(int(bits[i]), source).below_exp(exact(i))
    return found


class _Uniform:
    """A uniform real number whose binary digits are drawn as they are needed."""

    def __init__(self, bits: int, source: Source) -> None:
        self._bits, self._digits, self._source = bits, 63, source

    def below_exp(self, gamma: Fraction) -> bool:
        """Whether the number is below exp(-gamma), exactly."""
        while True:
            # Units of the last place, twice as many digits as needed: the true value lies between floor - 1 and floor + 2.
            with decimal.localcontext() as context:
                context.prec, context.Emin = 40 + self._digits, decimal.MIN_EMIN
                power = (-decimal.Decimal(gamma.numerator) / decimal.Decimal(gamma.denominator)).exp()
                floor = int(power * decimal.Decimal(1 << self._digits))
            if self._bits < floor - 1:
                return True
            if self._bits >= floor + 2:
                return False
            self._bits = (self._bits << 63) | (int(self._source.bits(1)) & _LOW_63)
            self._digits += 63


def _collect(n: int, candidates: Callable[[int], Tensor]) -> Tensor:
    found, have = [], 0
    while have < n:
        # Rejection sampling: the draws kept are independent of how many were thrown away.
        found.append(candidates(min(int((n - have) * 2.2) + 16, 1 << 16)))
        have += len(found[-1])
    return torch.cat(found)[:n] if found else torch.empty(0, dtype=torch.int64)


def _in_range(scale: Fraction) -> Fraction:
    if scale <= 0 or scale.numerator >= LARGEST:
        raise UsageError(
            f"the scale of a discrete law is {float(scale):g} = {scale}",
            want="a rational number above 0, its numerator below 2^40",
            fix="Take a coarser grid, or a simpler fraction: Fraction(scale).limit_denominator(1000)",
        )
    return scale
