"""What a fault makes of a number: the kinds of fault that hardware shows, on any tensor."""

from __future__ import annotations

import torch
from torch import Tensor

from hauberk.core.errors import UsageError, nearest
from hauberk.core.rng import uniform
from hauberk.integrity.faults.bits import LAYOUT, bit_mask

KINDS = ("bit-flip", "exponent-flip", "zero", "nan", "inf", "random", "negated", "imprecise")
KEPT_BITS = 2  # of the mantissa, where precision is lost


def known_kind(kind: str) -> None:
    """Raise UsageError for a fault of another name."""
    if kind not in KINDS:
        raise UsageError(f"kind is '{kind}'", want=" | ".join(KINDS), fix=nearest(kind, KINDS))


def struck(values: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Return what a fault of that kind makes of every value, in the shape and dtype of `values`.

    Arguments:
        values: floating point, or int8 (then NaN and infinity are the two ends of the range, and there is no exponent: the bit
            before the sign is flipped).
        kind: `bit-flip` one random bit of each; `exponent-flip` the highest bit of the exponent; `zero`, `nan`, `inf` stuck at
            that value; `random` uniform between the lowest and the highest finite of the values; `negated` the sign turned
            (anti-activation); `imprecise` all but the two highest bits of the mantissa lost (of int8: the four lowest bits).
        generator: of the bits and values drawn.
    """
    known_kind(kind)
    if values.dtype is torch.int8:
        return _struck_int8(values, kind, generator)
    if values.dtype not in LAYOUT:
        raise UsageError(f"the values are {values.dtype}", want=" | ".join(str(one) for one in (*LAYOUT, torch.int8)))
    words_as, exponent, mantissa = LAYOUT[values.dtype]
    if kind in ("bit-flip", "exponent-flip", "imprecise"):
        words = values.detach().contiguous().view(words_as)
        if kind == "imprecise":
            return (words & (-1 << (mantissa - KEPT_BITS))).view(values.dtype)
        bits = range(exponent + mantissa + 1)
        masks = torch.tensor([bit_mask(words_as, bit) for bit in bits], dtype=words_as, device=words.device)
        if kind == "exponent-flip":
            return (words ^ masks[exponent + mantissa - 1]).view(values.dtype)
        return (words ^ masks[_drawn(values, len(masks), generator)]).view(values.dtype)
    if kind == "negated":
        return -values.detach()
    if kind == "random":
        # In float64: the span of two numbers may be more than their dtype holds. What is not finite is no end of a range.
        finite = values.detach().double()
        there = finite.isfinite()
        low, high = (float(end) for end in torch.cat([finite[there], finite.new_zeros(0 if bool(there.any()) else 1)]).aminmax())
        drawn = low / 2 + (high / 2 - low / 2) * uniform(finite, generator)  # halves, so that no span is infinite
        return (2 * drawn).clamp(low, high).to(values.dtype)
    return torch.full_like(values.detach(), {"zero": 0.0, "nan": torch.nan, "inf": torch.inf}[kind])


def _struck_int8(values: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    if kind == "bit-flip":
        masks = torch.tensor([bit_mask(torch.int8, bit) for bit in range(8)], dtype=torch.int8, device=values.device)
        return values ^ masks[_drawn(values, 8, generator)]
    if kind == "exponent-flip":
        return values ^ (1 << 6)
    if kind == "imprecise":
        return values & (-1 << 4)
    if kind == "negated":
        return values.neg().where(values > -128, torch.full_like(values, 127))
    if kind == "random":
        low, high = int(values.min()), int(values.max())
        return (low + _drawn(values, high - low + 1, generator)).to(torch.int8)
    return torch.full_like(values, {"zero": 0, "nan": -128, "inf": 127}[kind])


def _drawn(values: Tensor, below: int, generator: torch.Generator) -> Tensor:
    drawn = torch.randint(below, values.shape, generator=generator, device=generator.device)
    return drawn.to(values.device)


def strike(values: Tensor, kind: str, count: int, generator: torch.Generator) -> Tensor:
    """Return a copy of `values` in which `count` distinct values, all equally likely, are struck by a fault of that kind."""
    known_kind(kind)
    flat = values.detach().clone().reshape(-1)
    if not 0 <= count <= len(flat):
        raise UsageError(f"{count} faults were asked for", want=f"0 to {len(flat)}, the values there are")
    if count:
        places = torch.randperm(len(flat), generator=generator, device=generator.device)[:count].to(flat.device)
        made = struck(flat if kind == "random" else flat[places], kind, generator)
        flat[places] = made[places] if kind == "random" else made
    return flat.view(values.shape)


def count_of(share: float, total: int) -> int:
    """Return how many of `total` values a share of them is: rounded up, so that a fault is never none."""
    if not 0 <= share <= 1:
        raise UsageError(f"share is {share}", want="0 to 1: the share of the values that a fault strikes")
    return min(total, -int(-share * total // 1))
