"""Keyed weights: a state dict that loads anywhere and is worth nothing without the key."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping

import torch
from torch import Tensor

from hauberk.assets.obfuscate.draws import Draws, as_key
from hauberk.core.errors import UsageError

SALT_BYTES = 16


@dataclasses.dataclass(frozen=True)
class Locked:
    """Weights under a key.

    Arguments:
        state: of the same names, shapes and dtypes as the weights.
        salt: public; goes with the file.
        tag: of key and salt: tells a wrong key from a right one before anything is computed.
    """

    state: dict[str, Tensor]
    salt: bytes
    tag: bytes


def lock_weights(state: Mapping[str, Tensor], key: bytes, *, octaves: float = 3.0, salt: bytes | None = None) -> Locked:
    """Return the weights with every axis permuted and every row and column scaled, as a key decides.

    Each axis of each tensor gets a permutation of its own, so that the rows of a layer no longer fit the columns of the next, its
    bias, or its statistics; kernels lose their places too. Rows and columns get log-uniform scales (powers of two in half
    precision), and rows flips: norms, by which trained layers could be matched again (`attacks.rank_matching`), say nothing.
    `unlock_weights` folds it all back, at load and not at inference: latency and size are those of the model.

    Arguments:
        state: tensors by name; those that are no floating-point numbers are permuted alone.
        key: 32 bytes, from `new_key`.
        octaves: scales are 2^-octaves to 2^octaves.
        salt: 16 bytes; None draws them.

    Returns:
        The locked weights. What comes back by the key differs from float32 weights by two roundings at most, from those in half
        precision not at all unless they are smaller than the dtype's normal numbers.

    Raises:
        UsageError: for a key that is not 32 bytes, octaves outside 0 to 16, or weights that are not finite or would not be.
    """
    as_key(key)
    if not 0 <= octaves <= 16:
        raise UsageError(f"octaves is {octaves}", want="0 to 16")
    salt = secrets.token_bytes(SALT_BYTES) if salt is None else salt
    made = {name: _turned(name, value, key, salt, octaves, lock=True) for name, value in state.items()}
    return Locked(made, salt, tag_of(key, salt, octaves))


def unlock_weights(locked: Locked, key: bytes, *, octaves: float = 3.0) -> dict[str, Tensor]:
    """Return the weights that `lock_weights` was given.

    Raises:
        UsageError: for another key, or other octaves, than they were locked with.
    """
    import hmac

    if not hmac.compare_digest(tag_of(as_key(key), locked.salt, octaves), locked.tag):
        raise UsageError("the key does not fit these weights", want="the key that they were locked with")
    return {name: _turned(name, value, key, locked.salt, octaves, lock=False) for name, value in locked.state.items()}


def tag_of(key: bytes, salt: bytes, octaves: float) -> bytes:
    """Return 16 bytes that depend on key, salt and octaves, and give none of the draws away."""
    return Draws(key, salt, f"tag\0{octaves!r}").words(2).tobytes()


def _turned(name: str, value: Tensor, key: bytes, salt: bytes, octaves: float, *, lock: bool) -> Tensor:
    """Return one tensor locked, or unlocked: the same draws, in the other direction."""
    if value.numel() < 2:
        return value.clone()
    real = value.is_floating_point()
    if real and not bool(value.isfinite().all()):
        raise UsageError(f"the weights {name} hold values that are NaN or infinite", want="finite weights")
    draws = Draws(key, salt, f"tensor\0{name}\0{tuple(value.shape)}")
    orders = [draws.permutation(size) for size in value.shape]
    factors = _factors(value, draws, octaves) if real else []
    out = value.detach().to("cpu", torch.float64) if real else value.detach().cpu()
    for axis, factor in enumerate(factors):
        if not lock:
            out = out.div(_along(factor, axis, out.ndim))
    for axis, order in enumerate(orders):
        if len(order) > 1:
            out = out.index_select(axis, order if lock else order.argsort())
    for axis, factor in enumerate(factors):
        if lock:
            out = out.mul(_along(factor, axis, out.ndim))
    made = out.to(value.device, value.dtype)
    if real and not bool(made.isfinite().all()):
        raise UsageError(f"the weights {name} leave the range of {value.dtype}", want=f"octaves below {octaves}")
    return made


def _factors(value: Tensor, draws: Draws, octaves: float) -> list[Tensor]:
    """Return the scales of the first two axes, the same for a tensor locked and unlocked."""
    room = octaves / min(value.ndim, 2)  # two axes together reach as far as one
    if value.dtype in (torch.float16, torch.bfloat16):
        # Of few digits none can be lost: powers of two round nothing, and upwards alone nothing underflows.
        whole = round(room)
        found = [draws.powers(size, whole) * 2.0**whole for size in value.shape[:2]]
    else:
        found = [draws.scales(size, room) for size in value.shape[:2]]
    # Flips need a mark that they leave alone: a row with both signs keeps both. A vector, such as a variance, has no such mark.
    rows = value.flatten(1) if value.ndim > 1 else None
    signs = draws.signs(len(value))
    if rows is not None and bool(((rows < 0).any(1) & (rows > 0).any(1)).any()):
        found[0] = found[0] * signs
    return found


def _along(factor: Tensor, axis: int, ndim: int) -> Tensor:
    return factor.view(*(-1 if at == axis else 1 for at in range(ndim)))
