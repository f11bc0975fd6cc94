"""The worst bits: the fewest flips that ruin a model, found by progressive search along the gradient of the weights."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from hauberk.core import progress
from hauberk.core.errors import ModelError, UsageError
from hauberk.core.target import Target, as_target
from hauberk.integrity.faults.bits import LAYOUT, Flip, bit_mask, place_of
from hauberk.integrity.faults.campaign import refuse, right_answers
from hauberk.integrity.faults.packed import packed_weights

_FORMATS = ("own", "int8")
# A gain is only trusted this many largest weights, as they were before any flip, away: the slope says nothing of a leap to 1e38.
_REACH = 64.0


@dataclasses.dataclass(frozen=True)
class FlipSearch:
    """What a search for the worst bits found.

    Arguments:
        flips: in the order they were chosen.
        accuracy: before any flip, then after each; length flips + 1.
        reached: whether the accuracy fell to `until`.
    """

    flips: tuple[Flip, ...]
    accuracy: tuple[float, ...]
    reached: bool


def fewest_flips(
    model: Target | nn.Module, x: Tensor, y: Tensor, *, until: float, flips: int = 20, candidates: int = 4,
    stored: str = "own", exponent: bool = True,
) -> FlipSearch:
    """Flip, one after the other, the bit that hurts most, until the accuracy falls; then put everything back.

    In every round the gradient of the loss towards the weights ranks the bits of each layer by what the linearised loss gains;
    the best of each layer are tried, and the flip after which the loss is highest is kept (progressive bit search).

    Source: Rakin et al. 2019, arXiv:1903.12269.

    Arguments:
        model: with GRADIENT access; its weights are changed during the search and put back bit by bit.
        x, y: samples, shape (n, ...), and true labels, shape (n,): what the adversary searches on. Judge the flips on others.
        until: the accuracy to fall to, such as that of guessing.
        flips: the most that are tried.
        candidates: of each layer that are tried in a round; each costs one pass over x.
        stored: how the weights stand in memory: `own`, the dtype of the model; or `int8`, a whole number times one scale per
            weight tensor, to which the model is rounded first (the accuracy before any flip is that of the rounded model).
        exponent: False leaves the exponents alone, which range checks would notice. Without meaning for int8.

    Raises:
        ModelError: for a model without floating weights in matrices or kernels.
        UsageError: for another storage, or an accuracy outside 0 to 1.
    """
    refuse(x, y)
    if stored not in _FORMATS:
        raise UsageError(f"stored is '{stored}'", want=" | ".join(_FORMATS))
    if not 0 <= until <= 1:
        raise UsageError(f"until is {until}", want="an accuracy from 0 to 1")
    target = as_target(model)
    weights = {name: value for name, value in target.module.named_parameters() if value.ndim > 1 and value.is_floating_point()}
    packed = packed_weights(target.module)
    if not weights or packed:
        what = f"keeps the weight '{next(iter(packed))}' packed" if packed else "has no floating-point weights"
        raise ModelError(
            f"the model {what}", want="floating-point parameters of two axes or more",
            fix="Search the model before it is quantised, with stored='int8'; packed integers have no gradient",
        )
    with _kept(weights):
        words = {name: _Words(value, stored, exponent) for name, value in weights.items()}
        chosen: list[Flip] = []
        accuracy = [_accuracy(target, x, y)]
        taken: set[tuple[str, int, int]] = set()
        for _ in progress.track(range(flips), "worst bits"):
            if accuracy[-1] <= until:
                break
            slopes = _slopes(target, x, y, weights)
            best, worst = None, -torch.inf
            for name, part in words.items():
                for position, bit in part.candidates(slopes[name], candidates, {one[1:] for one in taken if one[0] == name}):
                    flip = part.flip(name, position, bit)
                    loss = _loss(target, x, y)
                    part.flip(name, position, bit)
                    if loss > worst:
                        best, worst = (name, position, bit, flip), loss
            if best is None:
                break
            name, position, bit, flip = best
            words[name].flip(name, position, bit)
            taken.add((name, position, bit))
            chosen.append(flip)
            accuracy.append(_accuracy(target, x, y))
    return FlipSearch(tuple(chosen), tuple(accuracy), accuracy[-1] <= until)


@contextlib.contextmanager
def applied(module: nn.Module, search: FlipSearch) -> Iterator[None]:
    """Put the found values into the weights for the block, for judging them on other samples; then put everything back."""
    weights = dict(module.named_parameters())
    with _kept({name: weights[name] for name in {flip.parameter for flip in search.flips}}), torch.no_grad():
        for flip in search.flips:
            weight = weights[flip.parameter]
            weight[place_of(flip.position, weight.shape)] = flip.after
        yield


class _Words:
    """The weights of one tensor as they stand in memory: which bits there are, and what flipping one makes of the weight."""

    def __init__(self, value: Tensor, stored: str, exponent: bool) -> None:
        self.value = value
        self.scale = None
        if stored == "int8":
            self.scale = value.detach().abs().max().clamp(min=1e-12) / 127
            self.words = (value.detach() / self.scale).round().clamp(-127, 127).to(torch.int8)
            self.bits = list(range(8))
            with torch.no_grad():
                value.copy_(self.words * self.scale)
        else:
            kind, high, low = LAYOUT[value.dtype]
            self.words = value.detach().contiguous().view(kind)
            self.bits = [bit for bit in range(low + high + 1) if exponent or not low <= bit < low + high]
        self.masks = [bit_mask(self.words.dtype, bit) for bit in self.bits]
        self.reach = min(_REACH * float(value.detach().double().abs().max().clamp(min=1e-12)), torch.finfo(torch.float64).max)

    def decoded(self, words: Tensor) -> Tensor:
        return words.to(self.value.dtype) * self.scale if self.scale is not None else words.view(self.value.dtype)

    def candidates(self, slope: Tensor, count: int, taken: set[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return the (position, bit) that gain most by the slope, one per position at most."""
        # In float64: what a flip makes of a weight may be as far away as the dtype goes.
        flat, now = slope.reshape(-1).double(), self.value.detach().reshape(-1).double()
        best, which = torch.full_like(flat, -torch.inf), torch.zeros_like(flat, dtype=torch.long)
        words = self.words.reshape(-1)
        for index, (bit, mask) in enumerate(zip(self.bits, self.masks, strict=True)):
            change = self.decoded(words ^ mask).double() - now
            gain = flat * change.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).clamp(-self.reach, self.reach)
            for position, old in taken:  # to flip a bit back gains nothing new
                if old == bit:
                    gain[position] = -torch.inf
            better = gain > best
            best, which = torch.where(better, gain, best), torch.where(better, torch.full_like(which, index), which)
        top = best.topk(min(count, len(best)))
        good = top.indices[top.values > 0].tolist()
        return [(place, self.bits[int(which[place])]) for place in good]

    def flip(self, name: str, position: int, bit: int) -> Flip:
        place = place_of(position, self.value.shape)
        with torch.no_grad():
            before = float(self.value[place])
            self.words[place] ^= bit_mask(self.words.dtype, bit)
            self.value[place] = self.decoded(self.words[place].reshape(1))[0]
            return Flip(name, position, bit, before, float(self.value[place]))


@contextlib.contextmanager
def _kept(weights: dict[str, nn.Parameter]) -> Iterator[None]:
    saved = {name: value.detach().clone() for name, value in weights.items()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in weights.items():
                value.copy_(saved[name])


def _slopes(target: Target, x: Tensor, y: Tensor, weights: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    """Return the gradient of the mean loss towards each weight tensor; nothing is left on the weights."""
    total = {name: torch.zeros_like(value, dtype=torch.float32) for name, value in weights.items()}

    def add(part: Tensor, labels: Tensor) -> None:
        with torch.enable_grad():
            logits = target.predictor(part)
            loss = functional.cross_entropy(logits.float(), labels, reduction="sum")
            found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        for name, slope in zip(weights, found, strict=True):
            if slope is not None:
                total[name] += slope.float().nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)

    frozen = [value for value in weights.values() if not value.requires_grad]
    for value in frozen:
        value.requires_grad_(True)
    try:
        _in_parts(target, x, y, add)
    finally:
        for value in frozen:
            value.requires_grad_(False)
    return total


def _in_parts(target: Target, x: Tensor, y: Tensor, act: Callable[[Tensor, Tensor], None]) -> None:
    for part, labels in zip(x.split(target.batch_size), y.split(target.batch_size), strict=True):
        act(part, labels)


def _loss(target: Target, x: Tensor, y: Tensor) -> float:
    """Return the mean loss; an answer that is not finite counts as if every class but the true one were certain."""
    logits = target.logits(x).double()
    value = functional.cross_entropy(logits, y, reduction="none")
    return float(value.nan_to_num(nan=1e6, posinf=1e6).clamp(max=1e6).mean())


def _accuracy(target: Target, x: Tensor, y: Tensor) -> float:
    return float(right_answers(target.logits(x), y).double().mean())
