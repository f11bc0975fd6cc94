"""Several processes (`torchrun`): each clips its own examples, the first adds the sums up, adds the noise once, and tells."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, distributed, nn


def world() -> tuple[int, int]:
    """Return the rank of this process and how many there are; (0, 1) without a process group."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def add_up(tensors: Sequence[Tensor], then: Callable[[Tensor], Tensor]) -> None:
    """Replace each tensor by its sum over all processes after `then` has changed it in place, which the first one alone does.

    The noise is added to the finished sum, so that its grid is that of what is let out, and no process sees the sum without.
    """
    rank, processes = world()
    if processes == 1:
        for tensor in tensors:
            then(tensor)
        return
    for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
        group = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.reshape(-1) for tensor in group]).to(_place(group[0].device))
        distributed.reduce(flat, 0)
        parts = flat.split([tensor.numel() for tensor in group])
        for tensor, part in zip(group, parts, strict=True):
            if rank == 0:
                then(part.view_as(tensor))
        distributed.broadcast(flat, 0)
        for tensor, part in zip(group, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def count(number: int) -> int:
    """Return the sum of a whole number over all processes."""
    held = torch.tensor([number])
    if world()[1] > 1:
        held = held.to(_place(held.device))
        distributed.all_reduce(held)
    return int(held)


def first_ones(tensors: Iterable[Tensor]) -> None:
    """Give the tensors of all processes the first one's values, in place."""
    if world()[1] > 1:
        for tensor in tensors:
            sent = tensor.to(_place(tensor.device))
            distributed.broadcast(sent, 0)
            tensor.copy_(sent)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside DistributedDataParallel, whose own averaging would be of unclipped gradients."""
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    assert isinstance(inner, nn.Module)
    return inner


def _place(device: torch.device) -> torch.device:
    # NCCL carries nothing that lies in the memory of the CPU.
    return torch.device("cuda") if distributed.get_backend() == "nccl" and device.type == "cpu" else device
