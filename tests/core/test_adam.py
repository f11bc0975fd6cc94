"""Adam by the fused kernel against torch's own optimiser."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from hauberk.core.adam import FusedAdam


def parameters() -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    sizes = [((5, 7), torch.float32), ((3,), torch.float64), ((2, 2, 9), torch.float32), ((4,), torch.float32)]
    return [torch.randn(size, generator=draw, dtype=dtype).requires_grad_() for size, dtype in sizes]


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_its_steps_are_those_of_torch_to_the_bit(decay: float) -> None:
    ours, theirs, draw = parameters(), parameters(), torch.Generator().manual_seed(1)
    one = FusedAdam(ours, lr=0.02, weight_decay=decay)
    other = torch.optim.Adam(theirs, lr=0.02, weight_decay=decay, fused=True)
    for step in range(12):
        for place, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            # The last never has a gradient, the third not always: neither its value nor its count of steps moves then.
            a.grad = None if place == 3 or (place == 2 and step % 3) else torch.randn(a.shape, generator=draw, dtype=a.dtype)
            b.grad = None if a.grad is None else a.grad.clone()
        one.step()
        other.step()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert torch.equal(ours[3], parameters()[3]) and not torch.equal(ours[2], parameters()[2])
    one.zero_grad()
    assert all(a.grad is None for a in ours)


@pytest.mark.slow
def test_references_are_trained_without_loading_the_compiler() -> None:
    code = (
        "import sys, torch\nfrom torch import nn\nfrom hauberk import Schedule\n"
        "from hauberk.privacy.membership import train_references\n"
        "train_references(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), (torch.randn(8, 3), torch.arange(8) % 2),"
        " count=2, schedule=Schedule(epochs=1))\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
