"""Admix, SIA, BSR, PGN against loops of ten lines, the settings at which they are MI-FGSM, and ensembles in closed form."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from scipy.fft import dct
from torch import Tensor, nn
from torch.nn import functional

from hauberk import L2, Data, Linf, Schedule, Target, fit
from hauberk.core.errors import DataError, ModelError, UsageError
from hauberk.core.rng import generator
from hauberk.robustness.attack import admix, bim, bsr, ensemble, mi_fgsm, pgd, pgn, random_noise, sia
from hauberk.robustness.attack.bsr import shuffled
from hauberk.robustness.attack.pieces import cosines, cuts, resampling, rotated
from hauberk.robustness.attack.sia import restructured

EPS, STEPS, ALPHA = 0.15, 5, 0.15 / 5
Case = tuple[nn.Module, Tensor, Tensor]
IDENTITY = {admix: {"share": 0.0, "copies": 1, "neighbours": 1}, sia: {"copies": 1}, bsr: {"copies": 1}, pgn: {"neighbours": 0}}


@pytest.fixture(scope="module")
def case(digits: Data, digits_model: nn.Module) -> Case:
    """A model in float64, where rounding decides no sign, samples it gets right, and their labels."""
    model = copy.deepcopy(digits_model).double()
    x, y = digits.test.first(30)
    right = model(x.double()).argmax(1) == y
    return model, x.double()[right], y[right]


@pytest.fixture(scope="module")
def mlp(digits: Data) -> nn.Module:
    """Another model of the same digits."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 10))
    fit(model, digits.train, schedule=Schedule(epochs=15, batch_size=32))
    return model


def held(model: nn.Module, z: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model(z).argmax(1) == y).double().mean())


def reference(name: str, x: Tensor, slope: Callable[[Tensor], Tensor], pool: Tensor) -> Iterator[Tensor]:
    """The points that each attack asks about, in order, as its paper writes the loop (Linf, decay 1)."""
    z, g = x, torch.zeros_like(x)
    noise = generator(0, name)
    for _ in range(STEPS):
        if name in ("admix", "pgn"):
            yield z
        if name == "admix":
            mixed = [(z + 0.2 * pool) / 2**power for power in range(3)]
            yield from mixed
            gradient = sum(slope(one) / 2**power for power, one in enumerate(mixed)) / 3
        elif name == "pgn":
            gradient = torch.zeros_like(z)
            low, high = (z - 3 * EPS).clamp(min=0).minimum(z), (z + 3 * EPS).clamp(max=1).maximum(z)
            for _ in range(4):
                near = low + (high - low) * torch.rand(x.shape, generator=noise, dtype=x.dtype)
                first = slope(near)
                down = near - ALPHA * first / first.abs().mean((1, 2, 3), keepdim=True)
                yield from (near, down)
                gradient = gradient + (0.5 * first + 0.5 * slope(down)) / 4
        else:
            leaf = z.clone().requires_grad_()
            change = (lambda one: restructured(one, 3, noise)) if name == "sia" else (lambda one: shuffled(one, 2, 24.0, noise))
            views = [leaf, change(leaf), change(leaf)]
            yield from (view.detach() for view in views)
            parts = [torch.autograd.grad(view, leaf, slope(view.detach()), retain_graph=True)[0] for view in views]
            gradient = torch.stack(parts).mean(0)
        g = g + gradient / gradient.abs().mean((1, 2, 3), keepdim=True)
        z = (z + ALPHA * g.sign()).clamp(x - EPS, x + EPS).clamp(0, 1)
    yield z


@pytest.mark.parametrize("name", ["admix", "sia", "bsr", "pgn"])
def test_every_point_asked_about_is_that_of_the_papers_loop(name: str, case: Case) -> None:
    model, x, y = case
    pool = x[3:4].flip(3)

    def slope(z: Tensor) -> Tensor:
        z = z.clone().requires_grad_()
        return torch.autograd.grad(functional.cross_entropy(model(z), y, reduction="sum"), z)[0]

    expected = torch.cat(list(reference(name, x, slope, pool)))
    attack = {"admix": admix, "sia": sia, "bsr": bsr, "pgn": pgn}[name]
    options = {"admix": {"pool": pool, "copies": 3, "neighbours": 1}, "pgn": {"neighbours": 4}}.get(name, {"copies": 3})
    asked: list[Tensor] = []
    hook = model.register_forward_hook(lambda _, inputs, __: asked.append(inputs[0].detach().clone()))
    target = Target(model, batch_size=1000)
    attack(target, x, y, Linf(EPS), steps=STEPS, early_stop=False, **options)
    hook.remove()
    seen = torch.cat(asked)
    assert seen.shape == expected.shape and target.ledger.queries == len(seen)
    assert float((seen - expected).abs().max()) <= 1e-6


@pytest.mark.parametrize("threat", [Linf(0.1), L2(0.8)], ids=lambda threat: threat.norm)
@pytest.mark.parametrize("steps", [1, 6])
def test_where_the_change_is_the_identity_all_are_mi_fgsm(threat, steps: int, case: Case) -> None:
    model, x, y = case
    plain = mi_fgsm(model, x, y, threat, steps=steps)
    for attack, options in IDENTITY.items():
        z = attack(model, x, y, threat, steps=steps, **options)
        assert float((z - plain).abs().max()) <= 1e-9, attack.__name__
    one = pgn(model, x, y, threat, steps=steps, neighbours=1, spread=0.0, balance=0.0)
    assert float((one - plain).abs().max()) <= 1e-9
    whole = bsr(model, x, y, threat, steps=steps, blocks=1, angle=0.0, copies=3)
    assert float((whole - plain).abs().max()) <= 1e-9


def test_what_a_sample_gets_does_not_depend_on_the_batch(case: Case) -> None:
    """Draws are made for the batch as a whole, so that the same seed gives the same bits alone as in company."""
    model, x, y = case
    for attack, options in ((admix, {}), (admix, {"pool": x[:5]}), (sia, {"copies": 4}), (bsr, {"copies": 4})):
        together = attack(model, x[:8], y[:8], Linf(0.1), steps=4, early_stop=False, seed=3, **options)
        alone = torch.cat([
            attack(model, x[i : i + 1], y[i : i + 1], Linf(0.1), steps=4, early_stop=False, seed=3, **options) for i in range(8)
        ])
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)
        assert not torch.equal(together, attack(model, x[:8], y[:8], Linf(0.1), steps=4, early_stop=False, seed=4, **options))


def test_examples_made_on_one_model_fool_another(digits: Data, digits_model: nn.Module, mlp: nn.Module) -> None:
    """On images of 8 x 8 pixels the changes of blocks do not help (they leave no digit): what holds is said and no more."""
    x, y = digits.test.first(200)
    right = (digits_model(x).argmax(1) == y) & (mlp(x).argmax(1) == y)
    x, y = x[right], y[right]
    threat = Linf(0.2)
    assert held(mlp, random_noise(digits_model, x, y, threat), y) > 0.85
    for attack, most in ((bim, 0.25), (admix, 0.25), (pgn, 0.35), (sia, 0.5)):
        z = attack(digits_model, x, y, threat, early_stop=False)
        assert held(mlp, z, y) <= most, attack.__name__


def test_cuts_add_up_and_leave_no_empty_piece() -> None:
    noise = generator(0, "cuts")
    for length in (1, 2, 3, 8, 224):
        for count in (1, 2, 3, 5):
            parts = [cuts(length, count, noise) for _ in range(50)]
            assert all(sum(one) == length and min(one) >= 1 and len(one) == min(count, length) for one in parts)
    counts = np.bincount([cuts(5, 2, noise)[0] for _ in range(4000)], minlength=5)[1:]
    assert abs(counts - 1000).max() < 4 * np.sqrt(4000 * 0.25 * 0.75)


def test_lines_of_pixels_are_mapped_as_known_routines_do() -> None:
    like = torch.zeros(0, dtype=torch.float64)
    line = torch.rand(1, 1, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for size in (1, 4, 9, 11, 17):
        known = functional.interpolate(line, size=size, mode="linear", align_corners=False)[0, 0]
        torch.testing.assert_close(resampling(11, size, like) @ line[0, 0], known, rtol=0, atol=1e-12)
    for length in (1, 2, 11):
        signal = line[0, 0, :length]
        torch.testing.assert_close(
            cosines(length, like) @ signal, torch.from_numpy(dct(signal.numpy(), norm="ortho")), rtol=0, atol=1e-12
        )


def test_rotation_is_that_of_bilinear_resampling_on_smooth_images() -> None:
    grid = torch.linspace(-1, 1, 41, dtype=torch.float64)
    image = torch.exp(-4 * ((grid[:, None] - 0.25).square() + (grid + 0.1).square() / 4))[None, None]
    for degrees in (-24.0, 7.0, 24.0):
        angle = torch.tensor(degrees).deg2rad()
        turn = torch.tensor([[angle.cos(), angle.sin(), 0.0], [-angle.sin(), angle.cos(), 0.0]])
        wanted = functional.grid_sample(
            image, functional.affine_grid(turn[None].double(), [1, 1, 41, 41], align_corners=True), align_corners=True
        )
        middle = (..., slice(9, -9), slice(9, -9))  # whose corners no rotation brings in from outside
        assert float((rotated(image, degrees) - wanted)[middle].abs().max()) < 0.01
        assert float((rotated(image, -degrees) - wanted)[middle].abs().max()) > 0.05
    assert torch.equal(rotated(image, 0.0), image)


def test_shuffled_blocks_keep_every_pixel_and_move_them() -> None:
    image = torch.arange(2 * 1 * 9 * 7, dtype=torch.float64).reshape(2, 1, 9, 7)
    noise, moved = generator(0, "shuffle"), 0
    for _ in range(30):
        other = shuffled(image, 3, 0.0, noise)
        assert torch.equal(other.flatten(1).sort(1).values, image.flatten(1))
        assert torch.equal(other[1] - other[0], torch.full((1, 9, 7), 63.0, dtype=torch.float64))  # one draw for the batch
        moved += int(not torch.equal(other, image))
    assert moved >= 28


def test_every_change_of_blocks_occurs_and_is_linear_but_for_the_noise() -> None:
    draw = torch.Generator().manual_seed(0)
    image = torch.rand(1, 1, 12, 12, generator=draw, dtype=torch.float64)
    for seed in range(40):
        one, twice = (restructured(scale * image, 3, generator(seed, "x")) for scale in (1.0, 2.0))
        assert one.shape == image.shape and float((twice - 2 * one).abs().max()) <= 1e-12
        assert not torch.equal(one, image)


def test_inputs_that_are_not_images_are_told(linear_model: nn.Linear, linear_samples: tuple[Tensor, Tensor]) -> None:
    x, y = linear_samples
    plain = mi_fgsm(linear_model, x, y, Linf(0.05))
    for attack, word in ((sia, "SIA is MI-FGSM"), (bsr, "BSR is MI-FGSM"), (admix, "give Admix a pool")):
        target = Target(linear_model)
        z = attack(target, x, y, Linf(0.05), **({"copies": 1} if attack is admix else {}))
        assert any(word in note for note in target.notices)
        torch.testing.assert_close(z, plain, rtol=0, atol=1e-12)


def test_settings_that_make_no_sense_are_refused(case: Case) -> None:
    model, x, y = case
    with pytest.raises(UsageError, match="blocks is 0"):
        sia(model, x, y, Linf(0.1), blocks=0)
    with pytest.raises(UsageError, match="angle is 90"):
        bsr(model, x, y, Linf(0.1), angle=90.0)
    with pytest.raises(UsageError, match="balance is 2"):
        pgn(model, x, y, Linf(0.1), balance=2.0)
    with pytest.raises(DataError, match="pool has shape"):
        admix(model, x, y, Linf(0.1), pool=x[:, :, :4])
    with pytest.raises(DataError, match="pool has shape"):
        admix(model, x, y, Linf(0.1), pool=x[:0])


# --- ensembles ---


def test_an_ensemble_is_the_average_it_says(case: Case, mlp: nn.Module) -> None:
    model, x, y = case
    other = copy.deepcopy(mlp).double()
    a, b = model(x), other(x)
    log_a, log_b = a.log_softmax(1), b.log_softmax(1)
    torch.testing.assert_close(ensemble([model, other])(x), (a + b) / 2)
    torch.testing.assert_close(ensemble([model, other], weights=[3, 1])(x), 0.75 * a + 0.25 * b)
    torch.testing.assert_close(
        ensemble([model, other], average="probabilities", weights=[3, 1])(x).exp(), 0.75 * log_a.exp() + 0.25 * log_b.exp()
    )
    mean = ensemble([model, other], average="loss")(x)
    loss = (functional.cross_entropy(a, y, reduction="none") + functional.cross_entropy(b, y, reduction="none")) / 2
    torch.testing.assert_close(functional.cross_entropy(mean, y, reduction="none") - mean.logsumexp(1), loss)
    alone = ensemble([model, other], weights=[1, 0], average="probabilities")(x)
    torch.testing.assert_close(alone, log_a)


def test_an_ensemble_reads_probabilities_and_single_columns(case: Case) -> None:
    model, x, _ = case
    soft = nn.Sequential(model, nn.Softmax(1))
    torch.testing.assert_close(ensemble([soft, model], average="probabilities")(x), model(x).log_softmax(1))
    column = nn.Sequential(nn.Flatten(), nn.Linear(64, 1)).double()
    asked = Target(column, outputs="logits")  # one column may be either: a target states which
    answer = ensemble([asked, asked])(x)
    assert asked.ledger.queries == 2 * len(x)
    torch.testing.assert_close(answer[:, 1] - answer[:, 0], column(x)[:, 0])
    with pytest.raises(ModelError, match=r"\[10, 2\] classes"):
        ensemble([model, asked])(x)


def test_an_attack_on_an_ensemble_breaks_its_members_and_leaves_them_alone(
    digits: Data, digits_model: nn.Module, mlp: nn.Module
) -> None:
    x, y = digits.test.first(100)
    members = [copy.deepcopy(digits_model), copy.deepcopy(mlp)]
    members[0].train()
    members[1].eval()
    members[1][1].train()
    modes = [[part.training for part in one.modules()] for one in members]
    before = [{name: value.clone() for name, value in one.state_dict().items()} for one in members]
    for average in ("logits", "probabilities", "loss"):
        target = Target(ensemble(members, average=average))
        z = pgd(target, x, y, Linf(0.15), early_stop=False)
        assert target.ledger.queries == 41 * 100
        one_sided = pgd(members[0], x, y, Linf(0.15), early_stop=False)
        assert held(mlp, one_sided, y) >= held(mlp, z, y) + 0.1
        assert held(digits_model, z, y) <= held(digits_model, pgd(members[1], x, y, Linf(0.15), early_stop=False), y) - 0.1
    assert [[part.training for part in one.modules()] for one in members] == modes
    assert all(torch.equal(value, old[name]) for one, old in zip(members, before, strict=True)
               for name, value in one.state_dict().items())
    assert all(parameter.grad is None for one in members for parameter in one.parameters())


def test_ensembles_that_make_no_sense_are_refused(mlp: nn.Module) -> None:
    with pytest.raises(UsageError, match="no models"):
        ensemble([])
    with pytest.raises(UsageError, match="Did you mean 'logits'"):
        ensemble([mlp], average="logit")
    for weights in ([1.0], [1.0, -1.0], [0.0, 0.0], [1.0, float("nan")]):
        with pytest.raises(UsageError, match="weights are"):
            ensemble([mlp, mlp], weights=weights)
