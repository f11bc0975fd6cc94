"""Models made for one batch size: inputs go through in parts of that size, the last part filled up."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from hauberk.core.errors import ModelError


def in_parts(x: Tensor, size: int, ask: Callable[[Tensor], Tensor]) -> Tensor:
    """Return what `ask` answers to x, shape (n, ...), asked in parts of exactly `size` samples.

    The last part is filled with copies of its last sample, whose answers are dropped, so that gradients are those of a model
    that takes any batch. An empty x is answered with no rows.
    """
    answers = []
    for part in x.split(size) if len(x) else (x,):
        missing = size - len(part)
        if missing:
            filler = part[-1:].detach() if len(part) else part.new_zeros((1, *part.shape[1:]))
            part = torch.cat([part, filler.expand(missing, *part.shape[1:])])
        answer = ask(part)
        if answer.ndim == 0 or len(answer) != size:
            raise ModelError(f"the model answered shape {tuple(answer.shape)} to {size} samples", want=f"({size}, classes)")
        answers.append(answer[: size - missing])
    return torch.cat(answers)


class FixedBatch(nn.Module):
    """A module that was made for one batch size, made to take any.

    Arguments:
        inner: takes exactly `size` samples.
        size: the batch size it was made for.
    """

    def __init__(self, inner: nn.Module, size: int) -> None:
        super().__init__()
        self.inner, self.size = inner, size

    def forward(self, x: Tensor) -> Tensor:
        """Return the answers to x, shape (n, ...), for any n."""
        return in_parts(x, self.size, self.inner)


def whole_batches(batch_size: int, size: int) -> int:
    """Return the largest multiple of `size` up to `batch_size`; `size` itself when it is larger."""
    return max(batch_size // size, 1) * size
