"""PGD: the best iterate, the last one looked at, the active set, and losses that scale cannot blind."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hauberk import L0, L2, Data, Linf, Target
from hauberk.robustness.attack import fgm, pgd, square


class Scaled(nn.Module):
    """A model whose logits are multiplied: the same labels, another softmax."""

    def __init__(self, model: nn.Module, factor: float) -> None:
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) * self.factor


def held(model: nn.Module, z: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model(z).argmax(1) == y).double().mean())


@pytest.fixture(scope="module")
def sample(digits: Data) -> tuple[Tensor, Tensor]:
    return digits.test.first(200)


def test_the_point_after_the_last_step_is_looked_at(digits_model: nn.Module, sample: tuple[Tensor, Tensor]) -> None:
    x, y = sample
    target = Target(digits_model)
    one = pgd(target, x, y, Linf(0.2), steps=1, random_start=False)
    assert held(digits_model, one, y) == held(digits_model, fgm(digits_model, x, y, Linf(0.2)), y) < 0.2
    right = int((digits_model(x).argmax(1) == y).sum())
    assert (target.ledger.queries, target.ledger.gradients) == (len(x) + right, len(x))


def test_broken_samples_leave_the_batch(digits_model: nn.Module, sample: tuple[Tensor, Tensor]) -> None:
    x, y = sample
    rows: list[int] = []
    hook = digits_model.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    z = pgd(digits_model, x, y, Linf(0.15))
    hook.remove()
    assert rows[0] == 200 and rows == sorted(rows, reverse=True)
    left = held(digits_model, z, y)
    assert rows[-1] == round(left * 200) and sum(rows) < 0.65 * 41 * 200
    whole = pgd(digits_model, x, y, Linf(0.15), early_stop=False)
    assert abs(held(digits_model, whole, y) - left) <= 0.01


def test_without_early_stop_the_highest_loss_is_returned(digits_model: nn.Module, sample: tuple[Tensor, Tensor]) -> None:
    x, y = sample
    loss = nn.CrossEntropyLoss(reduction="none")
    seen: list[Tensor] = []
    hook = digits_model.register_forward_hook(lambda _, inputs, out: seen.append(loss(out.detach(), y)))
    z = pgd(digits_model, x, y, L2(0.7), early_stop=False, steps=12)
    hook.remove()
    assert len(seen) == 13
    with torch.no_grad():
        logits = digits_model(z)
    never = logits.argmax(1) == y
    torch.testing.assert_close(loss(logits, y)[never], torch.stack(seen).amax(0)[never])


@pytest.mark.parametrize("factor", [10.0, 1000.0])
def test_the_margin_loss_is_not_blinded_by_the_scale_of_the_logits(
    factor: float, digits_model: nn.Module, sample: tuple[Tensor, Tensor]
) -> None:
    x, y = sample
    plain = held(digits_model, pgd(digits_model, x, y, Linf(0.15), loss="margin"), y)
    scaled = held(digits_model, pgd(Scaled(digits_model, factor), x, y, Linf(0.15), loss="margin"), y)
    assert abs(scaled - plain) <= 0.01
    if factor == 1000.0:  # cross-entropy has no gradient left there: the reason for the margin loss
        assert held(digits_model, pgd(Scaled(digits_model, factor), x, y, Linf(0.15)), y) > plain + 0.3


def test_it_is_no_weaker_than_a_search_without_gradients(digits_model: nn.Module, sample: tuple[Tensor, Tensor]) -> None:
    x, y = sample
    for threat in (Linf(0.1), L2(0.7)):
        assert held(digits_model, pgd(digits_model, x, y, threat), y) <= held(
            digits_model, square(digits_model, x, y, threat, queries=500), y
        ) + 0.02
    # L0: one step to the best point is beaten as well.
    assert held(digits_model, pgd(digits_model, x, y, L0(4)), y) < held(digits_model, fgm(digits_model, x, y, L0(4)), y)


def test_a_radius_per_sample_is_as_good_as_a_run_per_radius(digits_model: nn.Module, sample: tuple[Tensor, Tensor]) -> None:
    x, y = (part[:60] for part in sample)
    radii = (0.05, 0.1, 0.2)
    many = pgd(digits_model, x.repeat(3, 1, 1, 1), y.repeat(3), Linf(torch.tensor(radii).repeat_interleave(60)))
    for part, radius in enumerate(radii):
        together = held(digits_model, many[60 * part : 60 * part + 60], y)
        assert abs(together - held(digits_model, pgd(digits_model, x, y, Linf(radius)), y)) <= 2 / 60


def test_gradients_that_are_not_numbers_do_not_end_the_search() -> None:
    class Spiky(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            # sqrt at zero has an infinite slope, and infinity times zero is not a number.
            side = (x[:, :1].clamp(min=0) * 0).sqrt() + x[:, 1:2]
            return torch.cat([side, 0.6 - side], 1)

    x, y = torch.tensor([[0.5, 0.7], [0.2, 0.1]]), torch.tensor([0, 1])
    z = pgd(Spiky(), x, y, Linf(0.5))
    assert bool((Spiky()(z).argmax(1) != y).all())


def test_a_block_without_gradients_does_not_switch_the_attack_off(digits_model: nn.Module, sample: tuple[Tensor, Tensor]) -> None:
    x, y = (part[:20] for part in sample)
    wanted = pgd(digits_model, x, y, Linf(0.15))
    with torch.no_grad():
        assert torch.equal(pgd(digits_model, x, y, Linf(0.15)), wanted)
    with torch.inference_mode():
        assert torch.equal(pgd(digits_model, x.clone(), y.clone(), Linf(0.15)), wanted)
