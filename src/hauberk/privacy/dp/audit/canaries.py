"""Canaries: records whose mark on training is as clear as a record's can be, and the model that lets a gradient be chosen."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional

from hauberk.core.data import Split
from hauberk.core.rng import generator

LOUD, SOFT = 1e6, 1e2  # gradient norms of canaries and of their companions: far above any clip, and far from each other


@dataclasses.dataclass(frozen=True)
class WhiteBox:
    """Canaries with gradients of the auditor's choice, seen at every step: the strongest adversary that DP-SGD is proven against.

    Arguments:
        canaries: each with a direction of its own (a Dirac gradient), in or out by its own coin.
        runs: trainings; each is a fresh toss of all coins.
        companions: records beside each canary whose gradients point against it. Where examples are clipped one by one they
            cancel out of the comparison; where groups are clipped together the canary turns the whole group around.
        spare: directions that nothing ever touches; they show how large the noise is.
        remove: a canary that is out is missing, instead of replaced by a record without a gradient. Then the number of records
            tells of it too.
    """

    canaries: int = 500
    runs: int = 4
    companions: int = 0
    spare: int = 0
    remove: bool = False


@dataclasses.dataclass(frozen=True)
class BlackBox:
    """Canaries that anybody could put in, judged by their loss under the finished model.

    Arguments:
        canaries: each in or out by its own coin.
        runs: trainings; each is a fresh toss of all coins.
        kind: `mislabelled` (records of the data with another label) or `noise` (uniform inputs with any label).
    """

    canaries: int = 200
    runs: int = 1
    kind: str = "mislabelled"


class ProbeModel(nn.Module):
    """A model with one more linear layer, whose output is zero and whose gradients are what the input asks for.

    Inputs are rows: the flattened sample, the number of a canary (0: none, -1: nobody), and the size of its gradient. Ordinary
    rows pass through the model; a canary's logits are constant, and its gradient is minus its size at its own weight of
    `probe`, zero everywhere else.

    Arguments:
        base: the model, classes as outputs.
        shape: of one sample.
        canaries, spare: weights of the probe that canaries have, and that nothing touches.
    """

    numbers: Tensor

    def __init__(self, base: nn.Module, shape: tuple[int, ...], canaries: int, spare: int) -> None:
        super().__init__()
        self.base, self.shape, self.spare = base, shape, spare
        self.probe = nn.Linear(canaries + spare, 1, bias=False)
        nn.init.zeros_(self.probe.weight)
        self.register_buffer("numbers", torch.arange(1, canaries + 1), persistent=False)
        self.seen: set[int] = set()

    def forward(self, rows: Tensor) -> Tensor:
        """Return logits, shape (n, classes), for rows (n, features + 2)."""
        numbers, sizes = rows[:, -2], rows[:, -1]
        if not torch._C._functorch.is_functorch_wrapped_tensor(rows):
            self.seen.update(int(one) for one in numbers.long().tolist() if one > 0)
        flags = (numbers[:, None] == self.numbers) * sizes[:, None]  # (n, canaries)
        called = self.probe(functional.pad(flags, (0, self.spare)))  # (n, 1)
        logits = self.base(rows[:, :-2].reshape(-1, *self.shape)) * (numbers == 0)[:, None]
        # The gradient of a canary's loss by its logit 0 is p - 1 = 1/classes - 1, whatever was learnt.
        silent = (called - called.detach()) * logits.shape[1] / (logits.shape[1] - 1)
        return logits + functional.pad(silent, (0, logits.shape[1] - 1))


def rows_of(x: Tensor, number: Tensor, size: Tensor) -> Tensor:
    """Return rows for a `ProbeModel`."""
    return torch.cat([x.flatten(1).float(), number[:, None].float(), size[:, None].float()], 1)


def gradient_canaries(design: WhiteBox, shape: tuple[int, ...], inside: Tensor) -> Split:
    """Return the rows of all canaries and their companions, block by block; each canary is the last of its block.

    Arguments:
        design: how many of each.
        shape: of one sample.
        inside: which canaries are in, shape (canaries,), bool.
    """
    block = design.companions + 1
    number = torch.arange(1, design.canaries + 1).repeat_interleave(block)
    last = torch.arange(block).repeat(design.canaries) == block - 1
    size = torch.where(last, -LOUD, SOFT)
    absent = last & ~inside.repeat_interleave(block)
    number, size = number.where(~absent, torch.tensor(-1)), size.where(~absent, torch.tensor(0.0))
    keep = ~absent if design.remove else torch.ones_like(absent)
    rows = rows_of(torch.zeros(len(number), *shape), number, size)[keep]
    return Split(rows, torch.zeros(len(rows), dtype=torch.long))


def input_canaries(design: BlackBox, data: Split, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return inputs and labels of black-box canaries, shapes (canaries, ...) and (canaries,)."""
    draw = generator(seed, "canaries", design.kind)
    if design.kind == "noise":
        x, _ = data.sample(256, seed, "range")
        low, high = x.amin(), x.amax()
        made = low + (high - low) * torch.rand(design.canaries, *data.shape, generator=draw, dtype=x.dtype)
        return made, torch.randint(classes, (design.canaries,), generator=draw)
    place = torch.randint(len(data), (design.canaries,), generator=draw)
    if design.canaries <= len(data):
        place = torch.randperm(len(data), generator=draw)[: design.canaries]
    x, y = data.take(place)
    return x, (y + torch.randint(1, classes, y.shape, generator=draw)) % classes
