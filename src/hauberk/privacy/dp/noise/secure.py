"""A cryptographically secure source: fresh AES-256 keys from the operating system for every call, and no state."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray
from torch import Tensor

from hauberk.core.errors import UsageError
from hauberk.privacy.dp.noise.ziggurat import normals

CHUNK = 1 << 16  # values transformed at a time: what is worked on stays in the cache
_LOW_63 = (1 << 63) - 1
_ZEROS = memoryview(bytes(10 * CHUNK))


class SecureSource:
    """Randomness that cannot be foretold, for noise that protects people.

    Every call takes new 256-bit keys and nonces from the operating system, one for every 65,536 values or fewer, and reads the
    keystream of AES in counter mode under them. Nothing is kept between calls, so that threads, forked processes and resumed runs
    never share a draw and there is nothing to steal.

    Values are computed in float64, normals from 64 random bits each and more for one in 240 (`ziggurat.py`), Laplace values from
    64, and only then rounded to the dtype asked for. Normals end at 13 standard deviations, Laplace values at 43.7 scales:
    together less than 2^-60 of the probability a draw.

    Floating point does not represent every real number, and the sum of a value and noise can show by its lowest bits which value
    went in (Mironov 2012, CCS). A mechanism's `add_` closes that by adding on a grid (`grid.py`); adding by hand does not.
    """

    secure = True

    def bits(self, n: int) -> Tensor:
        """Return n uniform integers over all of int64, shape (n,), on the CPU."""
        made = torch.empty(n, dtype=torch.int64)

        def fill(part: slice) -> None:
            made[part] = _keystream(part.stop - part.start)

        in_parts(n, fill)
        return made

    def normal(self, like: Tensor, out: Tensor | None = None) -> Tensor:
        """Return standard normal values with the shape, dtype and device of `like`, in `out` where that is given."""
        return _filled(like, lambda n: torch.from_numpy(normals(n, _fill)), out)

    def uniform(self, like: Tensor) -> Tensor:
        """Return values uniform over [0, 1) with the shape, dtype and device of `like`: multiples of 2^-53, or 2^-24."""
        digits = 53 if like.dtype == torch.float64 else 24 if like.dtype == torch.float32 else 8
        return _filled(like, lambda n: _keystream(n).bitwise_and_((1 << digits) - 1).double().mul_(2.0**-digits))

    def laplace(self, like: Tensor) -> Tensor:
        """Return Laplace values of scale 1 (variance 2) with the shape, dtype and device of `like`."""
        return _filled(like, lambda n: _laplaces(_keystream(n)))

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


def _laplaces(raw: Tensor) -> Tensor:
    sign = raw.double()
    size = raw.bitwise_and_(_LOW_63).double().add_(1.0).mul_(2.0**-63).log_()
    return size.copysign_(sign)


def _filled(like: Tensor, make: Callable[[int], Tensor], out: Tensor | None = None) -> Tensor:
    if not like.is_floating_point():
        raise UsageError(f"noise of dtype {like.dtype} was asked for", want="a floating-point tensor")
    # Half-precision values are rounded once, at the end, from float64.
    here = out is not None and out.device.type == "cpu" and out.is_contiguous()
    flat = cast(Tensor, out).view(-1) if here else torch.empty(like.numel(), dtype=like.dtype)

    def fill(part: slice) -> None:
        flat[part] = make(part.stop - part.start)

    in_parts(len(flat), fill)
    found = flat.reshape(like.shape).to(like.device)
    return found if out is None or here else out.copy_(found)


def in_parts(n: int, work: Callable[[slice], object]) -> None:
    """Call `work` on consecutive parts of n entries, by as many threads as torch has, where there are parts enough."""
    # An operation on more values than half of CHUNK is split between threads by torch itself, once too often.
    threads = min(torch.get_num_threads(), n // (2 * CHUNK))
    alone = threads < 2 or torch.is_inference_mode_enabled()  # a mode that other threads would not inherit
    size = CHUNK if alone else CHUNK // 2
    parts = [slice(start, min(n, start + size)) for start in range(0, n, size)]
    if alone:
        for part in parts:
            work(part)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, parts):
            pass


def _fill(words: NDArray[np.int64]) -> None:
    """Write random int64 under a key of their own."""
    cipher = Cipher(algorithms.AES256(secrets.token_bytes(32)), modes.CTR(secrets.token_bytes(16))).encryptor()
    cipher.update_into(_ZEROS[: words.nbytes], words.view(np.uint8).data)


def _keystream(n: int) -> Tensor:
    """Return n random int64 under a key of their own."""
    words = np.empty(n, np.int64)
    _fill(words)
    return torch.from_numpy(words)
