"""Records out of naive Bayes, properties out of weights, and the exposure of planted secrets: exact where they can be."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris
from sklearn.naive_bayes import BernoulliNB, CategoricalNB, GaussianNB, MultinomialNB
from torch import Tensor, nn
from torch.nn import functional

from hauberk import Data, Schedule, Split, fit
from hauberk.core.errors import DataError, ModelError, UsageError
from hauberk.core.rng import isolated
from hauberk.privacy.inference import (
    Space,
    exposure_of,
    extrapolated_exposure,
    judge_property,
    naive_bayes_record,
    property_inference,
    rank_exposure,
    sampled_exposure,
    shadow_models,
)
from hauberk.privacy.inference.exposure import expected_exposure
from hauberk.privacy.inference.neurons import DeepSets, layers_of, sorted_neurons, stacked


class TestNaiveBayes:
    @pytest.mark.parametrize("place", [0, 77, 149])
    def test_a_gaussian_model_hands_over_the_missing_record(self, place: int) -> None:
        x, y = load_iris(return_X_y=True)
        rest = np.arange(len(x)) != place
        known = torch.tensor(x[rest]), torch.tensor(y[rest])
        found = naive_bayes_record(GaussianNB().fit(x, y), known)
        assert float((found.x[0] - torch.tensor(x[place])).abs().max()) < 1e-10
        assert found.y is not None and found.y.tolist() == [y[place]]
        assert found.loss is not None and float(found.loss) < 1e-10

    def test_a_large_offset_costs_few_digits(self) -> None:
        x, y = load_iris(return_X_y=True)
        x = x + 1e6
        found = naive_bayes_record(GaussianNB().fit(x, y), (torch.tensor(x[1:]), torch.tensor(y[1:])))
        assert float((found.x[0] - torch.tensor(x[0])).abs().max()) < 1e-5

    @pytest.mark.parametrize(("make", "values"), [(CategoricalNB, 4), (MultinomialNB, 9), (BernoulliNB, 2)])
    def test_models_of_counts_hand_it_over_whole(self, make: Callable[[], object], values: int) -> None:
        draw = np.random.default_rng(0)
        x, y = draw.integers(0, values, (60, 5)), draw.integers(0, 3, 60)
        model = make().fit(x, y)  # type: ignore[attr-defined]
        for place in (0, 59):
            rest = np.arange(60) != place
            found = naive_bayes_record(model, (torch.tensor(x[rest]), torch.tensor(y[rest])))
            assert found.x[0].tolist() == x[place].tolist() and found.y is not None and found.y.tolist() == [y[place]]

    def test_a_wrong_guess_of_what_is_known_shows(self) -> None:
        x, y = load_iris(return_X_y=True)
        model = GaussianNB().fit(x, y)
        wrong = torch.tensor(x[1:])
        wrong[0] += 1.0
        found = naive_bayes_record(model, (wrong, torch.tensor(y[1:])))
        assert found.loss is not None and float(found.loss) > 1e-2
        with pytest.raises(DataError, match="all records but one"):
            naive_bayes_record(model, (torch.tensor(x[2:]), torch.tensor(y[2:])))
        with pytest.raises(ModelError):
            naive_bayes_record(nn.Linear(2, 2), (wrong, torch.tensor(y[1:])))


def model_of(seed: int, shift: float = 0.0) -> nn.Sequential:
    """Random weights; one neuron, at any place, reads the first input by `shift` more."""
    with isolated(seed):
        model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2))
        with torch.no_grad():
            model[0].weight[int(torch.randint(6, ())), 0] += shift
    return model


def permuted(model: nn.Sequential, seed: int) -> nn.Sequential:
    """The same function with the neurons of both hidden layers in another order."""
    same = model_of(0)
    same.load_state_dict(model.state_dict())
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for here, after in ((same[0], same[2]), (same[2], same[4])):
            order = torch.randperm(len(here.weight), generator=draw)
            here.weight.copy_(here.weight[order])
            here.bias.copy_(here.bias[order])
            after.weight.copy_(after.weight[:, order])
    return same


class TestProperties:
    def test_the_order_of_neurons_changes_nothing(self) -> None:
        model = model_of(3)
        with isolated(0):
            judge = DeepSets(stacked([layers_of(model)])).double()
        for seed in range(5):
            other = permuted(model, seed)
            assert torch.equal(sorted_neurons(other), sorted_neurons(model))
            torch.testing.assert_close(judge(stacked([layers_of(other)])), judge(stacked([layers_of(model)])))

    def test_of_convolutions_too(self) -> None:
        with isolated(0):
            model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
        before = sorted_neurons(model)
        order = torch.tensor([2, 0, 1])
        with torch.no_grad():
            model[0].weight.copy_(model[0].weight[order])
            model[0].bias.copy_(model[0].bias[order])
            model[3].weight.copy_(model[3].weight.view(2, 3, 4)[:, order].reshape(2, 12))
        assert torch.equal(sorted_neurons(model), before)

    @pytest.mark.parametrize("meta", ["deepsets", "sorted"])
    def test_what_is_planted_in_the_weights_is_told_and_what_is_not_is_not(self, meta: str) -> None:
        holds, truth = torch.arange(60) % 2 == 1, torch.arange(60) % 2 == 1
        for shift, told in ((4.0, True), (0.0, False)):
            shadows = [model_of(100 + k, shift * float(holds[k])) for k in range(60)]
            victims = [model_of(1000 + k, shift * float(truth[k])) for k in range(60)]
            scores = property_inference(victims, shadows, holds, meta=meta, steps=60)  # type: ignore[arg-type]
            verdict = judge_property(scores, truth)
            assert verdict.n == 60
            if told:
                assert verdict.accuracy > 0.8 and verdict.leaks and verdict.p < 1e-6
            else:
                assert verdict.interval.low < 0.55 and verdict.p > 1e-3

    def test_always_saying_what_most_models_have_tells_nothing(self) -> None:
        truth = torch.arange(40) < 36
        verdict = judge_property(torch.ones(40), truth)
        assert verdict.accuracy == verdict.chance == 0.9 and not verdict.leaks and verdict.p > 0.4
        assert judge_property(truth.double(), truth).leaks  # 40 of 40
        assert judge_property(torch.tensor([1.0, 0.0] * 20), torch.tensor([True, False] * 20)).leaks

    def test_shadows_are_trained_by_turns_on_either_pool(self) -> None:
        seen = []

        def train(model: nn.Module, split: Split) -> None:
            seen.append((len(split), sorted(set(split.y.tolist()))))

        pools = [Split(torch.rand(20, 4), torch.full((20,), value)) for value in (0, 1)]
        models, holds = shadow_models(lambda: model_of(0), *pools, count=4, size=7, train=train)
        assert holds.tolist() == [False, True, False, True] and len(models) == 4
        assert seen == [(7, [0]), (7, [1]), (7, [0]), (7, [1])]

    def test_other_layouts_and_too_few_shadows_are_refused(self) -> None:
        with pytest.raises(ModelError, match="layouts"):
            property_inference([nn.Linear(3, 2)], [model_of(k) for k in range(4)], torch.arange(4) % 2 == 1)
        with pytest.raises(DataError):
            property_inference([model_of(0)], [model_of(k) for k in range(3)], torch.arange(3) % 2 == 1)
        with pytest.raises(UsageError):
            property_inference(  # type: ignore[call-overload]
                [model_of(0)], [model_of(k) for k in range(4)], torch.arange(4) % 2 == 1, meta="guess",  # type: ignore[arg-type]
            )


class TestExposure:
    space = Space(range(10), 3)

    def score(self, rows: Tensor) -> Tensor:
        """A loss without ties, that has nothing to do with the order of the space."""
        return (rows.double() @ torch.tensor([17.3, 5.71, 29.9], dtype=torch.float64)).sin() + 0.001 * rows[:, 0]

    @pytest.mark.parametrize("canary", [(0, 0, 0), (3, 1, 4), (9, 9, 9)])
    def test_it_equals_the_rank_by_brute_force(self, canary: tuple[int, ...]) -> None:
        own = float(self.score(torch.tensor([canary]))[0])
        ahead = sum(float(self.score(torch.tensor([one]))[0]) <= own for one in itertools.product(range(10), repeat=3))
        found = exposure_of(self.score, canary, self.space)
        assert (found.method, found.size) == ("rank", 1000)
        assert found.bits == pytest.approx(math.log2(1000) - math.log2(ahead), abs=1e-12)

    def test_the_likeliest_of_all_is_exposed_whole_and_a_constant_model_exposes_nothing(self) -> None:
        def sure(rows: Tensor) -> Tensor:
            return (rows != torch.tensor([3, 1, 4])).any(1).double()

        assert exposure_of(sure, (3, 1, 4), self.space).bits == math.log2(1000)
        assert exposure_of(lambda rows: torch.zeros(len(rows)), (3, 1, 4), self.space).bits == 0.0

    def test_the_sampled_interval_holds_the_exact_value(self) -> None:
        losses = self.score(self.space.all())
        rows = self.space.draw(400, torch.Generator().manual_seed(0))
        for place in (3, 314, 999):
            exact = rank_exposure(losses, float(losses[place])).bits
            found = sampled_exposure(self.score(rows), float(losses[place]), 1000)
            assert found.interval is not None and found.interval.low - 0.1 <= exact <= found.interval.high + 0.1

    def test_extrapolation_is_right_for_a_normal_law_and_beyond_the_sample(self) -> None:
        from scipy.stats import norm

        losses = 40 + 3 * torch.randn(4000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        for away in (-1.0, -2.0, -5.0):
            found = extrapolated_exposure(losses, 40 + 3 * away, 10**9)
            exact = -norm.logcdf(away) / math.log(2)
            assert found.bits == pytest.approx(exact, rel=0.15, abs=0.1)
            assert found.fit is not None and found.fit > 1e-3
        split = torch.cat([losses - 60, losses + 60])[torch.randperm(8000, generator=torch.Generator().manual_seed(2))]
        bad = extrapolated_exposure(split, -20.0, 10**9)
        assert bad.fit is not None and bad.fit < 1e-6, "two humps are no skew-normal"

    def test_a_large_space_is_extrapolated(self) -> None:
        space = Space(range(10), 9)

        def score(rows: Tensor) -> Tensor:
            return rows.double().sum(1)

        found = exposure_of(score, [1] * 9, space, sample=2000)
        assert found.method == "skew-normal" and found.size == 10**9
        # The sum of nine digits: P(S <= 9), counted by its generating function.
        law = np.array([1.0])
        for _ in range(9):
            law = np.convolve(law, np.full(10, 0.1))
        assert found.bits == pytest.approx(-math.log2(law[:10].sum()), rel=0.25)

    def test_the_mean_of_chance(self) -> None:
        assert expected_exposure(1) == 0.0
        assert expected_exposure(4) == pytest.approx((2 + 1 + math.log2(4 / 3)) / 4)
        assert expected_exposure(10**6) == pytest.approx(1 / math.log(2), abs=1e-4)

    def test_what_cannot_be_is_refused(self) -> None:
        with pytest.raises(UsageError):
            exposure_of(self.score, (1, 2), self.space)
        with pytest.raises(DataError):
            rank_exposure(torch.tensor([1.0, float("nan")]), 1.0)
        with pytest.raises(DataError):
            rank_exposure(torch.tensor([1.0, 2.0]), 1.5)
        with pytest.raises(DataError):
            extrapolated_exposure(torch.zeros(50), 0.0, 100)
        losses = torch.arange(50.0)
        for estimate in (sampled_exposure, extrapolated_exposure):
            with pytest.raises(DataError, match="canary's loss is NaN"):
                estimate(losses, float("nan"), 10**6)  # it would count as the most exposed of all
        with pytest.raises(DataError, match="1 of 50 losses are infinite"):
            extrapolated_exposure(torch.where(losses == 3, torch.inf, losses), 0.0, 10**6)
        with pytest.raises(UsageError, match="hold one twice"):
            exposure_of(lambda rows: rows.double().sum(1), (1, 1), Space((1, 1, 2), 2))
        with pytest.raises(DataError, match=r"of 4 sequences have shape \(4, 2\)"):
            exposure_of(lambda rows: rows.double(), (1, 2), Space((1, 2), 2))


@pytest.mark.slow
def test_the_share_of_a_class_in_the_training_data_is_read_off_trained_weights(digits: Data) -> None:
    assert digits.train is not None
    x, y = digits.train.tensors()
    zeros, rest = (y == 0).nonzero()[:, 0], (y != 0).nonzero()[:, 0]
    pools = [
        Split(*(torch.cat([part[zeros[:few]], part[rest[:300]]]) for part in (x, y))) for few in (8, 120)
    ]

    def build() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))

    def train(model: nn.Module, split: Split) -> None:
        fit(model, split, optimizer=torch.optim.Adam(model.parameters(), 1e-2), schedule=Schedule(epochs=6, batch_size=32))

    shadows, holds = shadow_models(build, *pools, count=60, size=120, train=train, seed=0)
    victims, truth = shadow_models(build, *pools, count=40, size=120, train=train, seed=1)
    for meta in ("deepsets", "sorted"):
        verdict = judge_property(property_inference(victims, shadows, holds, meta=meta, steps=200), truth)  # type: ignore[arg-type]
        assert verdict.leaks and verdict.accuracy > 0.7


@pytest.mark.slow
def test_a_net_that_read_a_secret_again_and_again_exposes_it() -> None:
    """A next-digit net over codes of five digits; one code is repeated among many that are not."""
    space, secret, unseen = Space(range(10), 5), (3, 1, 4, 1, 5), (2, 7, 1, 8, 2)
    rows = torch.cat([space.draw(400, torch.Generator().manual_seed(0)), torch.tensor([secret]).repeat(40, 1)])
    with isolated(0):
        net = nn.Sequential(nn.Flatten(), nn.Linear(5 * 11 * 2, 128), nn.ReLU(), nn.Linear(128, 10))

    def windows(codes: Tensor) -> Tensor:
        """Every prefix as one-hot digits (10: not yet), and its place."""
        n = len(codes)
        seen = torch.full((n, 5, 5), 10)
        for k in range(5):
            seen[:, k, :k] = codes[:, :k]
        place = torch.zeros(n, 5, 5, 11)
        place[:, torch.arange(5), torch.arange(5), 0] = 1
        return torch.cat([functional.one_hot(seen, 11).float(), place], 3).flatten(2)  # (n, 5, 110)

    fit(net, Split(windows(rows).flatten(0, 1), rows.flatten()), optimizer=torch.optim.Adam(net.parameters(), 2e-3),
        schedule=Schedule(epochs=15, batch_size=64))

    def score(codes: Tensor) -> Tensor:
        with torch.no_grad():
            log_p = net(windows(codes).flatten(0, 1)).log_softmax(1).view(len(codes), 5, 10)
        return -log_p.gather(2, codes[:, :, None])[..., 0].sum(1)

    exact = exposure_of(score, secret, space)
    assert exact.bits > 14 and exposure_of(score, unseen, space).bits < 8
    guessed = exposure_of(score, secret, space, largest=1000, sample=3000)
    assert guessed.method == "skew-normal" and guessed.bits > 8
