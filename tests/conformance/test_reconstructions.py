"""What every reconstruction promises, over the registry: those from the gradient of a sample, and those from features."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hauberk.core.card import Card
from hauberk.core.errors import HauberkError
from hauberk.core.kinds import Reconstruction
from hauberk.core.rng import isolated
from hauberk.methods import load_methods

ALL = list(load_methods().cards("reconstruction"))
FROM_FEATURES = [card for card in ALL if card.facts.get("sees") == "features"]
# Those that see a model, a split layer, records or statistics have tests of their own: their inputs differ too much.
CARDS = [card for card in ALL if "sees" not in card.facts]


def setting(label: int = 2, classes: int = 4) -> tuple[nn.Module, dict[str, Tensor], Tensor]:
    with isolated(7):
        model = nn.Sequential(nn.Linear(9, 20), nn.ReLU(), nn.Linear(20, classes)).double()
    x = torch.rand(1, 9, generator=torch.Generator().manual_seed(label), dtype=torch.float64)
    loss = functional.cross_entropy(model(x), torch.tensor([label]))
    named = dict(model.named_parameters())
    return model, dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True)), x


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
class TestEveryReconstruction:
    @pytest.mark.parametrize("label", range(4))
    def test_the_gradient_of_one_sample_gives_its_input_or_its_label(self, card: Card, label: int) -> None:
        model, gradients, x = setting(label)
        found = card.function(model, gradients)
        assert isinstance(found, Reconstruction) and len(found.x) == 1
        assert found.x.numel() or found.y is not None
        if found.x.numel():
            assert float((found.x.reshape(1, 9) - x).square().mean()) <= 1e-10
        if found.y is not None:
            assert found.y.tolist() == [label]

    def test_two_classes(self, card: Card) -> None:
        for label in (0, 1):
            model, gradients, x = setting(label, classes=2)
            found = card.function(model, gradients)
            assert found.y is None or found.y.tolist() == [label]
            assert not found.x.numel() or torch.allclose(found.x, x)

    def test_nothing_given_is_changed(self, card: Card) -> None:
        model, gradients, _ = setting()
        weights, slopes = [one.clone() for one in model.parameters()], {key: one.clone() for key, one in gradients.items()}
        state = torch.get_rng_state()
        card.function(model, gradients)
        assert torch.equal(state, torch.get_rng_state())
        assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
        assert all(torch.equal(slopes[key], gradients[key]) for key in slopes)

    def test_the_size_of_the_gradient_does_not_matter(self, card: Card) -> None:
        model, gradients, _ = setting()
        found, small = (card.function(model, {key: one * scale for key, one in gradients.items()}) for scale in (1.0, 1e-30))
        torch.testing.assert_close(found.x, small.x)
        assert found.y is None or torch.equal(found.y, small.y)

    def test_missing_gradients_are_refused(self, card: Card) -> None:
        with pytest.raises(HauberkError, match="missing"):
            card.function(setting()[0], {})


def images(classes: int = 4) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a net whose first layer loses nothing, three inputs, and what that layer says of them."""
    with isolated(7):
        model = nn.Sequential(nn.Linear(9, 20), nn.ReLU(), nn.Linear(20, classes)).double()
    x = torch.rand(3, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return model, x, model[0](x).detach()


@pytest.mark.parametrize("card", FROM_FEATURES, ids=lambda card: card.name)
class TestEveryReconstructionFromFeatures:
    def test_features_that_lose_nothing_give_the_input(self, card: Card) -> None:
        model, x, features = images()
        found = card.function(model, features)
        assert found.x.shape == x.shape and float((found.x - x).square().mean()) <= 1e-6
        assert found.loss is not None and float(found.loss.max()) <= 1e-6

    def test_the_size_of_the_features_does_not_matter(self, card: Card) -> None:
        model, _, features = images()
        x = card.function(model, features).x
        for part in (model[0].weight, model[0].bias):
            part.data *= 1e-12
        torch.testing.assert_close(card.function(model, features * 1e-12).x, x, atol=1e-6, rtol=1e-6)

    def test_samples_are_searched_for_by_themselves_and_the_seed_decides(self, card: Card) -> None:
        model, _, features = images()
        whole = card.function(model, features, seed=3).x
        assert torch.equal(whole, card.function(model, features, seed=3).x)
        torch.testing.assert_close(card.function(model, features[:1], seed=3).x, whole[:1])

    def test_nothing_given_is_changed(self, card: Card) -> None:
        model, _, features = images()
        model.train()
        weights, given, state = [one.clone() for one in model.parameters()], features.clone(), torch.get_rng_state()
        card.function(model, features)
        assert torch.equal(state, torch.get_rng_state()) and torch.equal(given, features) and model.training
        assert all(torch.equal(a, b) and b.grad is None for a, b in zip(weights, model.parameters(), strict=True))

    def test_missing_features_are_refused(self, card: Card) -> None:
        model, _, features = images()
        for wrong in ({}, features.double() * float("nan"), features[:, :5]):
            with pytest.raises(HauberkError, match="features"):
                card.function(model, wrong)


def test_there_are_all_kinds() -> None:
    assert {"first-linear-layer", "idlg"} <= {card.name for card in CARDS}
    assert {"mi-face", "gmi", "deep-inversion", "decoder-inversion"} <= {card.name for card in ALL}
    assert {"feature-inversion"} <= {card.name for card in FROM_FEATURES}
