"""What a budget that ends an attack leaves: points in the ball that reach the goal, and the clean inputs elsewhere."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hauberk import L2, Access, Budget, Linf, Target
from hauberk.core.errors import BudgetExceeded
from hauberk.robustness.attack import apgd, auto_attack, hop_skip_jump, square


@pytest.fixture
def line() -> nn.Module:
    """Two classes by the sign of the sum of eight features less four: the nearest point of the border is known."""
    net = nn.Linear(8, 2)
    with torch.no_grad():
        net.weight[:] = torch.stack([-torch.ones(8), torch.ones(8)])
        net.bias[:] = torch.tensor([4.0, -4.0])
    return net


def samples() -> tuple[torch.Tensor, torch.Tensor]:
    x = 0.5 + torch.linspace(0.02, 0.3, 6)[:, None].expand(6, 8) * torch.tensor([1.0, -1, 1, -1, 1, -1])[:, None]
    return x.contiguous(), torch.tensor([1, 0, 1, 0, 1, 0])


def test_what_was_found_comes_with_the_error(line: nn.Module) -> None:
    """Distances to the border are sqrt(8) times 0.02 to 0.3: at 0.5 the first three can be turned, and the last two cannot."""
    x, y = samples()
    threat = L2(0.5, bounds=(0, 1))
    outside = Target(line).seen_at(Access.LABEL, budget=Budget(queries=3000))
    with pytest.raises(BudgetExceeded, match=r"kept in error\.partial") as told:
        hop_skip_jump(outside, x, y, threat, queries=5000)
    partial = told.value.partial
    assert partial.shape == x.shape and partial.dtype == x.dtype and bool(threat.contains(partial, x).all())
    won = line(partial).argmax(1) != y
    assert won[:3].all() and not won[4:].any()
    assert torch.equal(partial[~won], x[~won])  # unfinished samples are as they were
    assert outside.ledger.queries <= 3000


def test_finished_parts_and_those_not_begun_are_there(line: nn.Module) -> None:
    """Batches of two: the first part is done, the budget ends in the second, and the third was not begun."""
    x, y = samples()
    x = x[[0, 1, 0, 1, 0, 1]]
    threat = Linf(0.3, bounds=(0, 1))
    free = Target(line, batch_size=2)
    square(free, x[:2], y[:2], threat, queries=50)
    spent = free.ledger.queries
    limited = Target(line, batch_size=2, budget=Budget(queries=spent + 2))
    with pytest.raises(BudgetExceeded) as told:
        square(limited, x, y, threat, queries=50)
    won = line(told.value.partial).argmax(1) != y
    assert won[:2].all() and not won[4:].any()
    assert torch.equal(told.value.partial[4:], x[4:])


def test_an_attack_that_runs_others_keeps_what_they_found(line: nn.Module) -> None:
    x, y = samples()
    threat = Linf(0.1, bounds=(0, 1))
    free = Target(line)
    apgd(free, x, y, threat, steps=20)
    target = Target(line, budget=Budget(gradients=free.ledger.gradients // 2))
    with pytest.raises(BudgetExceeded) as told:
        auto_attack(target, x, y, threat)
    assert (line(told.value.partial).argmax(1) != y)[:2].all()
    assert str(told.value).count("error.partial") == 1
