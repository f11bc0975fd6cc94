"""Inversion of models: closed forms on linear models, priors and regions of known shape, and what an inversion must not use."""

from __future__ import annotations

import copy

import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from hauberk import Access, Data, Target
from hauberk.core.access import Budget
from hauberk.core.card import Card
from hauberk.core.errors import BudgetExceeded, DataError, HauberkError, ModelError, UsageError
from hauberk.core.kinds import Reconstruction
from hauberk.core.rng import isolated
from hauberk.methods import load_methods
from hauberk.privacy.model_inversion import (
    GaussianPrior,
    decoder_inversion,
    deep_inversion,
    federated_gan,
    gmi,
    judge_inversion,
    label_only_inversion,
    mi_face,
    shadow_inversion,
    train_decoder,
    train_gan,
)
from hauberk.privacy.model_inversion.batch_norm import statistics_distance
from hauberk.privacy.model_inversion.decoder import features_at
from hauberk.privacy.model_inversion.shadow import train_shadow


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear(inputs: int, outputs: int, seed: int = 0) -> nn.Linear:
    with isolated(seed):
        return nn.Linear(inputs, outputs).double()


class TestMiFace:
    def test_on_a_linear_model_of_two_classes_every_step_is_along_the_difference_of_the_weights(self) -> None:
        model = linear(12, 2)
        found = mi_face(model, torch.tensor([0, 1]), shape=(12,), steps=40, rate=0.002, bounds=(-1.0, 1.0))
        away = (model.weight[0] - model.weight[1]).detach()
        for x, way in zip(found.x, (away, -away), strict=True):
            assert float(x @ way / x.norm() / way.norm()) == pytest.approx(1.0, abs=1e-12)
        # Normalised steps along one line: its length is the sum of all steps.
        steps = sum((1 + torch.cos(torch.tensor(torch.pi * k / 40, dtype=torch.float64))) / 2 for k in range(40))
        torch.testing.assert_close(found.x.norm(dim=1), torch.full((2,), float(0.002 * 2 * 12**0.5 * steps)).double())

    def test_the_best_iterate_is_returned_not_the_last(self) -> None:
        class Waves(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return (25 * x).sin()

        model = nn.Sequential(linear(6, 16), Waves(), linear(16, 3, 1))
        seen: list[Tensor] = []
        handle = model.register_forward_hook(lambda _m, _x, out: seen.append(out.detach().softmax(1)))
        labels = torch.arange(30) % 3
        start = drawn(30, 6).sigmoid()
        found = mi_face(model, labels, shape=(6,), steps=25, rate=0.6, start=start)
        handle.remove()
        tried = torch.stack([1 - one[range(30), labels] for one in seen if len(one) == 30])[:26]  # (steps, n)
        worse = tried[-1] > tried.min(0).values + 1e-6
        assert int(worse.sum()) >= 3, "in these waves the last iterate is often not the best"
        assert found.loss is not None
        torch.testing.assert_close(found.loss, tried.min(0).values)
        torch.testing.assert_close(1 - model(found.x).softmax(1)[range(30), labels], found.loss)

    def test_classes_are_searched_for_by_themselves_and_inside_the_bounds(self) -> None:
        model = linear(6, 4)
        whole = mi_face(model, torch.arange(4), shape=(6,), bounds=(-0.5, 2.0))
        one = mi_face(model, torch.tensor([2]), shape=(6,), bounds=(-0.5, 2.0))
        torch.testing.assert_close(whole.x[2:3], one.x)
        assert float(whole.x.min()) >= -0.5 and float(whole.x.max()) <= 2.0

    def test_a_saturated_model_is_still_searched(self) -> None:
        model = linear(6, 2)
        with torch.no_grad():
            model.bias.copy_(torch.tensor([0.0, 900.0]))  # p_0 is 0 in any precision, and so is its gradient
        found = mi_face(model, torch.tensor([0]), shape=(6,), steps=50, rate=0.1)
        away = (model.weight[0] - model.weight[1]).detach()
        assert torch.equal(found.x[0] > 0.5, away > 0)

    @pytest.mark.parametrize(("labels", "options"), [
        (torch.tensor([4]), {}), (torch.tensor([-1]), {}), (torch.tensor([0.5]), {}), (torch.tensor([0]), {"steps": 0}),
        (torch.tensor([0]), {"bounds": (1.0, 0.0)}),
    ])
    def test_bad_input_is_refused(self, labels: Tensor, options: dict[str, object]) -> None:
        with pytest.raises((DataError, UsageError)):
            mi_face(linear(6, 4), labels, shape=(6,), **options)  # type: ignore[arg-type]


class TestBatchStatistics:
    def model(self) -> nn.Module:
        norm = nn.BatchNorm1d(5).double()
        norm.running_mean.copy_(torch.linspace(0.3, 0.7, 5))
        norm.running_var.copy_(torch.linspace(0.05, 0.15, 5).square())
        return nn.Sequential(norm, linear(5, 3)).eval()

    def test_the_batch_takes_on_the_stored_means_and_deviations(self) -> None:
        model = self.model()
        found = deep_inversion(model, torch.arange(3).repeat(20), shape=(5,), steps=300, statistics=100.0, rate=0.02)
        torch.testing.assert_close(found.x.mean(0), torch.linspace(0.3, 0.7, 5).double(), atol=0.01, rtol=0)
        torch.testing.assert_close(found.x.std(0, correction=0), torch.linspace(0.05, 0.15, 5).double(), atol=0.01, rtol=0)
        assert statistics_distance(model, found.x) < 0.02
        free = deep_inversion(model, torch.arange(3).repeat(20), shape=(5,), steps=300, statistics=0.0, rate=0.02)
        assert statistics_distance(model, free.x) > 1

    def test_the_distance_is_zero_for_a_batch_with_those_statistics(self) -> None:
        norm = nn.BatchNorm1d(4, momentum=1.0).double()
        x = drawn(64, 4)
        norm.train()(x)
        norm.running_var.copy_(x.var(0, correction=0))
        assert statistics_distance(nn.Sequential(norm), x) < 1e-6

    def test_a_model_without_them_is_refused(self) -> None:
        with pytest.raises(ModelError, match="batch statistics"):
            deep_inversion(linear(5, 3), torch.tensor([0]), shape=(5,))


class TestDecoder:
    def test_an_invertible_linear_layer_is_inverted_exactly(self) -> None:
        model = nn.Sequential(linear(9, 9), nn.Sigmoid(), linear(9, 3, 1))
        x = drawn(5, 9, seed=1)
        features = features_at(model, x, "0")
        for epochs in (0, 2):
            found = decoder_inversion(model, features, layer="0", auxiliary=drawn(100, 9, seed=2), epochs=epochs)
            assert float((found.x - x).abs().max()) < 1e-8
            assert found.loss is not None and float(found.loss.max()) < 1e-15

    def test_where_a_linear_map_does_not_do_the_net_helps(self) -> None:
        class Cube(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x**3

        model = nn.Sequential(Cube(), linear(2, 2))
        x, auxiliary = drawn(200, 2, seed=3), drawn(400, 2, seed=4)
        features = features_at(model, x, "0")
        errors = [
            (decoder_inversion(model, features, layer="0", auxiliary=auxiliary, epochs=epochs).x - x).square().mean()
            for epochs in (0, 30)
        ]
        assert float(errors[1]) < 0.5 * float(errors[0])

    def test_features_of_another_layer_and_missing_inputs_are_refused(self) -> None:
        model = nn.Sequential(linear(9, 4), linear(4, 3))
        with pytest.raises(DataError, match="features"):
            decoder_inversion(model, drawn(2, 3), layer="0", auxiliary=drawn(10, 9), epochs=0)
        with pytest.raises(DataError, match="auxiliary"):
            train_decoder(model, layer="0", auxiliary=drawn(1, 9))
        with pytest.raises(ModelError, match="no layer"):
            train_decoder(model, layer="nowhere", auxiliary=drawn(10, 9))


class TestShadow:
    def test_the_first_part_is_never_asked(self) -> None:
        model = nn.Sequential(linear(6, 8), nn.ReLU(), linear(8, 3, 1))
        features, auxiliary = features_at(model, drawn(20, 6), "1"), (drawn(60, 6, seed=1), torch.arange(60) % 3)
        other = copy.deepcopy(model)
        with torch.no_grad():
            other[0].weight.mul_(-3).add_(1)
        results = [
            shadow_inversion(one, features, layer="1", auxiliary=auxiliary, epochs=3, steps=10) for one in (model, other)
        ]
        assert torch.equal(results[0].x, results[1].x)
        with torch.no_grad():
            other[2].weight.mul_(2)
        again = shadow_inversion(other, features, layer="1", auxiliary=auxiliary, epochs=3, steps=10)
        assert not torch.equal(again.x, results[0].x), "the second part is what the adversary holds"

    def test_statistics_and_weights_of_the_first_part_are_not_known(self) -> None:
        norms = [nn.BatchNorm1d(width, affine=False).double() for width in (6, 8)]
        model = nn.Sequential(norms[0], linear(6, 8), nn.ReLU(), norms[1], linear(8, 3, 1))
        for part, shift in ((model[0], 5.0), (model[3], 7.0)):
            part.running_mean.add_(shift)  # type: ignore[operator, union-attr]
        seen = features_at(model, drawn(20, 6), "2")
        shadow = train_shadow(model, seen, layer="2", auxiliary=(drawn(60, 6, seed=1), torch.arange(60) % 3), epochs=1)
        assert float(shadow[0].running_mean.abs().max()) < 1  # type: ignore[index]
        assert float(shadow[3].running_mean.min()) == float(shadow[3].running_mean.max()) == 7  # type: ignore[index]
        assert float(model[0].running_mean.min()) == 5  # type: ignore[operator, union-attr]

        class Token(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.token = nn.Parameter(torch.ones(6))

            def forward(self, x: Tensor) -> Tensor:
                return x + self.token.to(x)

        held = nn.Sequential(Token(), linear(6, 8), linear(8, 3, 1))
        with pytest.raises(ModelError, match="has weights and no reset_parameters"):
            train_shadow(held, features_at(held, drawn(20, 6), "1"), layer="1", auxiliary=(drawn(9, 6), torch.arange(9) % 3))

    def test_digits_come_back_nearer_than_their_mean(self, digits: Data, digits_model: nn.Module) -> None:
        assert digits.train is not None
        x, auxiliary = digits.train.first(100)[0], digits.test.tensors()
        features = features_at(digits_model, x, "1")
        found = shadow_inversion(
            digits_model, features, layer="1", auxiliary=auxiliary, epochs=12, steps=100, bounds=(0.0, 1.0)
        )
        mean = auxiliary[0].mean(0)
        assert float((found.x - x).square().mean()) < 0.5 * float((mean - x).square().mean())

    def test_a_layer_with_nothing_before_it_is_refused(self) -> None:
        model = nn.Sequential(nn.Flatten(), linear(6, 3))
        with pytest.raises(ModelError, match="nothing before"):
            shadow_inversion(model, drawn(2, 6), layer="0", auxiliary=(drawn(10, 6), torch.zeros(10).long()))


class TestPriors:
    def test_the_gaussian_prior_has_the_moments_of_the_inputs(self) -> None:
        rows = drawn(50, 6) @ drawn(6, 6, seed=1)
        prior = GaussianPrior(rows, width=6, bounds=(-1e9, 1e9))
        directions = prior.get_buffer("directions")
        torch.testing.assert_close(directions.T @ directions, torch.cov(rows.T))
        torch.testing.assert_close(prior(torch.zeros(1, 6))[0], rows.mean(0))

    def test_a_small_gan_learns_where_the_inputs_lie_and_repeats_itself(self) -> None:
        real = (torch.tensor([0.2, 0.8]) + 0.03 * drawn(200, 2).float()).clamp(0, 1)
        state = torch.get_rng_state()
        prior = train_gan(real, width=4, hidden=8, steps=250, batch_size=32, seed=1)
        assert torch.equal(state, torch.get_rng_state())
        made = prior(torch.randn(300, 4, generator=torch.Generator().manual_seed(0))).detach()
        assert float((made.mean(0) - real.mean(0)).abs().max()) < 0.15
        again = train_gan(real, width=4, hidden=8, steps=5, seed=1), train_gan(real, width=4, hidden=8, steps=5, seed=1)
        assert torch.equal(again[0](torch.ones(1, 4)), again[1](torch.ones(1, 4)))

    def test_gmi_finds_the_one_minimum_of_a_convex_search(self) -> None:
        model, rows = linear(5, 3), drawn(40, 5, seed=1)
        prior = GaussianPrior(rows, width=3, bounds=(-1e9, 1e9))
        found = gmi(model, torch.tensor([0, 2]), prior=prior, realism=0.1, steps=400)
        assert found.y is not None

        def objective(z: object, label: int) -> float:
            point = torch.as_tensor(z, dtype=torch.float64)[None]
            with torch.no_grad():
                return float(-model(prior(point)).log_softmax(1)[0, label] + 0.05 * point.square().sum())

        for x, label in zip(found.x, (0, 2), strict=True):
            least = minimize(objective, [0.0] * 3, args=(label,), tol=1e-12)
            torch.testing.assert_close(x, prior(torch.tensor(least.x)[None])[0].detach(), atol=2e-3, rtol=0)


class Plane(nn.Module):
    """The prior whose inputs are the latent points themselves."""

    width = 2

    def forward(self, z: Tensor) -> Tensor:
        return z


class TestLabelOnly:
    centre, radius = torch.tensor([1.0, -0.6]), 2.0

    def labels(self, x: Tensor) -> Tensor:
        return ((x - self.centre).norm(dim=1) < self.radius).long()

    def test_it_moves_into_the_middle_of_a_region_of_known_shape(self) -> None:
        target = Target(self.labels, outputs="labels")
        found = label_only_inversion(target, torch.ones(4).long(), prior=Plane(), radius=0.5, steps=150)
        assert found.loss is not None
        held = 1 / found.loss
        off = (found.x - self.centre).norm(dim=1)
        # A circle of radius r lies in the region only if its centre is within R - r; 32 points leave little slack.
        assert bool((off <= self.radius - held + 0.2).all()) and bool((held >= 1.4).all()) and float(off.max()) < 0.7

    def test_a_label_that_never_comes_up_is_said_so_and_budgets_hold(self) -> None:
        target = Target(self.labels, outputs="labels")
        found = label_only_inversion(target, torch.tensor([5]), prior=Plane(), steps=3)
        assert found.loss is not None and bool(found.loss.isinf().all())
        assert target.ledger.queries == 40 * 256
        with pytest.raises(BudgetExceeded):
            label_only_inversion(
                Target(self.labels, outputs="labels", budget=Budget(queries=100)), torch.tensor([1]), prior=Plane()
            )

    def test_what_was_reached_before_the_budget_was_spent_is_kept(self) -> None:
        free = Target(linear(2, 3).float())
        whole = label_only_inversion(free, torch.arange(3), prior=Plane(), steps=6)
        bound = Target(linear(2, 3).float(), budget=Budget(queries=free.ledger.queries + 5))
        with pytest.raises(BudgetExceeded) as spent:
            label_only_inversion(bound, torch.arange(3), prior=Plane(), steps=200)
        assert torch.equal(spent.value.partial.x, whole.x) and torch.equal(spent.value.partial.loss, whole.loss)
        bare = label_only_inversion(linear(2, 3).float(), torch.arange(3), prior=Plane(), steps=6)
        assert torch.equal(bare.x, whole.x)

    def test_label_access_suffices(self) -> None:
        model = linear(2, 3).float()
        narrow = Target(model).seen_at(Access.LABEL)
        found = label_only_inversion(narrow, torch.arange(3), prior=Plane(), steps=20)
        assert model(found.x).argmax(1).tolist() == [0, 1, 2]


class TestFederatedGan:
    def test_rounds_are_asked_for_one_by_one_and_what_is_made_is_sent_before_the_next(
        self, digits_model: nn.Module
    ) -> None:
        order: list[str] = []

        def rounds() -> object:
            for number in range(3):
                order.append(f"round {number}")
                yield digits_model

        def send(x: Tensor) -> None:
            order.append(f"sent {tuple(x.shape)}")

        found = federated_gan(rounds(), 3, shape=(1, 8, 8), send=send, steps=15, images=16)  # type: ignore[arg-type]
        assert order == [one for number in range(3) for one in (f"round {number}", "sent (16, 1, 8, 8)")]
        assert float((digits_model(found.x).argmax(1) == 3).double().mean()) > 0.9

    def test_no_round_and_no_such_class_are_refused(self) -> None:
        with pytest.raises(DataError, match="no round"):
            federated_gan([], 0, shape=(4,))
        with pytest.raises(DataError, match="label is 7"):
            federated_gan([linear(4, 3)], 7, shape=(4,))


class TestJudge:
    def test_by_hand(self) -> None:
        private = (torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 0, 1]))
        found = Reconstruction(torch.tensor([[0.0, 0.8], [0.0, 0.6]]), y=torch.tensor([0, 1]))
        judged = judge_inversion(found, Target(lambda x: torch.stack([x[:, 1], x[:, 0]], 1)), private)
        assert (judged.n, judged.top1, judged.top5) == (2, 0.5, 1.0)
        assert judged.top1_interval.low == pytest.approx(0.0945, abs=1e-3)
        assert judged.nearest_right == 0.5  # the second is nearest to an input of class 0
        assert judged.nearest == pytest.approx((0.2 + (1 + 0.36) ** 0.5) / 2 / 2**0.5)
        assert judged.feature_distance is None and judged.ssim is None

    def test_the_private_inputs_themselves_are_at_no_distance(self, digits: Data, digits_model: nn.Module) -> None:
        x, y = digits.test.first(40)
        judged = judge_inversion(Reconstruction(x, y=y), digits_model, (x, y))
        assert judged.nearest < 1e-6 and judged.ssim == pytest.approx(1) and judged.nearest_right == 1
        assert judged.feature_distance == pytest.approx(0, abs=1e-5)
        assert judged.top1 == float((digits_model(x).argmax(1) == y).double().mean())

    def test_no_labels_and_no_private_input_of_a_class_are_refused(self) -> None:
        private = (drawn(3, 2), torch.tensor([0, 0, 1]))
        for wrong in (Reconstruction(drawn(1, 2)), Reconstruction(drawn(1, 2), y=torch.tensor([2]))):
            with pytest.raises(DataError):
                judge_inversion(wrong, linear(2, 3), private)


FROM_MODELS = [card for card in load_methods().cards("reconstruction") if "model_inversion" in card.function.__module__]


@pytest.mark.parametrize("card", FROM_MODELS, ids=lambda card: card.name)
def test_the_model_and_the_global_randomness_stay_as_they_were(card: Card) -> None:
    model = nn.Sequential(linear(6, 8), nn.BatchNorm1d(8).double(), nn.ReLU(), linear(8, 3, 1)).train()
    labels, rows = torch.arange(3), drawn(30, 6)
    prior = GaussianPrior(rows, width=4)
    calls = {
        "mi-face": lambda: card.function(model, labels, shape=(6,), steps=3),
        "deep-inversion": lambda: card.function(model, labels, shape=(6,), steps=3),
        "gmi": lambda: card.function(model, labels, prior=prior, steps=3),
        "label-only-inversion": lambda: card.function(Target(model), labels, prior=prior, steps=3),
        "decoder-inversion": lambda: card.function(model, drawn(2, 8), layer="2", auxiliary=rows, epochs=1),
        "shadow-inversion": lambda: card.function(
            model, drawn(2, 8), layer="2", auxiliary=(rows, torch.arange(30) % 3), epochs=1, steps=3
        ),
        "federated-gan": lambda: card.function([model], 1, shape=(6,), steps=3),
    }
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    first, second = calls[card.name](), calls[card.name]()
    assert torch.equal(first.x, second.x) and bool(first.x.isfinite().all())
    assert torch.equal(state, torch.get_rng_state()) and all(part.training for part in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(one.grad is None and one.requires_grad for one in model.parameters())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def test_every_error_is_one_of_ours() -> None:
    with pytest.raises(HauberkError):
        train_gan(drawn(1, 3))
    with pytest.raises(HauberkError):
        gmi(linear(5, 3), torch.tensor([0]), prior=GaussianPrior(drawn(9, 5)), restarts=0)
    with pytest.raises(DataError, match="refuses inputs"):
        gmi(linear(6, 3), torch.tensor([0]), prior=GaussianPrior(drawn(9, 5)))
    with pytest.raises(DataError, match="refuses inputs"):
        mi_face(linear(6, 3), torch.tensor([0]), shape=(5,))
    with pytest.raises(DataError, match="refuses inputs"):
        deep_inversion(nn.Sequential(nn.BatchNorm1d(6).double(), linear(6, 3)), torch.tensor([0]), shape=(5,))
