"""What a threat allows, exactly: after the cast, per sample, per feature, behind a mask; and what counts as success."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hauberk import L0, L1, L2, Goal, Linf, Patch, Threat
from hauberk.core.errors import UsageError
from hauberk.core.rng import generator
from hauberk.core.threat import REFUSED, labels_of
from hauberk.robustness.attack.losses import climbed

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
NORMS = ("linf", "l2", "l1", "l0")


def images(n: int = 64, dtype: torch.dtype = torch.float32) -> Tensor:
    """Pixels in [0, 1], a third of them exactly at an end."""
    x = torch.rand(n, 3, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return ((x * 1.5) - 0.25).clamp(0, 1).to(dtype)


def true_size(z: Tensor, x: Tensor, norm: str) -> Tensor:
    """The norm in float64, by its definition."""
    delta = (z.double() - x.double()).flatten(1).abs()
    sizes = {"linf": delta.amax(1), "l2": delta.square().sum(1).sqrt(), "l1": delta.sum(1), "l0": (delta > 0).sum(1).double()}
    return sizes[norm]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("eps", [0.1, 8 / 255, 0.3, 1e-3, 4 / 255])
@pytest.mark.parametrize("norm", NORMS)
def test_a_sealed_point_is_inside_as_float64_sees_it(norm: str, eps: float, dtype: torch.dtype) -> None:
    x = images(dtype=dtype)
    radius = {"linf": eps, "l2": 5 * eps, "l1": 30 * eps, "l0": float(round(50 * eps))}[norm]
    ball = Threat(norm, radius, bounds=(0.0, 1.0)).around(x)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    direction = {"linf": noise.sign() * radius, "l2": noise, "l1": noise, "l0": noise}[norm]
    for z in (
        ball.seal((x.double() + direction).to(dtype)), ball.project((x + 3 * direction).to(dtype)),
        ball.maximise(noise.to(dtype)), ball.random_start(generator(0)),
    ):
        assert z.dtype is dtype
        assert float(true_size(z, x, norm).max()) <= radius
        assert float(z.double().min()) >= 0.0
        assert float(z.double().max()) <= 1.0
        assert bool(ball.contains(z).all())


def test_the_ball_is_used_to_its_edge() -> None:
    x = images()
    for norm, radius in (("linf", 0.1), ("l2", 0.5), ("l1", 2.0)):
        z = Threat(norm, radius, bounds=(0.0, 1.0)).around(x).maximise(torch.randn(x.shape, generator=generator(1)))
        assert float(true_size(z, x, norm).median()) == pytest.approx(radius, rel=2e-6)


def test_each_sample_has_its_own_radius() -> None:
    x = images(6)
    eps = torch.tensor([0.0, 0.01, 0.1, 0.5, 3.0, math.inf])
    slope = torch.randn(x.shape, generator=generator(4))
    corner = torch.where(slope > 0, torch.ones_like(x), torch.zeros_like(x))
    for norm in ("linf", "l2", "l1"):
        ball = Threat(norm, eps, bounds=(0.0, 1.0)).around(x)
        z = ball.maximise(slope)
        assert torch.equal(z[0], x[0])
        assert torch.equal(z[5], corner[5])
        assert bool((true_size(z, x, norm) <= eps.double()).all())
        picked = ball.subset(torch.tensor([1, 3]))
        torch.testing.assert_close(picked.maximise(slope[[1, 3]]), z[[1, 3]], rtol=0, atol=0)
    part = Linf(eps).subset(torch.tensor([2, 4]), x)
    assert isinstance(part.eps, Tensor) and part.eps.tolist() == pytest.approx([0.1, 3.0])


def test_bounds_and_masks_are_kept_feature_by_feature() -> None:
    x = torch.full((40, 4), 0.5, dtype=torch.float64)
    bounds = (torch.tensor([0.0, 0.4, 0.5, -9.0]), torch.tensor([1.0, 0.6, 0.5, 9.0]))
    mask = torch.tensor([True, True, True, False])
    for norm in NORMS:
        far = torch.randn(40, 4, generator=generator(0)).double().sign() * 3
        z = Threat(norm, 5.0, bounds=bounds, mask=mask).around(x).project(x + far)
        assert bool((z[:, 2] == 0.5).all()) and bool((z[:, 3] == 0.5).all())
        assert float(z[:, 1].min()) >= float(bounds[0][1]) and float(z[:, 1].max()) <= float(bounds[1][1])
        assert set(z[:, 0].tolist()) == {0.0, 1.0}


def test_a_patch_may_be_painted_over_and_nothing_else() -> None:
    x = images(8)
    mask = torch.zeros(3, 5, 5, dtype=torch.bool)
    mask[:, 1:3, 1:3] = True
    z = Patch(mask, bounds=(0.0, 1.0)).around(x).maximise(torch.ones_like(x))
    assert torch.equal(z[:, mask], torch.ones(8, 12))
    assert torch.equal(z[:, ~mask], x[:, ~mask])


def test_a_clean_value_a_hair_outside_the_bounds_stays_allowed() -> None:
    x = torch.tensor([[1.0000001, -1e-8, 0.5]])
    for norm in NORMS:
        ball = Threat(norm, 0.0, bounds=(0.0, 1.0)).around(x)
        assert bool(ball.contains(x).all())
        assert torch.equal(ball.project(x + 1), x)


@pytest.mark.parametrize("norm", NORMS)
def test_nothing_and_no_samples(norm: str) -> None:
    x = images(4)
    ball = Threat(norm, 0.0, bounds=(0.0, 1.0)).around(x)
    for z in (ball.project(torch.rand_like(x)), ball.maximise(torch.randn_like(x)), ball.random_start(generator(0))):
        assert torch.equal(z, x)
    empty = Threat(norm, 0.5, bounds=(0.0, 1.0)).around(x[:0])
    assert empty.project(x[:0]).shape == empty.random_start(generator(0)).shape == (0, 3, 5, 5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [2, 6])
def test_random_starts_are_uniform_in_the_ball(width: int, dtype: torch.dtype) -> None:
    n = 40_000
    x = torch.zeros(n, width + 2, dtype=dtype)
    mask = torch.arange(width + 2) < width  # frozen features take no part
    tolerance = 5 / math.sqrt(n) if dtype is torch.float32 else 0.02
    for norm in ("l2", "l1", "linf"):
        z = Threat(norm, 2.0, bounds=(-9.0, 9.0), mask=mask).around(x).random_start(generator(3, norm))
        assert float(z[:, width:].abs().max()) == 0
        inside = z[:, :width].double()
        # The share within radius r of a uniform draw is r^d, in every norm.
        shares = (true_size(inside, torch.zeros_like(inside), norm) / 2).pow(width)
        assert float(shares.mean()) == pytest.approx(0.5, abs=tolerance)
        assert float(shares.var()) == pytest.approx(1 / 12, abs=tolerance)
        # Second moments: E z_i^2 of a uniform draw in the ball of radius 2, and no preferred direction.
        second = {"l2": 4 / (width + 2), "l1": 8 / ((width + 1) * (width + 2)), "linf": 4 / 3}[norm]
        assert float(inside.square().mean()) == pytest.approx(second, rel=0.03)
        assert float(inside.mean(0).abs().max()) < 0.03
        assert float(torch.corrcoef(inside.T).fill_diagonal_(0).abs().max()) < 0.03


def test_random_starts_of_l0_change_exactly_so_many_features() -> None:
    x = torch.full((200, 10), 0.5)
    z = L0(3, bounds=(0.0, 1.0)).around(x).random_start(generator(0))
    assert true_size(z, x, "l0").tolist() == [3.0] * 200
    assert float((z != x).float().mean(0).min()) > 0.2
    assert bool(Threat("l2", math.inf, bounds=(0.0, 1.0)).random_start(x, generator(0)).std() > 0.25)


def test_margins_have_the_sign_and_size_of_their_goal() -> None:
    logits = torch.tensor([[-5.0, -1.0, -3.0], [2.0, 0.0, 7.0]])
    y = torch.tensor([1, 0])
    assert Linf(0.1).margin(logits, y).tolist() == [2.0, -5.0]
    assert Linf(0.1).targeted().margin(logits, y).tolist() == [-2.0, 5.0]
    assert Linf(0.1).success(logits, y).tolist() == [False, True]
    assert Linf(0.1).targeted().success(logits, y).tolist() == [True, False]
    confidence = Linf(0.1, goal=Goal.CONFIDENCE)
    wanted = torch.log_softmax(logits, 1)[torch.arange(2), y] - math.log(0.5)
    torch.testing.assert_close(confidence.margin(logits, y), wanted)
    assert confidence.success(logits, y).tolist() == [False, True]


def test_two_classes_and_ties_agree_with_the_label() -> None:
    logits = torch.tensor([[0.0, 3.0], [1.0, 1.0]])
    y = torch.tensor([1, 1])
    assert L2(1.0).margin(logits, y).tolist() == [3.0, 0.0]
    assert L2(1.0).success(logits, y).tolist() == [False, True]  # arg-max names label 0 on the tie
    with pytest.raises(UsageError, match="confidence goal"):
        Linf(0.1, goal=Goal.CONFIDENCE).reached(y, y)


def test_an_answer_of_nan_is_a_failure_of_the_model() -> None:
    """Not the right answer, so an untargeted or confidence goal is reached; not the wanted one, so a targeted goal is not."""
    nan, inf = math.nan, math.inf
    logits = torch.tensor([[nan, nan], [nan, 3.0], [3.0, nan], [3.0, 1.0]], requires_grad=True)
    for y in (torch.zeros(4, dtype=torch.long), torch.ones(4, dtype=torch.long)):
        right = [bool(y[3] == 0)]
        assert labels_of(logits).tolist() == [-1, -1, -1, 0]
        for threat, failed in (
            (Linf(0.1), True), (Linf(0.1, goal=Goal.CONFIDENCE), True), (Linf(0.1).targeted(), False),
        ):
            reached, margin = threat.success(logits, y), threat.margin(logits, y).detach()
            assert reached[:3].tolist() == [failed] * 3 and (margin < 0).tolist() == reached.tolist()
            assert bool(margin.isfinite().all()) and bool((margin[:3].abs() > 1e30).all())
            assert float(margin[3]) == pytest.approx(float(threat.margin(logits.detach()[3:], y[3:])))
            for loss in ("ce", "margin"):
                height = climbed(logits, y, threat, loss)
                assert not bool(height.isnan().any())
                assert bool((height[:3] > 1e30).all() if failed else (height[:3] < -1e30).all())
        assert Linf(0.1).success(logits, y)[3:].tolist() != right
    alike = torch.tensor([[inf, inf], [-inf, -inf], [inf, 0.0]])
    even, refused, first = Linf(0.1).margin(alike, torch.tensor([0, 0, 0])).tolist()
    assert (even, first) == (0.0, inf) and 1e30 < refused < inf  # no class has any weight: the question was refused
    assert labels_of(alike).tolist() == [0, REFUSED, 0]
    assert Linf(0.1).success(alike, torch.tensor([0, 0, 0])).tolist() == [False] * 3
    half = Linf(0.1).margin(torch.tensor([[nan, 0.0]], dtype=torch.float16), torch.tensor([0]))
    assert bool((half - -half).isfinite())


def test_threats_are_read_and_refused() -> None:
    assert Threat.parse("linf:8/255").eps == 8 / 255
    assert Threat.parse("L2: 0.5").norm == "l2"
    assert Threat.parse("l1:inf").eps == math.inf
    for text in ("linf", "linf:", "linf:1/0", "l3:1", "l2:-1", "l2:nan"):
        with pytest.raises(UsageError):
            Threat.parse(text)
    with pytest.raises(UsageError, match="lowest, highest"):
        L1(1.0, bounds=(1.0, 0.0))
    assert L2(0.5, bounds=(0.0, 1.0)).describe() == "L2, ε = 0.5, untargeted, inputs in [0, 1]"
