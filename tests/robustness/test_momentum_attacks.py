"""The iterative attacks, step by step against loops of ten lines, and the settings at which they are one another."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hauberk import L1, L2, Data, Linf, Target, Threat
from hauberk.core.errors import UsageError
from hauberk.core.rng import generator
from hauberk.robustness.attack import (
    bim,
    di_fgsm,
    fgm,
    fgsm,
    mdi_fgsm,
    mi_fgsm,
    ni_fgsm,
    pgd,
    si_ni_fgsm,
    ti_fgsm,
    vmi_fgsm,
    vni_fgsm,
)
from hauberk.robustness.attack.diverse_input import shrinking
from hauberk.robustness.attack.translation_invariant import smoothed

EPS, STEPS, ALPHA = 0.15, 8, 0.15 / 8
Case = tuple[nn.Module, Tensor, Tensor]
Gradient = Callable[[Tensor], Tensor]


@pytest.fixture(scope="module")
def case(digits: Data, digits_model: nn.Module) -> Case:
    """A model in float64, where rounding decides no sign, samples it gets right, and their labels."""
    model = copy.deepcopy(digits_model).double()
    x, y = digits.test.first(40)
    right = model(x.double()).argmax(1) == y
    return model, x.double()[right], y[right]


def reference(name: str, x: Tensor, slope: Gradient) -> Iterator[Tensor]:
    """The points that each attack asks about, in order, as its paper writes the loop (Linf, decay 1)."""
    z, g, v = x, torch.zeros_like(x), torch.zeros_like(x)
    noise, taps = generator(0, name), torch.exp(-0.5 * torch.arange(-1.0, 2.0).double().div(0.6).square())
    kernel = (taps[:, None] * taps / (taps[:, None] * taps).sum())[None, None]
    for _ in range(STEPS):
        at = z + ALPHA * g if name in ("ni-fgsm", "si-ni-fgsm", "vni-fgsm") else z
        yield from [z] if at is z else [z, at]
        gradient = now = slope(at)
        if name == "si-ni-fgsm":
            yield from [at / 2, at / 4]
            gradient = (slope(at) + slope(at / 2) / 2 + slope(at / 4) / 4) / 3
        if name == "ti-fgsm":
            gradient = functional.conv2d(gradient, kernel, padding=1)
        if name in ("vmi-fgsm", "vni-fgsm"):
            low, high = (at - 1.5 * EPS).clamp(min=0).minimum(at), (at + 1.5 * EPS).clamp(max=1).maximum(at)
            near = [low + (high - low) * torch.rand(x.shape, generator=noise, dtype=x.dtype) for _ in range(4)]
            yield from near
            gradient, v = now + v, torch.stack([slope(one) for one in near]).mean(0) - now
        scaled = gradient / gradient.abs().mean((1, 2, 3), keepdim=True)
        g = gradient if name == "bim" else g + scaled
        z = (z + ALPHA * g.sign()).clamp(x - EPS, x + EPS).clamp(0, 1)
    yield z


ATTACKS: dict[str, tuple[Callable[..., Tensor], dict[str, int]]] = {
    "bim": (bim, {}), "mi-fgsm": (mi_fgsm, {}), "ni-fgsm": (ni_fgsm, {}), "ti-fgsm": (ti_fgsm, {"kernel": 3}),
    "si-ni-fgsm": (si_ni_fgsm, {"copies": 3}), "vmi-fgsm": (vmi_fgsm, {"neighbours": 4}),
    "vni-fgsm": (vni_fgsm, {"neighbours": 4}),
}


@pytest.mark.parametrize("name", list(ATTACKS))
def test_every_point_asked_about_is_that_of_the_papers_loop(name: str, case: Case) -> None:
    model, x, y = case

    def slope(z: Tensor) -> Tensor:
        z = z.clone().requires_grad_()
        return torch.autograd.grad(functional.cross_entropy(model(z), y, reduction="sum"), z)[0]

    expected = torch.cat(list(reference(name, x, slope)))
    asked: list[Tensor] = []
    hook = model.register_forward_hook(lambda _, inputs, __: asked.append(inputs[0].detach().clone()))
    attack, options = ATTACKS[name]
    target = Target(model, batch_size=1000)
    z = attack(target, x, y, Linf(EPS), steps=STEPS, early_stop=False, **options)
    hook.remove()
    seen = torch.cat(asked)
    assert seen.shape == expected.shape and target.ledger.queries == len(seen)
    assert float((seen - expected).abs().max()) <= 1e-6
    # The point of the highest loss among those that broke the sample, or else among all, is what comes back.
    points = seen.view(-1, *x.shape).transpose(0, 1)  # (n, asked, 1, 8, 8)
    inside = ((points - x[:, None]).abs().amax((2, 3, 4)) <= EPS + 1e-12) & (points.amin((2, 3, 4)) >= 0)
    inside &= points.amax((2, 3, 4)) <= 1
    with torch.no_grad():
        logits = model(points.flatten(0, 1))
        loss = functional.cross_entropy(logits, y.repeat_interleave(points.shape[1]), reduction="none").view(inside.shape)
        won = (logits.argmax(1).view(inside.shape) != y[:, None]) & inside
        loss = loss + torch.where(inside, 0, -torch.inf) + torch.where(won, 1000.0, 0.0)
        found = model(z)
        reached = functional.cross_entropy(found, y, reduction="none") + torch.where(found.argmax(1) != y, 1000.0, 0.0)
    torch.testing.assert_close(reached, loss.amax(1), rtol=0, atol=1e-9)


def test_one_step_is_fgsm(case: Case) -> None:
    model, x, y = case
    wanted = fgsm(model, x, y, Linf(0.1))
    higher = torch.stack([functional.cross_entropy(model(z), y, reduction="none") for z in (wanted, x)]).argmin(0) == 1
    assert int(higher.sum()) > 0.9 * len(x)
    for attack in (bim, mi_fgsm, ni_fgsm, di_fgsm, vmi_fgsm, vni_fgsm):
        options = {"chance": 0.0} if attack is di_fgsm else {"neighbours": 0} if attack in (vmi_fgsm, vni_fgsm) else {}
        z = attack(model, x, y, Linf(0.1), steps=1, **options)
        torch.testing.assert_close(z[higher], wanted[higher], rtol=0, atol=1e-12)


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.8), L1(3.0)], ids=lambda threat: threat.norm)
def test_settings_that_switch_the_idea_off_give_bim(threat: Threat, case: Case) -> None:
    model, x, y = case
    plain = bim(model, x, y, threat)
    same = {
        "mi": mi_fgsm(model, x, y, threat, decay=0.0), "ni": ni_fgsm(model, x, y, threat, decay=0.0),
        "di": di_fgsm(model, x, y, threat, chance=0.0), "mdi": mdi_fgsm(model, x, y, threat, chance=0.0, decay=0.0),
        "ti": ti_fgsm(model, x, y, threat, kernel=1, decay=0.0), "si": si_ni_fgsm(model, x, y, threat, copies=1, decay=0.0),
        "vmi": vmi_fgsm(model, x, y, threat, neighbours=0, decay=0.0),
        "vni": vni_fgsm(model, x, y, threat, neighbours=0, decay=0.0),
    }
    for name, z in same.items():
        assert float((z - plain).abs().max()) <= 1e-9, name
    # Equal but for rounding: the order of a processor's sums differs with where its operands lie in memory.
    for one, other in (
        (mi_fgsm(model, x, y, threat), mdi_fgsm(model, x, y, threat, chance=0.0)),
        (ni_fgsm(model, x, y, threat), vni_fgsm(model, x, y, threat, neighbours=0)),
    ):
        assert float((one - other).abs().max()) <= 1e-9


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_on_a_linear_model_the_loss_reached_is_the_closed_form(
    norm: str, linear_model: nn.Linear, linear_samples: tuple[Tensor, Tensor]
) -> None:
    """For two classes the direction is always w_other - w_y, and the ball's support function says how far it leads."""
    x, y = linear_samples
    model = nn.Linear(20, 2).double()
    with torch.no_grad():
        model.weight.copy_(linear_model.weight[:2])
        model.bias.copy_(linear_model.bias[:2])
    y = model(x).argmax(1)
    threat = Threat(norm, {"linf": 0.02, "l2": 0.05, "l1": 0.1}[norm])
    direction = (model.weight[1 - y] - model.weight[y]).detach()
    best = threat.within((0.0, 1.0)).around(x).maximise(direction)
    for attack in (bim, mi_fgsm, ni_fgsm, si_ni_fgsm, vmi_fgsm):
        z = attack(model, x, y, threat, early_stop=False, steps=40)
        gain, most = (((point - x) * direction).sum(1) for point in (z, best))
        broken = model(best).argmax(1) != y
        assert int(broken.sum()) < 16
        assert float((gain / most)[~broken].min()) >= 0.995


def test_broken_samples_leave_and_a_run_for_transfer_spends_all(case: Case) -> None:
    model, x, y = case
    for attack, options in ATTACKS.values():
        target, whole = Target(model), Target(model)
        attack(target, x, y, Linf(0.3), **options)
        attack(whole, x, y, Linf(0.3), early_stop=False, **options)
        assert whole.ledger.gradients in (10 * len(x), 30 * len(x), 50 * len(x))
        assert target.ledger.gradients < 0.7 * whole.ledger.gradients


def test_a_radius_per_sample_is_a_run_per_radius(case: Case) -> None:
    model, x, y = (part[:12] if isinstance(part, Tensor) else part for part in case)
    radii = torch.tensor([0.05, 0.1, 0.2]).double()
    for attack in (bim, mi_fgsm, ni_fgsm, ti_fgsm, si_ni_fgsm):
        many = attack(model, x.repeat(3, 1, 1, 1), y.repeat(3), Linf(radii.repeat_interleave(12)))
        alone = torch.cat([attack(model, x, y, Linf(float(radius))) for radius in radii])
        torch.testing.assert_close(many, alone, rtol=0, atol=1e-9)


def test_resizing_is_bilinear_interpolation_and_padding() -> None:
    image = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for size in range(5, 10):
        for first in range(9 - size + 1):
            share, place = torch.tensor([size / 9]).double(), torch.tensor([(first + 0.5) / (10 - size)]).double()
            matrix = shrinking(share, place, 9)[:, None]
            small = functional.interpolate(image, size=(size, size), mode="bilinear", align_corners=False)
            rest = 9 - size - first
            expected = functional.pad(small, (first, rest, first, rest))
            torch.testing.assert_close(matrix @ image @ matrix.mT, expected, rtol=0, atol=1e-12)


def test_diverse_input_resizes_by_chance_keeps_shapes_and_is_seeded(digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.test.first(100)
    asked: list[Tensor] = []
    hook = digits_model.register_forward_hook(lambda _, inputs, __: asked.append(inputs[0].detach().clone()))
    z = di_fgsm(digits_model, x, y, Linf(0.1), steps=6, chance=0.3, smallest=0.6, early_stop=False, seed=1)
    hook.remove()
    assert all(one.shape == x.shape for one in asked) and len(asked) == 13
    changed = torch.stack([(asked[2 * i] != asked[2 * i + 1]).flatten(1).any(1) for i in range(6)]).double().mean()
    # Of the sizes 4.8 to 8, rounded, those from 7.5 on are the full one: 0.5 / 3.2 of the resized images do not change.
    assert abs(float(changed) - 0.3 * (1 - 0.5 / 3.2)) < 4 * (0.25 * 0.75 / 600) ** 0.5
    again = {seed: di_fgsm(digits_model, x, y, Linf(0.1), steps=6, chance=0.3, smallest=0.6, early_stop=False, seed=seed)
             for seed in (1, 2)}
    assert torch.equal(z, again[1]) and not torch.equal(z, again[2])


def test_smoothing_is_a_gaussian_of_unit_mass() -> None:
    spike = torch.zeros(1, 2, 15, 15, dtype=torch.float64)
    spike[:, 0, 7, 7] = 1.0
    spread = smoothed(spike, 7)
    assert float(spread[:, 1].abs().max()) == 0 and float(spread.sum()) == pytest.approx(1.0, abs=1e-12)
    assert float(spread[0, 0, 7, 9] / spread[0, 0, 7, 7]) == pytest.approx(float(torch.exp(torch.tensor(-0.5 * (2 / 1.4) ** 2))))
    assert float(spread[0, 0, 7, 11]) == 0


def test_on_inputs_that_are_not_images_it_says_so(linear_model: nn.Linear, linear_samples: tuple[Tensor, Tensor]) -> None:
    x, y = linear_samples
    target = Target(linear_model)
    torch.testing.assert_close(
        ti_fgsm(target, x, y, Linf(0.05)), mi_fgsm(linear_model, x, y, Linf(0.05)), rtol=0, atol=1e-12
    )
    mdi_fgsm(target, x, y, Linf(0.05))
    assert [note.split(":")[1].strip() for note in target.notices if "not images" in note] == [
        "TI-FGSM is MI-FGSM here", "diverse-input attacks are plain ones here"
    ]


def test_iterating_beats_one_step_and_keeps_up_with_pgd(digits: Data, digits_model: nn.Module) -> None:
    x, y = digits.test.first(200)

    def held(attack: Callable[..., Tensor], **options: int) -> float:
        z = attack(digits_model, x, y, Linf(0.1), **options)
        return float((digits_model(z).argmax(1) == y).double().mean())

    strongest = held(pgd)
    assert held(bim, steps=20) <= held(fgm) - 0.02
    for attack in (bim, mi_fgsm, ni_fgsm, vmi_fgsm):
        assert strongest - 0.01 <= held(attack, steps=20) <= strongest + 0.04


def test_settings_that_make_no_sense_are_refused(case: Case) -> None:
    model, x, y = case
    with pytest.raises(UsageError, match="chance is 2"):
        di_fgsm(model, x, y, Linf(0.1), chance=2.0)
    with pytest.raises(UsageError, match="smallest is 0"):
        mdi_fgsm(model, x, y, Linf(0.1), smallest=0.0)
    with pytest.raises(UsageError, match="kernel is 4"):
        ti_fgsm(model, x, y, Linf(0.1), kernel=4)
    with pytest.raises(UsageError, match="Did you mean 'margin'"):
        bim(model, x, y, Linf(0.1), loss="margins")
