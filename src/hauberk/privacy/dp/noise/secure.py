"""A cryptographically secure source: a fresh ChaCha20 key from the operating system for every call, and no state."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from hauberk.core.errors import UsageError

CHUNK = 1 << 15  # values transformed at a time: what is worked on stays in the cache
_LOW_63 = (1 << 63) - 1


class SecureSource:
    """Randomness that cannot be foretold, for noise that protects people.

    Every call takes a new 256-bit key and nonce from the operating system and reads the ChaCha20 keystream under it. Nothing is
    kept between calls, so that threads, forked processes and resumed runs never share a draw and there is nothing to steal.

    Values are computed in float64 from 128 random bits a pair of normals (Box and Muller 1958) and 64 a Laplace value, and only
    then rounded to the dtype asked for. Normals end at 9.3 standard deviations, Laplace values at 43.7 scales: together less than
    2^-60 of the probability a draw.

    Floating point does not represent every real number, and the sum of a value and noise can show by its lowest bits which value
    went in (Mironov 2012, CCS). A mechanism's `add_` closes that by adding on a grid (`grid.py`); adding by hand does not.
    """

    secure = True

    def bits(self, n: int) -> Tensor:
        """Return n uniform integers over all of int64, shape (n,), on the CPU."""
        made = torch.empty(n, dtype=torch.int64)
        for place, raw in _keystream(n):
            made[place] = raw[: place.stop - place.start]
        return made

    def normal(self, like: Tensor) -> Tensor:
        """Return standard normal values with the shape, dtype and device of `like`."""
        return _filled(like, _normals)

    def uniform(self, like: Tensor) -> Tensor:
        """Return values uniform over [0, 1) with the shape, dtype and device of `like`: multiples of 2^-53, or 2^-24."""
        digits = 53 if like.dtype == torch.float64 else 24 if like.dtype == torch.float32 else 8
        return _filled(like, lambda raw: raw.bitwise_and_((1 << digits) - 1).double().mul_(2.0**-digits))

    def laplace(self, like: Tensor) -> Tensor:
        """Return Laplace values of scale 1 (variance 2) with the shape, dtype and device of `like`."""
        return _filled(like, _laplaces)

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: there is no state, on purpose."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Accept the empty state of another secure source.

        Raises:
            UsageError: for the state of a seeded source: a run begun with seeded noise is not private, whatever comes after.
        """
        if state:
            raise UsageError(
                f"the saved noise state has {', '.join(sorted(state))}", want="the empty state of a secure source",
                fix="Resume with SeededSource, or start again with SecureSource: seeded noise protects nobody",
            )


def _normals(raw: Tensor) -> Tensor:
    half = len(raw) // 2
    raw[:half].bitwise_and_(_LOW_63)
    values = raw.double()
    radius, angle = values[:half], values[half:]
    radius.add_(1.0).mul_(2.0**-63).log_().mul_(-2.0).sqrt_()  # of a uniform value in (0, 1]
    angle.mul_(math.pi * 2.0**-63)
    sine = torch.sin(angle)
    angle.cos_().mul_(radius)
    torch.mul(sine, radius, out=radius)
    return values


def _laplaces(raw: Tensor) -> Tensor:
    sign = raw.double()
    size = raw.bitwise_and_(_LOW_63).double().add_(1.0).mul_(2.0**-63).log_()
    return size.copysign_(sign)


def _filled(like: Tensor, transform: Callable[[Tensor], Tensor]) -> Tensor:
    if not like.is_floating_point():
        raise UsageError(f"noise of dtype {like.dtype} was asked for", want="a floating-point tensor")
    # Half-precision values are rounded once, at the end, from float64.
    flat = torch.empty(like.numel(), dtype=like.dtype)
    for place, raw in _keystream(like.numel()):
        flat[place] = transform(raw)[: place.stop - place.start]
    return flat.reshape(like.shape).to(like.device)


def _keystream(n: int) -> Iterator[tuple[slice, Tensor]]:
    """Give n random int64 in portions (a spare one at the end where n is odd), each in the same buffer."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

    if not n:
        return
    size = min(CHUNK, n + n % 2)
    cipher = Cipher(algorithms.ChaCha20(secrets.token_bytes(32), secrets.token_bytes(16)), mode=None).encryptor()
    zeros, stream = bytes(8 * size), bytearray(8 * size)
    for start in range(0, n, size):
        cipher.update_into(zeros, stream)
        yield slice(start, min(n, start + size)), torch.frombuffer(stream, dtype=torch.int64)
