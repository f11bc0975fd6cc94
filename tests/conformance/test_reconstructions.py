"""What every reconstruction from a gradient promises, over the registry."""

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

CARDS = list(load_methods().cards("reconstruction"))


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


def test_there_are_both() -> None:
    assert {"first-linear-layer", "idlg"} <= {card.name for card in CARDS}
