"""Detectors evaded: plain PGD is flagged, PGD that knows the detector is not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hauberk import Data, Linf, Split, Target
from hauberk.core.errors import UsageError
from hauberk.robustness.attack import pgd
from hauberk.robustness.attack.adaptive import Softened, detector_aware_pgd, softened_squeezing
from hauberk.robustness.attack.adaptive.detector_aware import _without
from hauberk.robustness.detect import FeatureSqueezing


class Halfspace:
    """Flags inputs beyond a plane."""

    def __init__(self, way: Tensor, threshold: float) -> None:
        self.way, self.threshold = way, threshold

    def score(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.way


@pytest.fixture(scope="module")
def parts(digits: Data) -> tuple[Split, Tensor, Tensor]:
    """Clean samples that set thresholds, and samples to attack."""
    x, y = digits.test.tensors()
    return Split(x[:250], y[:250]), x[250:370], y[250:370]


@pytest.fixture(scope="module")
def learned(digits: Data, digits_model: nn.Module, parts: tuple[Split, Tensor, Tensor]) -> Halfspace:
    """A network trained to tell PGD examples from clean inputs, at 5 % false positives."""
    x, y = digits.train.first(600)
    z = torch.cat([pgd(digits_model, x, y, Linf(0.2), early_stop=early, steps=10) for early in (False, True)])
    draw = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(),
            nn.Linear(256, 1),
        )
    descent, wanted = torch.optim.Adam(net.parameters(), 1e-3), torch.cat([torch.zeros(128), torch.ones(128)])
    for _ in range(150):
        batch = [one[torch.randint(len(one), (128,), generator=draw)] for one in (x, z)]
        loss = functional.binary_cross_entropy_with_logits(net(torch.cat(batch))[:, 0], wanted)
        descent.zero_grad()
        loss.backward()
        descent.step()
    made = Halfspace(torch.zeros(1), 0.0)
    made.score = lambda at: net(at)[:, 0]
    with torch.no_grad():
        made.threshold = float(made.score(parts[0].tensors()[0]).sort().values[237])
    return made


def rates(model: nn.Module, detector: object, z: Tensor, y: Tensor) -> tuple[float, float]:
    """Return the shares of z that fool the model, and that do so without being flagged."""
    with torch.no_grad():
        fooled = model(z).argmax(1) != y
        passed = detector.score(z) <= detector.threshold
    return float(fooled.double().mean()), float((fooled & passed).double().mean())


def test_orthogonal_pgd_passes_a_learned_detector_that_flags_every_plain_example(
    digits_model: nn.Module, parts: tuple[Split, Tensor, Tensor], learned: Halfspace
) -> None:
    _, x, y = parts
    threat, found = Linf(0.2), {}
    fooled, passed = rates(digits_model, learned, pgd(digits_model, x, y, threat), y)
    assert fooled > 0.95 and passed < 0.05
    for method in ("orthogonal", "selective", "joint"):
        z = detector_aware_pgd(digits_model, x, y, threat, detector=Softened(learned), method=method)
        assert bool(threat.within((0.0, 1.0)).contains(z, x).all())
        found[method] = rates(digits_model, learned, z, y)[1]
    assert found["orthogonal"] > 0.9 and min(found.values()) > 0.4
    assert found["orthogonal"] >= max(found.values())


def test_it_passes_feature_squeezing(digits_model: nn.Module, parts: tuple[Split, Tensor, Tensor]) -> None:
    clean, x, y = parts
    detector = FeatureSqueezing().fit(clean, Target(digits_model))
    plain = rates(digits_model, detector, pgd(digits_model, x, y, Linf(0.2)), y)
    soft = softened_squeezing(detector, digits_model)
    aware = rates(digits_model, detector, detector_aware_pgd(digits_model, x, y, Linf(0.2), detector=soft), y)
    assert plain[0] > 0.95 and plain[1] < 0.4
    assert aware[1] > plain[1] + 0.3
    leaf = x[:10].clone().requires_grad_()
    score = soft.soft_score(leaf)
    torch.testing.assert_close(score.detach(), detector.score(x[:10]))  # the score itself, with gradients
    (slope,) = torch.autograd.grad(score.sum(), leaf)
    assert bool((slope.flatten(1).norm(dim=1) > 0).all())


def test_two_planes_are_passed_where_a_corner_between_them_is_in_reach() -> None:
    """Goal w.x > 0 and detector v.x <= 0 in the plane: what can be reached is known from the angle between them."""
    model = nn.Linear(2, 2).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
        model.bias.copy_(torch.tensor([0.1, 0.0]))  # class 1 from x0 = 0.1 on
    x, y = torch.zeros(1, 2, dtype=torch.float64), torch.zeros(1, dtype=torch.long)
    detector = Halfspace(torch.tensor([1.0, -1.0]).double() / 2**0.5, 0.0)  # flags x0 > x1
    for radius, reached in ((0.099, False), (0.105, True)):
        threat = Linf(radius, bounds=(-1.0, 1.0))
        z = detector_aware_pgd(model, x, y, threat, detector=Softened(detector))
        assert (bool(model(z).argmax(1) == 1) and bool(detector.score(z) <= 0)) is reached


def test_a_step_is_orthogonal_to_what_it_must_not_undo() -> None:
    draw = torch.Generator().manual_seed(0)
    way, other = (torch.randn(6, 1, 4, 4, generator=draw, dtype=torch.float64) for _ in range(2))
    other[0], other[1] = 0, 3 * way[1]  # nothing to be orthogonal to, and nothing left
    found = _without(way, other)
    assert float((found * other).flatten(1).sum(1)[2:].abs().max()) < 1e-12
    torch.testing.assert_close(found[:2], way[:2], rtol=1e-14, atol=0)
    assert torch.equal(found[1], way[1])
    torch.testing.assert_close(_without(1e-200 * way, 1e-200 * other)[2:], 1e-200 * found[2:], rtol=1e-9, atol=0)


def test_without_a_detector_it_is_pgd_on_the_margin(digits_model: nn.Module, parts: tuple[Split, Tensor, Tensor]) -> None:
    _, x, y = parts
    plain = pgd(digits_model, x, y, Linf(0.1), steps=20, loss="margin", random_start=False)
    for method in ("orthogonal", "selective", "joint"):
        z = detector_aware_pgd(digits_model, x, y, Linf(0.1), method=method, steps=20, random_start=False)
        torch.testing.assert_close(z, plain)


def test_what_was_seen_and_not_flagged_is_what_comes_back(
    digits_model: nn.Module, parts: tuple[Split, Tensor, Tensor], learned: Halfspace
) -> None:
    _, x, y = parts
    asked: list[Tensor] = []
    for i in range(8):
        asked.clear()
        hook = digits_model.register_forward_hook(lambda _, inputs, __: asked.append(inputs[0].detach().clone()))
        z = detector_aware_pgd(digits_model, x[i : i + 1], y[i : i + 1], Linf(0.1), detector=Softened(learned), steps=10)
        hook.remove()
        seen = torch.cat(asked)
        seen = seen[Linf(0.1, bounds=(0.0, 1.0)).contains(seen, x[i : i + 1].expand_as(seen))]
        with torch.no_grad():
            fooled = digits_model(seen).argmax(1) != y[i]
            passed = learned.score(seen) <= learned.threshold
        best = rates(digits_model, learned, z, y[i : i + 1])
        assert best[1] == float((fooled & passed).any())
        if not bool((fooled & passed).any()):
            assert best[0] == float(fooled.any())


def test_a_detector_that_fails_leaves_the_model_as_it_was(digits_model: nn.Module, parts: tuple[Split, Tensor, Tensor]) -> None:
    _, x, y = parts

    class Broken(Halfspace):
        def soft_score(self, x: Tensor) -> Tensor:
            raise ValueError("no score")

    modes = [part.training for part in digits_model.modules()]
    gradients = [None if one.grad is None else one.grad.clone() for one in digits_model.parameters()]
    with pytest.raises(ValueError, match="no score"):
        detector_aware_pgd(digits_model, x, y, Linf(0.1), detector=Broken(torch.zeros(64), 1.0))
    assert [part.training for part in digits_model.modules()] == modes
    for one, before in zip(digits_model.parameters(), gradients, strict=True):
        assert one.requires_grad and (one.grad is None if before is None else torch.equal(one.grad, before))
    silent = Halfspace(torch.full((64,), math.nan), 0.0)  # NaN is flagged: nothing passes
    z = detector_aware_pgd(digits_model, x[:20], y[:20], Linf(0.2), detector=Softened(silent), steps=10)
    assert rates(digits_model, silent, z, y[:20])[1] == 0.0 and bool(z.isfinite().all())


def test_what_makes_no_sense_is_refused(digits_model: nn.Module, parts: tuple[Split, Tensor, Tensor]) -> None:
    _, x, y = parts
    with pytest.raises(UsageError, match="Did you mean 'joint'"):
        detector_aware_pgd(digits_model, x, y, Linf(0.1), method="jointly")
    with pytest.raises(UsageError, match="detector is a Halfspace"):
        detector_aware_pgd(digits_model, x, y, Linf(0.1), detector=Halfspace(torch.zeros(64), 0.0))
