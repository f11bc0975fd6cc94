"""Several processes (`torchrun`): each clips its own examples, the first adds the noise, and the sums are added up once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, distributed, nn


def world() -> tuple[int, int]:
    """Return the rank of this process and how many there are; (0, 1) without a process group."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over all processes, one message per dtype."""
    if world()[1] == 1:
        return
    for dtype in {tensor.dtype for tensor in tensors}:
        group = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.reshape(-1) for tensor in group])
        distributed.all_reduce(flat)
        for tensor, part in zip(group, flat.split([tensor.numel() for tensor in group]), strict=True):
            tensor.copy_(part.view_as(tensor))


def total(value: Tensor) -> Tensor:
    """Return the sum of a small tensor over all processes."""
    made = value.clone()
    add_up([made])
    return made


def same_start(tensors: Iterable[Tensor]) -> None:
    """Give all processes the first one's values."""
    if world()[1] > 1:
        for tensor in tensors:
            distributed.broadcast(tensor, 0)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside DistributedDataParallel, whose own averaging would be of unclipped gradients."""
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    assert isinstance(inner, nn.Module)
    return inner
