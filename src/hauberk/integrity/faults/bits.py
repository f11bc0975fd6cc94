"""Faults of memory: random bits of the weights flipped, and put back exactly."""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from hauberk.core.errors import ModelError, UsageError, nearest
from hauberk.integrity.faults.packed import Packed, packed_weights

# dtype -> (integer of the same width, bits of the exponent, bits of the mantissa); int8: all but the sign
LAYOUT = {
    torch.float64: (torch.int64, 11, 52), torch.float32: (torch.int32, 8, 23), torch.float16: (torch.int16, 5, 10),
    torch.bfloat16: (torch.int16, 8, 7), torch.int8: (torch.int8, 0, 7),
}
PARTS = ("any", "sign", "exponent", "mantissa")


@dataclasses.dataclass(frozen=True)
class Flip:
    """One flipped bit: the parameter, the place in it, and the bit, 0 being the lowest of the mantissa."""

    parameter: str
    position: int
    bit: int
    before: float
    after: float


@contextlib.contextmanager
def flipped_bits(module: nn.Module, count: int, *, generator: torch.Generator, part: str = "any") -> Iterator[list[Flip]]:
    """Flip `count` distinct random bits of the weights for the block; afterwards the weights are what they were, bit by bit.

    A context manager: `with flipped_bits(module, 3, generator=g) as flips: ...`. Every bit of every floating parameter, and of
    int8 weights, is equally likely, within the part named: so faults strike a memory. Tied weights count once; quantised layers
    give what they keep packed. The weights are put back also when the block ends in an error.

    Arguments:
        module: changed in place during the block.
        count: bits to flip.
        generator: of the choice.
        part: `any`, `sign`, `exponent` or `mantissa`.

    Returns:
        A context manager that gives what was flipped, in the order drawn.

    Raises:
        ModelError: for a module without floating parameters.
        UsageError: for an unknown part, or more bits than there are.
    """
    with flipped(module, drawn_bits(module, count, generator=generator, part=part)) as flips:
        yield flips


def drawn_bits(module: nn.Module, count: int, *, generator: torch.Generator, part: str = "any") -> list[tuple[str, int, int]]:
    """Return `count` distinct bits, all equally likely, as (parameter, position, bit); see `flipped_bits`."""
    weights = _weights(module)
    if not weights:
        raise ModelError("the model has no floating-point weights", want="parameters of a floating type, or int8")
    return _draw(weights, count, part, generator)


@contextlib.contextmanager
def flipped(module: nn.Module, bits: Sequence[tuple[str, int, int]]) -> Iterator[list[Flip]]:
    """Flip those bits of (parameter, position, bit) for the block, and put the weights back bit by bit."""
    packed = packed_weights(module)
    weights = _weights(module, packed)
    memory = {name: value.view(LAYOUT[value.dtype][0]) for name, value in weights.items()}  # the same bits, as integers
    saved: dict[tuple[str, int], int] = {}
    flips = []
    touched = [packed[name] for name in dict.fromkeys(name for name, _, _ in bits) if name in packed]
    try:
        for name, position, bit in bits:
            words, place = memory[name], place_of(position, weights[name].shape)
            word, before = int(words[place]), float(weights[name][place])
            saved.setdefault((name, position), word)
            words[place] = word ^ bit_mask(words.dtype, bit)
            flips.append(Flip(name, position, bit, before, float(weights[name][place])))
        for one in touched:
            one.write()
        yield flips
    finally:
        for (name, position), word in saved.items():
            memory[name][place_of(position, weights[name].shape)] = word
        for one in touched:
            one.restore()


def bit_count(module: nn.Module, part: str = "any") -> int:
    """Return how many bits of the weights `flipped_bits` chooses from, in the part named."""
    return sum(value.numel() * len(_bits(value.dtype, part)) for value in _weights(module).values())


def _weights(module: nn.Module, packed: Mapping[str, Packed] | None = None) -> dict[str, Tensor]:
    """Return the floating and int8 parameters, and the int8 buffers and packed weights in which quantised models keep theirs."""
    held = {name: value.detach() for name, value in module.named_parameters() if value.dtype in LAYOUT}
    held |= {name: value for name, value in module.named_buffers() if value.dtype is torch.int8}
    held |= {name: one.codes for name, one in (packed_weights(module) if packed is None else packed).items()}
    distinct = set(map(id, once(list(held.values()))))
    return {name: value for name, value in held.items() if id(value) in distinct}


def once(values: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors that hold anything, those that share their memory (tied weights) once."""
    found: dict[tuple[int, int], Tensor] = {}
    for value in values:
        if value.numel():
            found.setdefault((value.data_ptr(), value.numel()), value)
    return list(found.values())


def _draw(weights: dict[str, Tensor], count: int, part: str, generator: torch.Generator) -> list[tuple[str, int, int]]:
    """Return `count` distinct (parameter, position, bit), all equally likely."""
    if part not in PARTS:
        raise UsageError(f"part is '{part}'", want=" | ".join(PARTS), fix=nearest(part, PARTS))
    names = list(weights)
    bits = [_bits(weights[name].dtype, part) for name in names]
    ends = list(itertools.accumulate(weights[name].numel() * len(own) for name, own in zip(names, bits, strict=True)))
    total = ends[-1]
    if not 0 <= count <= total:
        raise UsageError(f"{count} flips were asked for", want=f"0 to {total}, the bits there are")
    drawn: dict[int, None] = {}  # keeps the order
    if count > total // 2:
        drawn = dict.fromkeys(torch.randperm(total, generator=generator, device=generator.device)[:count].tolist())
    while len(drawn) < count:
        # Drawn again where taken: much less than a permutation of all bits of a large model.
        more = torch.randint(total, (count - len(drawn),), generator=generator, device=generator.device)
        drawn.update(dict.fromkeys(more.tolist()))
    plan = []
    for flat in drawn:
        which = bisect.bisect_right(ends, flat)
        inside = flat - (ends[which - 1] if which else 0)
        plan.append((names[which], inside // len(bits[which]), bits[which][inside % len(bits[which])]))
    return plan


def _bits(dtype: torch.dtype, part: str) -> range:
    _, exponent, mantissa = LAYOUT[dtype]
    ends = {
        "any": (0, mantissa + exponent + 1), "mantissa": (0, mantissa), "exponent": (mantissa, mantissa + exponent),
        "sign": (mantissa + exponent, mantissa + exponent + 1),
    }
    return range(*ends[part])


def place_of(position: int, shape: torch.Size) -> tuple[int, ...]:
    """Return the index of a position counted row by row, whatever the strides."""
    place = []
    for side in reversed(shape):
        position, here = divmod(position, side)
        place.append(here)
    return tuple(reversed(place))


def bit_mask(dtype: torch.dtype, bit: int) -> int:
    """Return the integer of that dtype in which that bit alone is set."""
    width = torch.iinfo(dtype).bits
    # The highest bit is the sign of the integer.
    return -(1 << bit) if bit == width - 1 else 1 << bit
